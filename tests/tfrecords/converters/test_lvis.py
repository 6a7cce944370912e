"""LVIS: which classes people looked for, frequencies, images by their URL; by hand and the real json."""

import json

import pytest
from PIL import Image
from support import real_data

pytest.importorskip("tensorflow")

from tfrecords import check  # noqa: E402
from tfrecords.adopt import adopt  # noqa: E402
from tfrecords.converters import lvis  # noqa: E402
from tfrecords.converters.lvis import frequency_of  # noqa: E402

URL = "http://images.cocodataset.org"
CATEGORIES = [
    {"id": 3, "name": "cup", "frequency": "f", "image_count": 900, "synset": "cup.n.01", "synonyms": ["mug"]},
    {"id": 1, "name": "awl", "frequency": "r", "image_count": 4, "instance_count": 6},
    {"id": 8, "name": "fig", "image_count": 11},
]


def truth(report):
    return json.loads((report.to / "annotations.json").read_text())


@pytest.fixture
def build(tmp_path):
    """build(**options): three images of 40x30 px, as LVIS names them, in the folders of COCO."""
    names = ("train2017/000000000005.jpg", "val2017/000000000005.jpg", "val2017/000000000007.jpg")
    for name in (*names, "COCO_val2014_000000000009.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    size = {"width": 40, "height": 30}
    images = [
        {"id": 5, **size, "coco_url": f"{URL}/train2017/000000000005.jpg", "neg_category_ids": [8, 1]},
        {"id": 7, **size, "coco_url": f"{URL}/val2017/000000000007.jpg", "neg_category_ids": [3, 8]},
        {
            "id": 9,
            **size,
            "file_name": "COCO_val2014_000000000009.jpg",
            "not_exhaustive_category_ids": [3, 1],
        },
    ]
    boxes = [(5, 3, [1, 2, 10, 12]), (5, 3, [3, 4, 5, 6]), (7, 8, [0, 0, 50, 20]), (9, 3, [0, 0, 4, 5])]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": 7.5}
        for n, (image, category, box) in enumerate(boxes, 1)
    ]
    tree = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(tree))

    def of(**options):
        files = {"images": tmp_path / "images", "annotations": tmp_path / "lvis_v1_val.json"}
        return lvis.build(tmp_path / f"to{len(list(tmp_path.iterdir()))}", **files, workers=0, **options)

    return of


def test_image_level_labels_and_frequencies(build):
    report = build()
    tree = truth(report)
    keys = ("file_name", "pos_category_ids", "neg_category_ids", "not_exhaustive_category_ids")
    assert [tuple(image[key] for key in keys) for image in tree["images"]] == [
        ("train2017/000000000005.jpg", [3], [1, 8], []),
        ("val2017/000000000007.jpg", [8], [3], []),  # 8 has a box: it is there
        ("COCO_val2014_000000000009.jpg", [3], [], [1, 3]),
    ]
    assert tree["categories"] == [
        {"id": 1, "name": "awl", "frequency": "r", "image_count": 4, "instance_count": 6},
        {"id": 3, "name": "cup", "synset": "cup.n.01", "frequency": "f", "image_count": 900},
        {"id": 8, "name": "fig", "frequency": "c", "image_count": 11},  # by the count
    ]
    assert [(one["bbox"], one["area"], one["iscrowd"]) for one in tree["annotations"]][2] == (
        [0, 0, 40, 20],
        7.5,
        0,
    )
    manifest = json.loads((report.to / "manifest.json").read_text())
    assert manifest["source"]["format"] == "lvis" and manifest["categories"] == tree["categories"]
    assert report.verified == 6 and report.remarks == {}
    assert not check.check(str(report.to)).faults
    again = adopt(sorted(report.to.glob("*.tfrecord*")), report.to.parent / "cache")
    images = json.loads((again / "annotations.json").read_text())["images"]
    # Shards know the classes that occur: 1 does not.
    assert images[2]["not_exhaustive_category_ids"] == [3]
    assert [one["neg_category_ids"] for one in images[:2]] == [[8], [3]]


def test_chosen_and_joined_classes(build, tmp_path):
    (tmp_path / "list.txt").write_text("vessel\nawl\n")
    tree = truth(build(classes=tmp_path / "list.txt", rename={"cup": "vessel", "fig": "vessel"}))
    assert tree["categories"] == [
        {"id": 1, "name": "vessel"},  # of two classes: no count of its own
        {"id": 2, "name": "awl", "frequency": "r", "image_count": 4, "instance_count": 6},
    ]
    listed = [(image["pos_category_ids"], image["neg_category_ids"]) for image in tree["images"]]
    assert listed == [([1], [2]), ([1], []), ([1], [])]


def test_frequencies_by_number_of_images():
    """Gupta et al. 2019: rare 1 to 10 images, common 11 to 100, frequent above."""
    assert [frequency_of(count) for count in (1, 10, 11, 100, 101)] == ["r", "r", "c", "c", "f"]


def test_the_real_json(tmp_path):
    """100 images of LVIS v0.5 val, blank here, under the names of 2017; counts of SOURCE.txt."""
    source = real_data.folder("lvis_samples") / "lvis_val_100.json"
    tree = json.loads(source.read_text())
    for image in tree["images"]:
        path = tmp_path / "val2017" / image["coco_url"].split("/")[-1]
        path.parent.mkdir(exist_ok=True)
        Image.new("1", (image["width"], image["height"])).convert("L").save(path, quality=1)
    report = lvis.build(tmp_path / "to", images=tmp_path, annotations=source, with_masks=False, workers=0)
    assert (report.images, report.boxes, len(report.categories)) == (100, 977, 1230)
    assert report.images_without_objects == 7 and not report.faults
    built = truth(report)
    assert sum(len(image["neg_category_ids"]) for image in built["images"]) == 942
    assert sum(len(image["not_exhaustive_category_ids"]) for image in built["images"]) == 16
    frequencies = [one["frequency"] for one in built["categories"]]
    assert [frequencies.count(one) for one in "fcr"] == [315, 461, 454]
    want = {image["id"]: image for image in tree["images"]}
    for image in built["images"]:
        assert image["neg_category_ids"] == sorted(want[image["id"]]["neg_category_ids"])
