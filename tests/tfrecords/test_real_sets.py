"""Every real set at hand, converted from every form it has: the sums are those of its SOURCE.txt.

The numbers stand in the SOURCE.txt beside the data, or are counted from the files by the test itself.
"""

import contextlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from support import real_data  # noqa: E402

from tfrecords import adopt, check  # noqa: E402
from tfrecords.converters import coco, csv_table, voc  # noqa: E402
from tfrecords.index import open_index  # noqa: E402


def objects_of(path):
    """[(file name, class, bbox)] of a COCO json, sorted."""
    tree = json.loads(path.read_text())
    files = {image["id"]: image["file_name"] for image in tree["images"]}
    names = {category["id"]: category["name"] for category in tree["categories"]}
    found = [
        (files[a["image_id"]], names[a["category_id"]], *map(float, a["bbox"])) for a in tree["annotations"]
    ]
    return sorted(found)


def scores(truth, results, kind="bbox"):
    """The twelve numbers of pycocotools; results None: the ground truth itself as detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth)
        if results is None:
            keys = ("image_id", "category_id", "bbox", "segmentation")
            results = [{**{k: a[k] for k in keys if k in a}, "score": 1.0} for a in truth.anns.values()]
        judge = COCOeval(truth, truth.loadRes(results), kind)
        judge.params.catIds = sorted({a["category_id"] for a in truth.anns.values()})
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def is_sound(folder):
    found = check.check(folder)
    assert not found.faults, found.faults
    return found.records, found.objects


@pytest.mark.parametrize("split,images,boxes", [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)])
def test_blood_cells_from_xml_are_those_from_json(tmp_path, split, images, boxes):
    root = real_data.folder("bccd")
    report = voc.build(tmp_path / "to", root=root / "BCCD", split=split)
    degenerate = {"train": 1, "val": 1, "test": 0}[split]
    assert (report.images, report.boxes, report.boxes_total) == (images, boxes, boxes + degenerate)
    assert report.dropped == ({"box without area": 1} if degenerate else {})
    assert objects_of(tmp_path / "to/annotations.json") == objects_of(root / f"coco/instances_{split}.json")
    assert is_sound(tmp_path / "to") == (images, boxes)
    if split == "test":
        assert scores(tmp_path / "to/annotations.json", None)[0] == pytest.approx(1)


def test_all_blood_cells(tmp_path):
    report = voc.build(tmp_path / "to", root=real_data.folder("bccd") / "BCCD")
    assert (report.images, report.boxes_total, report.boxes) == (364, 4888, 4886)
    assert report.boxes_per_category == {"Platelets": 361, "RBC": 4155 - 2, "WBC": 372}
    assert {str(fault).split(":")[0].split(" of ")[1] for fault in report.faults} == {
        "BloodImage_00338.jpg",
        "BloodImage_00343.jpg",
    }


def test_raccoons_from_xml_table_json_and_shards(tmp_path):
    root = real_data.folder("raccoon")
    pictures = root / "images"
    for split, name, images, boxes in [("train", "train", 160, 173), ("val", "test", 40, 44)]:
        listed = objects_of(root / f"coco/instances_{split}.json")
        to = tmp_path / f"csv-{split}"
        report = csv_table.build(to, images=pictures, annotations=root / f"data/{name}_labels.csv")
        assert (report.images, report.boxes, report.faulty_pictures) == (images, boxes, 0)
        assert objects_of(to / "annotations.json") == listed
        to = tmp_path / f"json-{split}"
        report = coco.build(
            to, images=pictures, annotations=root / f"coco/instances_{split}.json", strict=True
        )
        assert (report.images, report.boxes) == (images, boxes)
        assert is_sound(to) == (images, boxes)
    report = voc.build(tmp_path / "xml", images=pictures, annotations=root / "annotations")
    assert (report.images, report.boxes) == (200, 217)
    both = [objects_of(root / f"coco/instances_{split}.json") for split in ("train", "val")]
    assert objects_of(tmp_path / "xml/annotations.json") == sorted(sum(both, []))
    shards = adopt.adopt([root / "data/test.record"], tmp_path / "cache")
    found = objects_of(shards / "annotations.json")
    assert [one[:2] for one in found] == [one[:2] for one in both[1]]
    np.testing.assert_allclose([one[2:] for one in found], [one[2:] for one in both[1]], atol=1e-3)


def test_pascal_from_xml_and_json(tmp_path):
    root = real_data.folder("voc100")
    difficult = 0
    for split, images, boxes in [("train", 70, 204), ("val", 30, 69)]:
        to = tmp_path / split
        report = voc.build(to, root=root, split=split, classes=root / "voc.names", strict=True)
        assert (report.images, report.boxes, report.clipped) == (images, boxes, 0)
        listed = root / f"coco/instances_{split}.json"
        theirs = json.loads(listed.read_text())["categories"]
        assert report.categories == [{"id": one["id"], "name": one["name"]} for one in theirs]
        assert objects_of(to / "annotations.json") == objects_of(listed)
        assert is_sound(to) == (images, boxes)
        difficult += report.difficult
    assert difficult == 38
    for version, file, masks in [("v1", "instances_default.json", 0), ("v2", "instances_v2.json", 273)]:
        path = root / f"other_formats/coco_{version}" / file
        report = coco.build(tmp_path / version, images=root / "JPEGImages", annotations=path)
        assert (report.images, report.boxes, report.masks) == (100, 273, masks)
    assert report.boxes_per_category["person"] == 91 and report.boxes_per_category["motorbike"] == 5


def test_detections_of_pascal_against_our_ground_truth(tmp_path):
    """The numbers that SOURCE.txt gives for these detections against coco_v1."""
    root = real_data.folder("voc100")
    path = root / "other_formats/coco_v1/instances_default.json"
    coco.build(tmp_path / "to", images=root / "JPEGImages", annotations=path)
    results = json.loads((root / "detections/coco/coco_dets.json").read_text())
    names = {image["id"]: image["file_name"] for image in results["images"]}
    ours = json.loads((tmp_path / "to/annotations.json").read_text())
    ids = {image["file_name"]: image["id"] for image in ours["images"]}
    number_of = {category["name"]: category["id"] for category in ours["categories"]}
    called = {category["id"]: category["name"] for category in results["categories"]}
    found = [
        {
            "image_id": ids[names[a["image_id"]]],
            "category_id": number_of[called[a["category_id"]]],
            "bbox": a["bbox"],
            "score": a["score"],
        }
        for a in results["annotations"]
    ]
    expected = [0.3470, 0.6100, 0.3537, 0.0752, 0.3395, 0.4979, 0.3735, 0.5206, 0.5226]
    assert [round(x, 4) for x in scores(tmp_path / "to/annotations.json", found)[:9]] == expected


def test_nuts_with_masks(tmp_path):
    root = real_data.folder("nuts_masks")
    totals = {}
    for split, path, images, boxes in [
        ("all", "data/trainval.json", 18, 165),
        ("train", "coco/instances_train.json", 14, 130),
        ("val", "coco/instances_val.json", 4, 35),
    ]:
        to = tmp_path / split
        report = coco.build(to, images=root / "data/images", annotations=root / path, strict=True)
        assert (report.images, report.boxes, report.masks) == (images, boxes, boxes)
        assert is_sound(to) == (images, boxes)
        totals[split] = report.boxes_per_category
    assert totals["all"] == {"date": 71, "fig": 41, "hazelnut": 53}
    for kind in ("bbox", "segm"):
        assert scores(tmp_path / "val/annotations.json", None, kind)[0] == pytest.approx(1)


def test_six_photos_of_coco(tmp_path):
    root = real_data.folder("coco_samples", "val2017_6_photos")
    [path] = (root / "coco").glob("*.json") if (root / "coco").is_dir() else root.glob("*.json")
    report = coco.build(tmp_path / "to", images=root / "images", annotations=path, strict=True)
    assert (report.images, report.boxes, report.crowds, report.masks) == (6, 36, 1, 36)
    assert is_sound(tmp_path / "to") == (6, 36)
    ours, theirs = COCO(tmp_path / "to/annotations.json"), COCO(path)
    for image in theirs.getImgIds():
        a, b = (sorted(int(t.annToMask(x).sum()) for x in t.imgToAnns[image]) for t in (ours, theirs))
        assert a == b


# --- annotations without images: blank ones of the same sizes stand in ----------------------------


def build_on_blanks(folder, annotations, **options):
    for image in json.loads(annotations.read_text())["images"]:
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (image["width"], image["height"])).save(path, "png")
    return coco.build(folder / "to", images=folder / "images", annotations=annotations, **options)


def test_coco_val2014_gives_the_published_numbers(tmp_path):
    """839 annotations, 9 of them crowds as uncompressed run lengths; 24 numbers of a text of the authors."""
    root = real_data.folder("coco_samples", "cocoapi_val2014_100")
    report = build_on_blanks(tmp_path, root / "instances_val2014_100.json", strict=True, with_masks=False)
    assert (report.images, report.boxes, report.crowds, report.masks) == (100, 839, 9, 839)
    assert len(report.categories) == 80 and sum(map(bool, report.boxes_per_category.values())) == 70
    said = re.findall(r"= *(-?[\d.]+)$", (root / "val2014_fake_eval_res.txt").read_text(), re.M)
    for kind, rows in [("segm", said[:12]), ("bbox", said[12:24])]:
        results = json.loads((root / f"instances_val2014_fake{kind}100_results.json").read_text())
        ids = {image["id"] for image in json.loads((tmp_path / "to/annotations.json").read_text())["images"]}
        results = [one for one in results if one["image_id"] in ids]
        got = scores(tmp_path / "to/annotations.json", results, kind)
        assert [f"{x:.3f}" for x in got] == [f"{float(x):.3f}" for x in rows]


def test_lvis(tmp_path):
    root = real_data.folder("lvis_samples")
    report = build_on_blanks(tmp_path, root / "lvis_val_100.json", strict=True, with_masks=False)
    assert (report.images, report.boxes, report.images_without_objects) == (100, 977, 7)
    assert len(report.categories) == 1230 and sum(map(bool, report.boxes_per_category.values())) == 190
    for kind in ("bbox", "segm"):
        assert scores(tmp_path / "to/annotations.json", None, kind)[0] == pytest.approx(1)


def test_objects365(tmp_path):
    root = real_data.folder("objects365_samples")
    report = build_on_blanks(tmp_path, root / "objects365_sample.json")
    assert (report.images, report.boxes, report.clipped) == (2, 6, 2)  # two reach out by under a pixel
    assert len(report.categories) == 365 and not report.dropped
    names = [category["name"] for category in report.categories]
    assert names == [name.strip() for name in names]


def test_edge_cases_of_objects365(tmp_path):
    path = real_data.folder("objects365_samples") / "edge_cases_unsorted.json"
    report = build_on_blanks(tmp_path, path)
    assert report.categories == [{"id": 1, "name": "bus"}, {"id": 2, "name": "car"}]
    assert (report.boxes_total, report.boxes, report.crowds) == (8, 6, 1)
    assert report.dropped == {"category_id is not among the categories": 1, "box without area": 1}
    assert open_index(tmp_path / "to").image_id.tolist() == [0, 1, 2, 3]


def test_edge_cases_of_coco(tmp_path):
    path = real_data.folder("coco_samples", "edge_cases") / "coco_sample_unsorted_categories.json"
    tree = json.loads(path.read_text())
    report = build_on_blanks(tmp_path, path, strict=True)
    assert (report.images, report.boxes) == (len(tree["images"]), len(tree["annotations"]))
    assert [category["name"] for category in report.categories] == ["bus", "car"]


@pytest.mark.parametrize(
    "parts",
    [
        ("coco_samples", "bbox_area_no_crowd", "sampled_bbox_results.json"),
        ("coco_samples", "cocoapi_val2014_100", "instances_val2014_fakebbox100_results.json"),
        ("voc100", "detections", "coco", "coco_dets.json"),
    ],
)
def test_detections_are_rejected_as_ground_truth(tmp_path, parts):
    with pytest.raises(coco.DataError, match="detections"):
        coco.build(tmp_path / "to", images=tmp_path, annotations=real_data.folder(*parts))
