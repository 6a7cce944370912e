"""Judging a data set as a whole: each finding where it belongs, and none on real data sets but true ones."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from support import real_data

pytest.importorskip("tensorflow")

from tfrecords.check import check  # noqa: E402
from tfrecords.converters import coco, csv_table  # noqa: E402
from tfrecords.data_statistics import (  # noqa: E402
    AS_CORNERS,
    WITHIN_HUNDRED,
    Statistics,
    facts_in,
    facts_of,
    from_json,
    signs_of,
)
from tfrecords.ground_truth import SWAPPED  # noqa: E402
from tfrecords.images import ORIENTATION  # noqa: E402
from tfrecords.plausibility import Limits, findings  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

HW = (60, 80)
BOXES = [[40, 30, 20, 20], [45, 10, 30, 40], [5, 40, 12, 12], [50, 35, 16, 20]]


def tree_of(boxes=BOXES, names=("cat", "dog"), **image):
    """Images of two boxes each, of the classes in turn."""
    annotations = [
        {"id": n + 1, "image_id": n // 2 + 1, "category_id": n % len(names) + 1, "bbox": box}
        for n, box in enumerate(boxes)
    ]
    images = [
        {"id": n + 1, "file_name": f"{n + 1}.jpg", "height": HW[0], "width": HW[1], **image}
        for n in range(-(-len(boxes) // 2))
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
    }


def sentences(tree, kind=None, limits=None):
    return [one.sentence for one in findings(facts_of(tree), limits) if kind in (None, one.kind)]


@pytest.fixture
def build(tmp_path):
    """Convert a tree -> the folder; the report is checked against what its manifest says."""

    def build(tree, name="to", **image_options):
        for image in tree["images"]:
            Image.new("RGB", HW[::-1]).save(tmp_path / image["file_name"], **image_options)
        (tmp_path / "a.json").write_text(json.dumps(tree))
        report = coco.build(tmp_path / name, images=tmp_path, annotations=tmp_path / "a.json", workers=0)
        assert findings(report.facts) == findings(facts_in(tmp_path / name))
        return tmp_path / name

    return build


def test_a_plausible_data_set_has_no_findings(build):
    assert sentences(tree_of()) == [] and findings(facts_in(build(tree_of()))) == []


def test_real_data_sets_have_true_findings_alone():
    """No mistake and no limit anywhere; classes that the samples lack are named."""
    seen = 0
    for path in sorted(real_data.folder().rglob("instances_*.json")):
        tree = json.loads(path.read_text())
        if isinstance(tree, list) or any("score" in one for one in tree["annotations"]):
            continue
        seen += 1
        used = {one["category_id"] for one in tree["annotations"]}
        unused = [one for one in tree["categories"] if one["id"] not in used]
        found = findings(facts_of(tree))
        assert {one.kind for one in found} <= {"remark"} and len(found) == bool(unused), (path, found)
    assert seen >= 10


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_boxes_in_fractions(build, fraction):
    size = np.array([80, 60, 80, 60])
    boxes = [(box / size).tolist() if n < fraction * 4 else box for n, box in enumerate(BOXES)]
    folder = build(tree_of(boxes))
    found = [one for one in findings(facts_in(folder)) if one.kind != "remark"]
    [mistake] = found  # that they are small as well is not said
    assert mistake.kind == "mistake"
    assert mistake.sentence.startswith(f"{int(4 * fraction)} of 4 boxes lie within 0..1, less than one px")
    one_only = tree_of([(BOXES[0] / size).tolist(), *BOXES[1:]])
    assert not sentences(one_only, "mistake")


def test_boxes_in_percent():
    """Ten boxes in images of 400 x 200 px; nine are too few, and one of eleven elsewhere is too many."""
    boxes = [[5 * n, 10 + n, 20, 30 + 5 * n] for n in range(10)]
    large = {"height": 200, "width": 400}
    [mistake] = sentences(tree_of(boxes, **large), "mistake")
    assert mistake.startswith("10 of 10 boxes lie within 0..100") and "percentages" in mistake
    assert not sentences(tree_of(boxes, **large), "limit")  # that they are small as well is not said
    assert not sentences(tree_of(boxes[:9], **large), "mistake")
    assert not sentences(tree_of([*boxes, [80, 10, 21, 30]], **large), "mistake")


@pytest.mark.parametrize(
    "box, height, percent",
    [
        ([70, 60, 30, 40], 200, True),
        ([70, 60, 30.5, 40], 200, False),
        ([70, 60, 30, 40.5], 200, False),
        ([-1, 60, 30, 40], 200, False),
        ([70, 60, 30, 40], 199, False),
        ([0.5, 0.5, 0.5, 0.5], 200, False),  # a fraction
    ],
)
def test_what_may_be_percentages(box, height, percent):
    assert (WITHIN_HUNDRED in signs_of([box], height, 400)) == percent


def test_corners_where_x_y_width_height_belong(build):
    boxes = [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    folder = build(tree_of(boxes))  # 40 + 60 > 80, 45 + 75 > 80, 40 + 52 > 60, 50 + 66 > 80
    [mistake] = findings(facts_in(folder))
    assert mistake.kind == "mistake"
    assert mistake.sentence.startswith("4 of 4 boxes reach out of their image, and 4 fit if read as corners")


@pytest.mark.parametrize(
    "box,fits",
    [
        ([10, 20, 81, 61], True),  # a px beyond the image: many tools count the last one in
        ([10, 20, 81.5, 61], False),
        ([10, 20, 81, 61.5], False),
        ([10, 20, 10, 61], False),
        ([10, 20, 81, 20], False),
        ([-1, 20, 81, 61], False),
        ([10, -1, 81, 61], False),
    ],
)
def test_what_fits_into_80_x_60_px_as_corners(box, fits):
    assert (AS_CORNERS in signs_of([box], *HW)) == fits


def test_boxes_that_fit_both_ways_are_no_corners():
    """Small ones at the top left do; a quarter of all must reach out of their image as xywh."""
    both, over = [5, 5, 20, 20], [45, 10, 75, 50]
    assert not sentences(tree_of([both] * 4), "mistake")
    assert not sentences(tree_of([both] * 4 + [over]), "mistake")
    [mistake] = sentences(tree_of([both] * 3 + [over]), "mistake")
    assert mistake.startswith("1 of 4 boxes reach out of their image, and 4 fit if read as corners")


def test_few_swapped_corners_are_no_mistake():
    """Three of eleven are more than a quarter, three of twelve are not; two of two are too few to judge."""
    for swapped, boxes, kind in ((3, 11, "mistake"), (3, 12, "remark"), (2, 2, "remark")):
        facts = facts_of(tree_of((BOXES * 3)[:boxes]))
        [finding] = findings(dataclasses.replace(facts, remarks={SWAPPED: swapped}))
        assert finding.kind == kind and finding.sentence.startswith(f"{swapped} ")


def test_boxes_of_larger_images_are_cut(build):
    folder = build(tree_of([[1.5 * side for side in box] for box in BOXES]))
    [mistake] = findings(facts_in(folder))
    assert mistake.kind == "mistake"
    # right and bottom: 90, 75; 112.5, 75; 25.5, 78; 99, 82.5 of 80, 60; the third lies outside and is dropped
    assert mistake.sentence.startswith("4 of 4 boxes reach out of their image and are cut")


def test_some_boxes_over_the_border_are_a_remark_and_rounding_is_none():
    out = tree_of([[70, 10, 12.5, 10], *BOXES])
    [remark] = sentences(out)
    assert remark.startswith("1 of 5 boxes reach out of their image by more than 2 px")
    assert sentences(tree_of([[70, 10, 11.9, 10], *BOXES])) == []
    assert sentences(tree_of([[70, 10, 12.5, 10], *(BOXES * 3)])) == []  # 1 of 13


def test_swapped_corners_are_repaired_and_counted(build, tmp_path):
    x, y, w, h = BOXES[0]
    folder = build(tree_of([[x + w, y + h, -w, -h], *BOXES[1:]]))
    [remark] = findings(facts_in(folder))
    assert remark.sentence == "1 boxes had swapped corners: put in order." and remark.kind == "remark"
    assert json.loads((folder / "annotations.json").read_text())["annotations"][0]["bbox"] == BOXES[0]

    with (tmp_path / "a.csv").open("w") as file:  # x, y, width, height under the names of corners
        lines = csv.writer(file)
        lines.writerow(["file", "class", "xmin", "ymin", "xmax", "ymax"])
        lines.writerows([f"{n // 2 + 1}.jpg", "cat", *box] for n, box in enumerate(BOXES))
    report = csv_table.build(tmp_path / "csv", images=tmp_path, annotations=tmp_path / "a.csv", workers=0)
    [mistake] = findings(report.facts)
    # 40 > 20, 45 > 30, 40 > 12, 50 > 16
    assert mistake.kind == "mistake" and mistake.sentence.startswith("4 of 4 boxes had swapped corners")
    assert report.boxes == 4 and report.remarks == {"its corners were swapped: put in order": 4}


def test_boxes_from_polygons_are_counted(build):
    tree = tree_of()
    for one in tree["annotations"][:3]:
        x, y, w, h = one.pop("bbox")
        one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    folder = build(tree)
    assert [one.sentence for one in findings(facts_in(folder))] == [
        "3 boxes were made from polygons or masks, because there was no bbox."
    ]
    assert [
        one["bbox"] for one in json.loads((folder / "annotations.json").read_text())["annotations"]
    ] == BOXES


def test_no_box_left_is_refused(build, tmp_path):
    with pytest.raises(DataError, match="none of 4 boxes is left, 3 because: box outside the image"):
        build(tree_of([[x + 100, y, w, h] for x, y, w, h in BOXES[:3]] + [[1, 1, 0, 5]]))
    assert not (tmp_path / "to").exists()
    assert [one.sentence for one in findings(facts_in(build({**tree_of(), "annotations": []})))] == [
        "None of the 2 images has an object."
    ]


def test_classes_without_objects_and_of_one_name():
    tree = tree_of(names=("cat", "dog"))
    tree["categories"].insert(0, {"id": 0, "name": "pets"})
    [dummy] = sentences(tree)
    assert dummy.startswith("No object of class pets (id 0): exports of Roboflow")
    tree["categories"][0]["id"] = 9
    assert sentences(tree) == ["No object of class pets (id 9)."]
    tree["categories"] += [{"id": 10 + n, "name": f"c{n}"} for n in range(5)]
    assert sentences(tree) == ["No object of 6 of 8 classes: pets, c0, c1, c2, c3 and 1 more."]
    assert sentences(tree_of(names=("cup", " Cup"))) == [
        "2 classes have the same name, cup (ids 1, 2): --rename 'cup=cup' joins them."
    ]


def test_the_fullest_image_against_each_limit():
    crowd = {"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    tree = tree_of([BOXES[0]] * 2)
    tree["annotations"] += [
        {"id": 10 + n, "image_id": 1, "category_id": 1, "bbox": BOXES[n % 4]} for n in range(3)
    ]
    tree["annotations"].append(crowd)  # 5 objects, 4 of one class, and a crowd
    none = Limits(5, 5, 4, 5)
    assert sentences(tree, limits=none) == []
    for field, name in [
        ("max_objects", "data.max_objects is 4"),
        ("detections", "model.selection.total is 4"),
        ("proposals", "the number of proposals is 4"),
    ]:
        [sentence] = sentences(tree, "limit", none._replace(**{field: 4}))
        assert sentence == f"The fullest image, 1.jpg, has 5 objects, 4 of one class; {name}: 5 would do."
    [sentence] = sentences(tree, "limit", none._replace(judged=3))
    assert "evaluate.max_detections is 3 for each class" in sentence
    assert sentences(tree, limits=Limits(None, None, 100, None)) == []


def test_more_objects_than_the_defaults_hold():
    assert sentences(tree_of([BOXES[0]] * 100)) == []
    full = tree_of([BOXES[0]] * 202)
    for one in full["annotations"]:
        one["image_id"] = 1 if one["id"] <= 101 else 2
    [sentence] = sentences(full, "limit")
    assert "by default, data.max_objects is 100, model.selection.total is 100: 101 would do" in sentence


def test_sizes_are_compared_after_resizing():
    tree = tree_of([[10, 10, 8, 18]] * 3 + [[0, 0, 60, 60]])  # side 12 of a short side of 60
    assert sentences(tree) == []
    assert sentences(tree, limits=Limits(short_side_px=60, long_side_px=80)) == []
    [sentence] = sentences(tree, "limit", Limits(short_side_px=30, long_side_px=40))  # 6 px
    assert "smaller than about 6 x 6 px after resizing to a short side of 30 px" in sentence
    [sentence] = sentences(tree, "limit", Limits(short_side_px=60, long_side_px=40))  # the long side limits
    assert "smaller than about 6 x 6 px" in sentence
    [sentence] = sentences(tree, "limit", Limits(short_side_px=60, long_side_px=80, stride=16))
    assert "a cell of the finest level has 16 px" in sentence


@pytest.mark.parametrize("side,width", [(3, 40), (12, 40), (12, 60), (100, 1000)])
def test_the_median_is_right_to_a_quarter_of_an_octave(side, width):
    statistics = Statistics()
    image = {"height": 40, "width": width, "file_name": "a"}
    boxes = [{"bbox": [0, 0, side, side], "category_id": 1}] * 3 + [{"bbox": [0, 0, 1, 1], "category_id": 1}]
    statistics.add(image, boxes, {})
    assert statistics.median_side() == pytest.approx(side, rel=0.1)
    scale = min(400 / 40, 600 / width)
    assert statistics.median_side(400, 600) == pytest.approx(side * scale, rel=0.2)


def test_statistics_survive_json():
    facts = facts_of(tree_of())
    stored = json.loads(json.dumps(facts.statistics.to_json()))
    assert from_json(stored) == facts.statistics
    assert facts.statistics.objects_of_class == {1: 2, 2: 2} and facts.statistics.objects_per_image == {2: 2}
    assert facts.statistics.objects == 4 and Statistics().objects == Statistics().most == 0
    assert facts.statistics.median_side() is not None and Statistics().median_side() is None


def test_an_orientation_that_the_annotated_size_contradicts(build):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    [remark] = findings(facts_in(build(tree_of(), exif=exif)))
    assert remark.sentence.startswith("2 images have an EXIF orientation")
    upright = tree_of([[y, x, h, w] for x, y, w, h in BOXES], height=80, width=60)
    assert findings(facts_in(build(upright, "upright", exif=exif))) == []


def test_check_judges_the_data_set_of_the_manifest_and_of_bare_shards(build):
    boxes = [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    folder = build(tree_of(boxes))
    report = check(folder)
    [(path, facts)] = report.facts.items()
    assert path == folder and findings(facts)[0].kind == "mistake" and not report.faults
    assert report.plain()["findings"][str(folder)][0]["kind"] == "mistake"
    for name in ("manifest.json", "annotations.json", "index.json"):
        (folder / name).unlink()
    [facts] = check(folder).facts.values()  # the records are clipped
    assert facts.statistics.boxes == facts.statistics.objects == 4 and not findings(facts)


def test_a_manifest_of_an_older_version_is_judged_by_its_annotations(build):
    folder = build(tree_of(names=("cup", "cup")))
    expected = findings(facts_in(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["statistics"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert findings(facts_in(folder)) == expected and len(expected) == 1
    (folder / "manifest.json").write_text(json.dumps({**manifest, "statistics": {"images": 3}}))
    with pytest.raises(DataError, match="damaged"):
        facts_in(folder)


def test_facts_of_truth_without_sizes_are_judged_by_the_boxes_alone():
    tree = tree_of([[0.1, 0.1, 0.5, 0.5]] * 4)
    for image in tree["images"]:
        del image["height"], image["width"], image["file_name"]
    [mistake] = sentences(tree, "mistake")
    assert mistake.startswith("4 of 4 boxes lie within 0..1")
    assert facts_of(tree).statistics.fullest == "image 1"
