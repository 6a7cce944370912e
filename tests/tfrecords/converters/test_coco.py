import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support import real_data

tf = pytest.importorskip("tensorflow")

from tfrecords.converters import coco  # noqa: E402
from tfrecords.index import open_index  # noqa: E402
from tfrecords.schema import DataError, parse  # noqa: E402
from tfrecords.write import read_manifest  # noqa: E402


@pytest.fixture
def source(tmp_path):
    """build(json) on a folder with images 1.jpg to 5.jpg of 40x30 px, into tmp_path/to."""
    (tmp_path / "images").mkdir()
    for number in range(1, 6):
        Image.new("RGB", (40, 30), (number * 40, 0, 0)).save(tmp_path / f"images/{number}.jpg")

    def build(tree, **options):
        file = tmp_path / "a.json"
        file.write_text(json.dumps(tree) if isinstance(tree, dict) else tree)
        return coco.build(tmp_path / "to", images=tmp_path / "images", annotations=file, **options)

    return build


def images(*numbers):
    return [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in numbers]


def tree_of(annotations, numbers=(1,), categories=((7, "cat"), (3, "dog"))):
    return {
        "images": images(*numbers),
        "annotations": [{"id": 99 + number, **a} for number, a in enumerate(annotations)],
        "categories": [{"id": n, "name": name} for n, name in categories],
    }


