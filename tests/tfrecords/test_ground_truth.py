"""Reading of COCO ground truth: conversion and scoring keep the same objects, whatever the file's habits."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip("tensorflow")

from kgarden.metrics.coco_json import read_results, read_truth  # noqa: E402
from tfrecords import ground_truth  # noqa: E402
from tfrecords.converters import coco  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402
from tfrecords.segmentations import box_of  # noqa: E402

PLAIN = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 90.5, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [4, 3, 16, 22], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}
FIRST = PLAIN["annotations"][0]
POLYGON = [[1, 2, 11, 2, 11, 22, 1, 22]]


def changed(part, number=0, **values):
    tree = copy.deepcopy(PLAIN)
    tree[part][number].update(values)
    return tree


def without(tree, *keys):
    for one in (*tree["images"], *tree["annotations"]):
        for key in keys:
            one.pop(key, None)
    return tree


def as_text(value):
    if isinstance(value, dict):
        return {key: one if key in ("file_name", "name") else as_text(one) for key, one in value.items()}
    return [as_text(one) for one in value] if isinstance(value, list) else str(value)


def as_floats(value):
    if isinstance(value, dict):
        return {key: as_floats(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_floats(one) for one in value]
    return float(value) if isinstance(value, int) else value


def mask_of(bbox):
    x, y, w, h = bbox
    mask = np.zeros((30, 40), "uint8")
    mask[y : y + h, x : x + w] = 1
    return coco_mask.encode(np.asfortranarray(mask))


def packed(bbox):
    return {"size": [30, 40], "counts": mask_of(bbox)["counts"].decode()}


# What each file says is PLAIN, said in another way.
SAME = {
    "numbers as text": as_text(PLAIN),
    "whole numbers as floats": as_floats(PLAIN),
    "no sizes": without(copy.deepcopy(PLAIN), "width", "height"),
    "sizes of zero": changed("images", width=0, height=0),
    "no ids of annotations": {**PLAIN, "annotations": [{**a, "id": None} for a in PLAIN["annotations"]]},
    "an annotation twice": {**PLAIN, "annotations": [*PLAIN["annotations"], dict(FIRST)]},
    "an image twice": {**PLAIN, "images": [*PLAIN["images"], dict(PLAIN["images"][0])]},
    "an image under two ids": {**PLAIN, "images": [*PLAIN["images"], {**PLAIN["images"][0], "id": 9}]},
    "score 1": changed("annotations", score=1.0),
    "score null": changed("annotations", score=None),
    "flag as bool": changed("annotations", 1, iscrowd=True),
    "box of zeros, and polygons": changed("annotations", bbox=[0, 0, 0, 0], segmentation=POLYGON),
    "no box, but polygons": changed("annotations", bbox=None, segmentation=POLYGON),
    "no box, but polygons of text": changed("annotations", bbox=[], segmentation=as_text(POLYGON)),
    "no box, but a mask": changed("annotations", bbox=None, segmentation=packed([1, 2, 10, 20])),
    "corners swapped": changed("annotations", bbox=[11, 22, -10, -20]),
    "an object of an unknown image": {
        **PLAIN,
        "annotations": [*PLAIN["annotations"], {**FIRST, "id": 3, "image_id": 8}],
    },
}


def objects(truth):
    keys = ("image_id", "category_id", "bbox", "iscrowd", "area")
    return [tuple(one.get(key) for key in keys) for one in truth["annotations"]]


@pytest.mark.parametrize("name", SAME)
def test_conversion_and_scoring_read_the_same_objects(tmp_path, name):
    for number in (1, 2):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(SAME[name]))
    report = coco.build(tmp_path / "to", images=tmp_path, annotations=file)
    converted = json.loads((tmp_path / "to/annotations.json").read_text())
    scored, notes = read_truth(SAME[name])
    expected = [(1, 3, [1, 2, 10, 20], 0, 90.5), (2, 7, [4, 3, 16, 22], 1, None)]
    assert objects(scored) == expected
    assert [one[:4] for one in objects(converted)] == [one[:4] for one in expected]
    assert converted["annotations"][0]["area"] == 90.5 and converted["categories"] == PLAIN["categories"]
    assert [one["id"] for one in scored["images"]] == [one["id"] for one in converted["images"]] == [1, 2]
    # both say as much: a line of notes for each reason of the report
    reasons = {fault.reason for fault in report.faults}
    assert len(notes) == len(reasons) and all(any(reason in note for note in notes) for reason in reasons)


@pytest.mark.parametrize(
    "tree,reason",
    [
        (changed("annotations", bbox=None), "bbox is not four finite numbers"),
        (changed("annotations", bbox=[1, 2, 3], segmentation=POLYGON), "bbox is not four finite numbers"),
        (changed("annotations", bbox=None, segmentation=[[1, 1, 5, 5]]), "it has no bbox, and a polygon of"),
        (changed("annotations", bbox=[1, 1, 1e6, 5]), "bbox is larger than any image"),
        (changed("images", width=10**6), "its image is left out"),
    ],
)
def test_an_annotation_without_a_box_is_left_out_with_the_reason(tree, reason):
    [fault] = ground_truth.read(tree).faults.boxes
    assert reason in fault.reason and fault.where == "annotation 1"
    truth, notes = read_truth(tree)
    assert len(truth["annotations"]) == 1 and any(reason in note for note in notes)


def test_areas_that_are_none_are_absent():
    for area in (0, -1, "x", None, 1e12, float("nan"), [5]):
        [(_, first), _] = ground_truth.read(changed("annotations", area=area)).annotations
        assert "area" not in first, area


def test_ids_of_words_and_numbers_can_be_sorted_and_joined():
    tree = changed("images", 1, id="b")
    tree["annotations"][1]["image_id"] = "b"
    truth, _ = read_truth(tree)
    assert [one["id"] for one in truth["images"]] == ["1", "b"]
    found = [
        {"image_id": n, "category_id": "3", "bbox": [0, 0, 5, 5], "score": 0.5} for n in (1, "1", "b", 1.0)
    ]
    results, _ = read_results(found, truth)
    assert [(one["image_id"], one["category_id"]) for one in results] == [
        ("1", 3),
        ("1", 3),
        ("b", 3),
        ("1", 3),
    ]


def test_underscores_make_a_name_not_a_number():
    """2_1 and 21 are two images, although Python reads the same number in both."""
    tree = as_text(PLAIN)
    for one, key in zip((*tree["images"], *tree["annotations"]), ("2_1", "21") * 2, strict=True):
        one["id" if "file_name" in one else "image_id"] = key
    read = ground_truth.read(tree)
    assert list(read.images) == ["2_1", 21] and not read.faults.images
    assert [annotation["image_id"] for _, annotation in read.annotations] == ["2_1", 21]
    [fault] = ground_truth.read(changed("annotations", bbox=["1_0", 2, 10, 20])).faults.boxes
    assert fault.reason == "bbox is not four finite numbers"


def test_detections_of_images_that_are_left_out_do_not_count():
    truth, _ = read_truth(SAME["an image under two ids"])
    found = [{"image_id": n, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5} for n in (1, 9)]
    results, notes = read_results(found, truth)
    assert [one["image_id"] for one in results] == [1] and notes[0].startswith("1 detections left out")


def test_an_image_listed_three_times_under_two_ids():
    image = PLAIN["images"][0]
    tree = {**PLAIN, "images": [*PLAIN["images"], {**image, "id": 9}, {**image, "id": 9}]}
    read = ground_truth.read(tree)
    assert list(read.images) == [1, 2, 9] and read.images[9] is None
    assert [fault.reason for fault in read.faults.images] == ["the image is listed twice"] * 2


def test_two_images_without_file_names_are_two():
    tree = copy.deepcopy(PLAIN)
    for image in tree["images"]:
        del image["file_name"]
    assert not ground_truth.read(tree).faults.images


def test_a_category_without_a_name_is_called_by_its_id():
    read = ground_truth.read(changed("categories", name=None))
    assert read.categories[3]["name"] == "3" and len(read.faults.remarks) == 1


def test_detections_are_no_ground_truth():
    for score in (0, 0.5, "0.9", True):
        with pytest.raises(DataError, match="detections, not ground truth"):
            ground_truth.read(changed("annotations", score=score))


@pytest.mark.parametrize("seed", range(8))
def test_boxes_of_masks_equal_those_of_pycocotools(seed):
    mask = (np.random.default_rng(seed).random((7, 5)) < 0.1 * (seed % 4 + 1)).astype("uint8")
    mask[2:, 3] |= seed % 2  # runs that go on in the next column
    mask[0, 4] |= seed % 2
    mask[3, 1] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    y, x = np.nonzero(mask)
    expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    assert box_of({"size": [7, 5], "counts": code["counts"].decode()}) == expected
    assert coco_mask.toBbox(code).tolist() == expected


def test_categories_of_words_get_the_same_numbers_in_both():
    tree = changed("categories", id="z")
    tree["annotations"][0]["category_id"] = "z"
    truth, _ = read_truth(tree)
    numbers, _ = ground_truth.read(tree).numbered_categories()
    assert [(one["id"], one["name"], one["source_id"]) for one in numbers] == [
        (1, "dog", "7"),
        (2, "cat", "z"),
    ]
    assert [(one["id"], one["name"]) for one in truth["categories"]] == [(2, "cat"), (1, "dog")]
    assert [one["category_id"] for one in truth["annotations"]] == [2, 1]
    found = [{"image_id": 1, "category_id": key, "bbox": [0, 0, 5, 5], "score": 0.5} for key in ("z", 7)]
    results, _ = read_results(found, truth)
    assert [one["category_id"] for one in results] == [2, 1]


def test_masks_of_detections_reach_pycocotools_as_numbers():
    found = {"image_id": 1, "category_id": 3, "score": 0.5}
    masks = {"size": ["30", 40.0], "counts": [600.0, "600"]}, [["1", 1, 9, 1, 9, "9.5"]]
    results, _ = read_results([{**found, "segmentation": mask} for mask in masks], read_truth(PLAIN)[0])
    assert [one["segmentation"] for one in results] == [
        {"size": [30, 40], "counts": [600, 600]},
        [[1, 1, 9, 1, 9, 9.5]],
    ]
    assert all(type(run) is int for run in results[0]["segmentation"]["counts"])
