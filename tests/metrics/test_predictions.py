"""What `kgarden predict` writes, read as detections: images by name, classes by id and name."""

import copy

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from kgarden.errors import UserError
from kgarden.metrics.coco_json import read_results, read_truth
from kgarden.metrics.report import score

TRUTH = {
    "images": [
        {"id": 11, "file_name": "val/a.jpg", "width": 90, "height": 60},
        {"id": 12, "file_name": "val/b.jpg", "width": 90, "height": 60},
        {"id": 13, "file_name": "other/b.jpg", "width": 90, "height": 60},
    ],
    "categories": [{"id": 4, "name": "cup"}, {"id": 9, "name": "lid"}],
    "annotations": [
        {"id": 1, "image_id": 11, "category_id": 9, "bbox": [10, 20, 30, 30]},
        {"id": 2, "image_id": 12, "category_id": 4, "bbox": [0, 0, 20, 10]},
        {"id": 3, "image_id": 13, "category_id": 4, "bbox": [5, 5, 20, 10]},
    ],
}
LID = {"box": [10.0, 20.0, 40.0, 50.0], "score": 0.9, "category_id": 9, "name": "lid"}
CUP = {"box": [0.0, 0.0, 20.0, 10.0], "score": 0.8, "category_id": 4, "name": "cup"}


def entry(file, *detections):
    return {"file": file, "height": 60, "width": 90, "drawn": "x.jpg", "detections": list(detections)}


def read(*entries):
    truth, _ = read_truth(copy.deepcopy(TRUTH))
    return read_results([*entries], truth)


@pytest.mark.parametrize("a,b", [
    ("val/a.jpg", "val/b.jpg"),
    ("/home/me/photos/val/a.jpg", "/home/me/photos/val/b.jpg"),
    ("../val/a.jpg", "./val/b.jpg"),
    ("C:\\photos\\val\\A.JPG", "val\\b.jpg"),
])  # fmt: skip
def test_images_are_matched_by_name_and_boxes_are_corners(a, b):
    other = {**CUP, "box": [5, 5, 25, 15]}
    results, notes = read(entry(a, LID), entry(b, CUP), entry("other/b.jpg", other))
    assert [(one["image_id"], one["category_id"]) for one in results] == [(11, 9), (12, 4), (13, 4)]
    assert results[0]["bbox"] == [10, 20, 30, 30] and results[0]["score"] == 0.9 and not notes
    evaluation, _ = score(TRUTH, results)
    assert evaluation["metrics"]["ap"] == 100.0


def test_classes_with_other_ids_are_joined_by_name():
    lid, cup = {**LID, "category_id": 2}, {**CUP, "category_id": 1}
    results, notes = read(entry("a.jpg", lid), entry("val/b.jpg", cup), entry("other/b.jpg"))
    assert [one["category_id"] for one in results] == [9, 4] and "joined by name" in notes[0]
    swapped = {**LID, "category_id": 4}  # the id of another class
    results, _ = read(entry("a.jpg", swapped), entry("val/b.jpg"), entry("other/b.jpg"))
    assert results[0]["category_id"] == 9
    with pytest.raises(UserError, match="1 of 2 detections have category ids .*detections: 7"):
        read(entry("a.jpg", {**LID, "name": "pot", "category_id": 7}, CUP))


def test_images_that_were_not_predicted_are_noted():
    results, (note,) = read(entry("a.jpg", LID))
    assert len(results) == 1 and note.startswith("2 of 3 images of the ground truth were not predicted")
    assert "val/b.jpg" in note
    results, (note,) = read(entry("a.jpg"))
    assert results == [] and "not predicted" in note


def test_masks_are_kept():
    code = mask_tools.encode(np.asfortranarray(np.ones((60, 90), "uint8")))
    code["counts"] = code["counts"].decode()
    (one,), _ = read(entry("a.jpg", {**LID, "segmentation": code}))
    assert mask_tools.area(one["segmentation"]) == 60 * 90


@pytest.mark.parametrize("entries,words", [
    ([entry("c.jpg", CUP)], "c.jpg is not in the ground truth (val/a.jpg, val/b.jpg, other/b.jpg, …)"),
    ([entry("b.jpg", CUP)], "b.jpg: ambiguous: 2 files"),
    ([entry("x/a.jpg", LID), entry("y/a.jpg", LID)], "x/a.jpg and y/a.jpg are both val/a.jpg"),
    ([entry("a.jpg", {"score": 1})], "a detection of a.jpg has no box of four numbers"),
    ([entry("a.jpg", {**LID, "box": [1, 2, 3]})], "a detection of a.jpg has no box of four numbers"),
    ([entry("a.jpg", {**LID, "box": [9, 9, 5, 5]})], "detection 0 has a negative width or height"),
    ([entry("a.jpg", LID, {**LID, "score": None})], "detection 1 has no score"),
    ([entry("a.jpg", {**LID, "category_id": [9]})], "category_id [9] is not an integer or string"),
    ([{"file": ["a.jpg"], "detections": []}], "detection 0 has no image_id"),
    ([{"file": "a.jpg", "detections": None}], "detection 0 has no image_id"),
])  # fmt: skip
def test_what_cannot_be_matched_is_one_line(entries, words):
    with pytest.raises(UserError) as caught:
        read(*entries)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_ground_truth_without_names_is_refused():
    truth = {**TRUTH, "images": [{"id": 11}, {"id": 12}, {"id": 13}]}
    with pytest.raises(UserError, match="have no file_name, by which predictions are matched"):
        read_results([entry("a.jpg", LID)], truth)