def box(bbox, image_id=1, category_id=7, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def records(folder):
    """All records of a data set, {image id: parsed}."""
    files = sorted(map(str, folder.glob("*.tfrecord")))
    parsed = [parse(record) for record in tf.data.TFRecordDataset(files)]
    return {int(record["image_id"]): record for record in parsed}


def test_boxes_end_up_in_records_and_in_the_ground_truth(source, tmp_path):
    report = source(
        tree_of(
            [
                box([4, 3, 8, 6], area=20.5),
                box([0, 0, 40, 30], category_id=3, iscrowd=1),
                box([1, 1, 2, 2], image_id=2),
            ],
            numbers=(1, 2, 3),
        )
    )
    assert (report.images, report.images_without_objects, report.boxes, report.crowds) == (3, 1, 3, 1)
    assert report.boxes_per_category == {"dog": 1, "cat": 2}
    assert not report.faults and not report.dropped

    read = records(tmp_path / "to")
    np.testing.assert_allclose(read[1]["boxes"], [[0.1, 0.1, 0.3, 0.3], [0, 0, 1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(read[1]["category_ids"], [7, 3])
    np.testing.assert_array_equal(read[1]["crowd"], [False, True])
    np.testing.assert_allclose(read[1]["area"], [20.5, 1200])
    assert len(read[3]["boxes"]) == 0

    truth = COCO(tmp_path / "to/annotations.json")
    assert truth.getImgIds() == [1, 2, 3] and truth.getCatIds() == [3, 7]
    [first] = truth.loadAnns(truth.getAnnIds(imgIds=1, catIds=7))
    assert first["bbox"] == [4, 3, 8, 6] and first["area"] == 20.5
    assert min(truth.getAnnIds()) == 1  # pycocotools takes 0 for "no match"


def test_labels_follow_ascending_ids(source, tmp_path):
    source(tree_of([], categories=((90, "z"), (1, "b"), (13, "a"))))
    assert read_manifest(tmp_path / "to")["categories"] == [
        {"id": 1, "name": "b"},
        {"id": 13, "name": "a"},
        {"id": 90, "name": "z"},
    ]


@pytest.mark.parametrize(
    "bbox,expected",
    [
        ([-5, 0, 10, 10], [0, 0, 5, 10]),
        ([35, 25, 10, 10], [35, 25, 5, 5]),
        ([-1, -1, 99, 99], [0, 0, 40, 30]),
        ([30.5, 0, 9.5, 30], [30.5, 0, 9.5, 30]),
    ],
)
def test_boxes_are_clipped_to_the_image(source, tmp_path, bbox, expected):
    report = source(tree_of([box(bbox)]))
    assert json.loads((tmp_path / "to/annotations.json").read_text())["annotations"][0]["bbox"] == expected
    assert report.clipped == (bbox != expected)


@pytest.mark.parametrize(
    "fault,reason",
    [
        (box([5, 5, 0, 5]), "box without area"),
        (box([40, 0, 5, 5]), "box outside the image"),
        (box([5, 5, float("nan"), 5]), "bbox is not four finite numbers"),
        (box([5, 5, 5]), "bbox is not four finite numbers"),
        (box(None), "bbox is not four finite numbers"),
        (box([1, 1, 5, 5], category_id=8), "category_id is not among the categories"),
        (box([1, 1, 5, 5], image_id=8), "image_id is not among the images"),
    ],
)
def test_invalid_boxes_are_counted_by_reason_and_skipped(source, tmp_path, fault, reason):
    tree = tree_of([fault, box([1, 1, 5, 5])])
    report = source(tree)
    assert report.dropped == {reason: 1} and report.boxes == 1
    assert "annotation 99" in str(report.faults[0])
    assert read_manifest(tmp_path / "to")["dropped"] == {reason: 1}


def test_strict_raises_at_an_invalid_box(source, tmp_path):
    with pytest.raises(DataError, match="annotation 99 of 1.jpg: box without area"):
        source(tree_of([box([5, 5, 0, 5])]), strict=True)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "file_name,reason",
    [
        ("../images/1.jpg", "relative path"),
        ("/etc/passwd", "relative path"),
        ("a/../../1.jpg", "relative path"),
        ("..\\images\\1.jpg", "relative path"),
        ("", "relative path"),
        ("6.jpg", "no such file"),
        ("half.jpg", "damaged"),
        ("small.jpg", "annotations say 40x30"),
    ],
)
def test_invalid_images_are_reported_and_skipped(source, tmp_path, file_name, reason):
    whole = (tmp_path / "images/2.jpg").read_bytes()
    (tmp_path / "images/half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4, 3)).save(tmp_path / "images/small.jpg")
    tree = tree_of([box([1, 1, 5, 5], image_id=1), box([1, 1, 5, 5], image_id=2)], numbers=(1, 2))
    tree["images"][0]["file_name"] = file_name
    report = source(tree)
    assert (report.images, report.boxes, report.faulty_pictures) == (1, 1, 1)
    assert file_name.replace("\\", "\\\\") in report.faults[0].where and reason in report.faults[0].reason
    assert [i["id"] for i in json.loads((tmp_path / "to/annotations.json").read_text())["images"]] == [2]


def test_names_that_other_systems_write(source, tmp_path):
    """A file belongs to one entry: to that which names it plainly, whatever their order."""
    tree = tree_of([box([1, 1, 5, 5], image_id=n) for n in (1, 2, 3, 4)], numbers=(1, 2, 3, 4))
    for image, name in zip(
        tree["images"],
        ["C:\\photos\\1.JPG", "images/2.jpg", "./2.jpg", "/data/local-files/?d=3.jpg"],
        strict=True,
    ):
        image["file_name"] = name
    report = source(tree)
    truth = json.loads((tmp_path / "to/annotations.json").read_text())
    assert {i["id"]: i["file_name"] for i in truth["images"]} == {1: "1.jpg", 3: "2.jpg", 4: "3.jpg"}
    assert (report.images, report.faulty_pictures, report.dropped) == (3, 1, {"its image is left out": 1})
    taken = "not at this path: the one file of its name in the folder is taken"
    assert report.remarks == {taken: 1}
    named = "\n".join(map(str, report.faults))
    assert f"C:\\photos\\1.JPG -> 1.jpg: {taken}" in named
    assert "images/2.jpg: its image, 2.jpg, is listed twice" in named


def test_strict_raises_at_an_invalid_image(source):
    with pytest.raises(DataError, match="6.jpg: no such file"):
        source(tree_of([], numbers=(1, 6)), strict=True)


@pytest.mark.parametrize(
    "tree,message",
    [
        ("[]", "a list is not ground truth"),
        ("{", "not JSON"),
        ({"images": [], "annotations": []}, "no list of categories"),
        (tree_of([], categories=()), "categories is empty"),
        (tree_of([], categories=((1, "a"), (1, "b"))), "id 1 is not unique"),
        (
            {**tree_of([]), "images": [*images(1), {"id": 1, "file_name": "2.jpg"}]},
            "two images have the id 1",
        ),
        ("[" * 100_000, "not JSON"),
        (tree_of([{**box([1, 1, 5, 5]), "score": 0.7}]), "detections, not ground truth"),
        (
            "[" + json.dumps({"image_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}) + "]",
            "a file of detections is not a data set",
        ),
        ({**tree_of([]), "categories": [{"name": "cat"}]}, "an entry has no id"),
        ({**tree_of([]), "categories": [None]}, "an entry has no id"),
        (tree_of([], numbers=()), "no usable image"),
        (tree_of([], numbers=(6,)), "no usable image; the first fault: 6.jpg: no such file"),
    ],
)
def test_what_is_no_data_set(source, tree, message):
    with pytest.raises(DataError, match=message) as caught:
        source(tree)
    assert "\n" not in str(caught.value)


def test_missing_files_are_the_first_faults(source, tmp_path):
    """Where a file is missing, that is said before boxes without area and images of other sizes."""
    tree = tree_of([box([1, 1, 0, 5], image_id=1), box([1, 1, 3, 5], image_id=1)], numbers=(1, 6))
    report = source(tree)
    assert [fault.where for fault in report.faults][0] == "6.jpg" and len(report.faults) == 2
    assert report.missing_files == 1
    manifest = json.loads((tmp_path / "to" / "manifest.json").read_text())
    assert manifest["faults"][0] == {"where": "6.jpg", "reason": "no such file"}


def test_nothing_usable_is_explained_by_the_missing_file(source):
    tree = tree_of([box([1, 1, 0, 5], image_id=6), box([1, 1, 2, 2], image_id=9)], numbers=(6,))
    with pytest.raises(DataError, match=r"no usable image; the first fault: 6\.jpg: no such file"):
        source(tree)


def test_an_existing_data_set_is_not_touched(source, tmp_path):
    source(tree_of([]))
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    with pytest.raises(DataError, match="already exists"):
        source(tree_of([]))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "images", "to"}  # nothing left aside


def test_ids_written_as_text(source, tmp_path):
    tree = tree_of([box([1, 1, 5, 5], image_id="2", category_id="7")], numbers=(1, 2))
    for image in tree["images"]:
        image["id"] = str(image["id"])
    assert source(tree).boxes == 1
    assert len(records(tmp_path / "to")[2]["boxes"]) == 1


def test_names_as_ids_become_running_numbers(source, tmp_path):
    tree = tree_of([box([1, 1, 5, 5], image_id="two")], numbers=(1, 2))
    tree["images"][0]["id"], tree["images"][1]["id"] = "one", "two"
    source(tree)
    read = records(tmp_path / "to")
    assert [len(read[number]["boxes"]) for number in (1, 2)] == [0, 1]


def test_categories_named_by_words(source, tmp_path):
    """Running numbers in the order of the words, whatever the order in the file; the words are kept."""
    tree = tree_of(
        [box([1, 1, 5, 5], category_id="cat")], categories=(("dog", "D"), ("a3", "A"), ("cat", "C"))
    )
    source(tree)
    assert read_manifest(tmp_path / "to")["categories"] == [
        {"id": 1, "name": "A", "source_id": "a3"},
        {"id": 2, "name": "C", "source_id": "cat"},
        {"id": 3, "name": "D", "source_id": "dog"},
    ]
    np.testing.assert_array_equal(records(tmp_path / "to")[1]["category_ids"], [2])


@pytest.mark.parametrize("written", [7, "7", 7.0, "7.0", " 7"])
def test_category_ids_written_in_other_ways(source, tmp_path, written):
    source(
        tree_of(
            [box([1, 1, 5, 5], category_id=written), box([1, 1, 6, 6], category_id=0)],
            categories=((7, "cat"), (0, "x")),
        )
    )
    np.testing.assert_array_equal(records(tmp_path / "to")[1]["category_ids"], [7, 0])


def test_image_ids_from_zero(source, tmp_path):
    tree = tree_of([box([1, 1, 5, 5], image_id=0)], numbers=(1, 2))
    tree["images"][0]["id"] = 0
    source(tree)
    assert sorted(records(tmp_path / "to")) == [0, 2]


def test_every_image_and_box_is_accounted_for(source, tmp_path):
    """Ten annotations, six images; the counts are by hand."""
    faulty = [
        box([1, 1, 5, 5]),
        box([1, 1, 5, 5]),  # another id: two boxes
        box([38, 28, 5, 5]),  # clipped
        box([5, 5, 0, 5]),
        box([1, 1, 5, 5], image_id=6),  # 6.jpg is missing
        box([2, 1, 5, 5], image_id=6),
        box([1, 1, 5, 5], image_id=77),
        box([1, 1, 5, 5], category_id=77),
        box([1, 1, 5, 5], image_id="again"),  # of the image that is listed twice
    ]
    tree = tree_of(faulty, numbers=(1, 2, 6))
    tree["annotations"].append(dict(tree["annotations"][0]))  # the same with the same id
    tree["annotations"].append(None)
    tree["images"] += [dict(tree["images"][0]), {**tree["images"][0], "id": "again"}, "no image"]
    report = source(tree)
    assert (report.images_total, report.images, report.faulty_pictures) == (6, 2, 4)
    assert (report.boxes_total, report.boxes, report.clipped) == (11, 3, 1)
    assert report.dropped == {
        "box without area": 1,
        "its image is left out": 3,
        "image_id is not among the images": 1,
        "category_id is not among the categories": 1,
        "the annotation is listed twice": 1,
        "annotation is not an object": 1,
    }
    named = "\n".join(map(str, report.faults))
    for part in ("6.jpg: no such file", "1.jpg: the image is listed twice", "image number 5: it has no id"):
        assert part in named
    manifest = read_manifest(tmp_path / "to")
    assert manifest["images_total"] == 6 and manifest["boxes_total"] == 11
    assert manifest["dropped"] == report.dropped


def test_two_annotations_with_one_id_are_both_kept(source):
    tree = tree_of([box([1, 1, 5, 5]), box([2, 2, 5, 5])])
    tree["annotations"][1]["id"] = 99
    report = source(tree)
    assert report.boxes == 2 and report.remarks == {"another annotation has the same id: kept": 1}


@pytest.mark.parametrize("hair", [1e-3, 1e-9])
def test_box_over_the_border_by_rounding_is_kept(source, hair):
    report = source(tree_of([box([0, 0, 40 + hair, 30]), box([-hair, 0, 5, 5])]))
    assert report.boxes == report.clipped == 2 and not report.dropped


def test_box_that_is_empty_in_float32_is_dropped(source):
    boxes = [box([39.99999999, 5, 5, 5]), box([1, 1, 5, 5])]
    assert source(tree_of(boxes)).dropped == {"box without area": 1}


def test_difficult_objects_are_kept_as_such(source, tmp_path):
    source(tree_of([box([1, 1, 5, 5]), box([2, 2, 5, 5], difficult=1)]))
    np.testing.assert_array_equal(records(tmp_path / "to")[1]["difficult"], [False, True])
    truth = json.loads((tmp_path / "to/annotations.json").read_text())
    assert [a.get("difficult", 0) for a in truth["annotations"]] == [0, 1]


def test_json_without_image_sizes(source, tmp_path):
    tree = tree_of([box([30, 20, 20, 20])])
    del tree["images"][0]["width"], tree["images"][0]["height"]
    source(tree)
    np.testing.assert_allclose(records(tmp_path / "to")[1]["boxes"], [[0.75, 20 / 30, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize("workers", [None, 2])
def test_jobs_are_assigned_to_shards_round_robin(source, tmp_path, workers):
    tree = tree_of([box([1, 1, 5, 5], image_id=3)], numbers=(5, 4, 3, 2, 1))
    report = source(tree, shards=2, workers=workers)
    names = ["to-00000-of-00002.tfrecord", "to-00001-of-00002.tfrecord"]
    files = sorted((tmp_path / "to").glob("*.tfrecord*"))
    assert [file.name for file in files] == names
    ids = [[int(parse(r)["image_id"]) for r in tf.data.TFRecordDataset(str(file))] for file in files]
    assert ids == [[5, 3, 1], [4, 2]]
    assert [(s["file"], s["records"]) for s in report.shards] == list(zip(names, [3, 2], strict=True))
    for shard in read_manifest(tmp_path / "to")["shards"]:
        content = (tmp_path / "to" / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest() and shard["bytes"] == len(content)


def test_index_on_disk_equals_a_scan_of_the_shards(source, tmp_path):
    object_and_crowd = [box([1, 1, 5, 5], image_id=3), box([1, 1, 5, 5], image_id=3, iscrowd=1)]
    source(tree_of(object_and_crowd, numbers=(5, 4, 3, 2, 1)))
    written = open_index(tmp_path / "to")
    (tmp_path / "to/index.json").unlink()
    found = open_index(tmp_path / "to")
    assert written.files == found.files and written.objects.sum() == 1
    for key in ("shard", "offset", "image_id", "height", "width", "objects"):
        np.testing.assert_array_equal(getattr(written, key), getattr(found, key), err_msg=key)
        assert getattr(written, key).dtype == getattr(found, key).dtype


def test_blood_cells(tmp_path):
    """Images and boxes of each list as SOURCE.txt has them, and by class; not one box differs."""
    bccd = real_data.folder("bccd")
    by_class = {"RBC": 0, "WBC": 0, "Platelets": 0}
    for split, images, boxes in [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)]:
        annotations = bccd / f"coco/instances_{split}.json"
        report = coco.build(
            tmp_path / split, images=bccd / "BCCD/JPEGImages", annotations=annotations, strict=True
        )
        assert (report.images, report.boxes, report.clipped) == (images, boxes, 0)
        assert sum(shard["records"] for shard in report.shards) == images
        for name in by_class:
            by_class[name] += report.boxes_per_category[name]
        ours, theirs = COCO(tmp_path / split / "annotations.json"), COCO(annotations)
        assert sorted(ours.getImgIds()) == sorted(theirs.getImgIds())
        for number in theirs.getImgIds():
            a, b = (
                sorted((x["category_id"], *x["bbox"], x["area"]) for x in truth.imgToAnns[number])
                for truth in (ours, theirs)
            )
            np.testing.assert_array_equal(a, b)
    assert by_class == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}  # two RBC boxes have no area


def test_coco_photos_with_a_crowd_and_an_image_without_objects(tmp_path):
    photos = real_data.folder("coco_samples", "val2017_6_photos")
    [file] = (photos / "coco").glob("*.json") if (photos / "coco").is_dir() else photos.glob("*.json")
    report = coco.build(tmp_path / "to", images=photos / "images", annotations=file, strict=True)
    assert (report.images, report.boxes, report.crowds, report.images_without_objects) == (6, 36, 1, 1)


def test_shards_of_other_tools_can_be_indexed():
    """40 records that the TensorFlow Object Detection API's tutorial code wrote."""
    [file] = real_data.folder("raccoon", "data").glob("test.record")
    index = open_index(file)
    assert len(index) == 40 and index.objects.sum() == 44 and len(set(index.image_id.tolist())) == 40
