"""Validation of COCO JSON: what is accepted as ground truth and detections, and one-line errors."""

import copy
import json

import pytest
from support import real_data

from kgarden.errors import UserError
from kgarden.metrics.coco_json import read_results, read_truth

TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cup"}, {"id": 5, "name": "lid"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0}],
}
ONE = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}


def test_a_list_of_results_is_returned_unchanged():
    assert read_truth(TRUTH) == (TRUTH, [])
    assert read_results([ONE], TRUTH) == ([ONE], [])
    masked = {**ONE, "segmentation": {"size": [5, 5], "counts": "i0"}}
    masked.pop("bbox")
    assert read_results([masked], TRUTH) == ([masked], [])


@pytest.mark.parametrize("content,words", [
    ([], "list of detections is empty"),
    ({"annotations": [], "images": []}, "list of detections is empty"),
    (TRUTH, "this is ground truth"),
    ({"metrics": {}}, "not detections"),
    (3, "not detections"),
    ([{"file": "c.jpg", "detections": []}], "c.jpg is not in the ground truth (a.jpg, b.jpg, …)"),
    ([ONE, {**ONE, "score": None}], "detection 1 has no score"),
    ([ONE, "x"], "detection 1 has no image_id"),
    ([{**ONE, "score": float("nan")}], "score nan"),
    ([{**ONE, "score": "0.5"}], "score '0.5'"),
    ([{**ONE, "score": True}], "score True"),
    ([{**ONE, "bbox": [0, 0, 5]}], "neither a bbox of four"),
    ([{**ONE, "bbox": [0, 0, 5, float("inf")]}], "neither a bbox of four"),
    ([{**ONE, "bbox": []}], "neither a bbox of four"),
    ([{**ONE, "bbox": [9, 9, -5, 5]}], "negative width or height"),
    ([{**ONE, "image_id": 1.5}], "image_id 1.5 is not"),
    ([{**ONE, "category_id": [1]}], "category_id [1] is not"),
    ([ONE, {**ONE, "image_id": 7}], "1 of 2 detections have image ids that are not in the ground truth"),
    ([{**ONE, "category_id": 0}], "increased by one"),
    ([{**ONE, "category_id": 4}], "category ids that are not in the ground truth (detections: 4; "),
])  # fmt: skip
def test_invalid_detections_are_rejected(content, words):
    with pytest.raises(UserError, match=".") as caught:
        read_results(content, TRUTH)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content,words", [
    ([ONE], "list"),
    ({"images": [], "annotations": []}, "no list of categories"),
    ({**TRUTH, "categories": [{"name": "cup"}]}, "an entry has no id"),
    ("text", "not ground truth"),
    ({**TRUTH, "annotations": [ONE]}, "detections, not ground truth"),
    ({**TRUTH, "categories": []}, "list of categories is empty"),
    ({**TRUTH, "images": [{"id": 1, "file_name": "a"}, {"id": "1", "file_name": "b"}]}, "ids must differ"),
    ({**TRUTH, "categories": [{"id": 1}, {"id": 1}]}, "id 1 is not unique"),
])  # fmt: skip
def test_invalid_ground_truth_is_rejected(content, words):
    with pytest.raises(UserError, match=words):
        read_truth(content)


def test_faulty_annotations_are_reported_and_left_out():
    (good,) = TRUTH["annotations"]
    bad = [
        {**good, "image_id": 9},
        {**good, "category_id": 2},
        {**good, "category_id": 3},
        {**good, "bbox": [0, 0, None, 5]},
        {"id": 4},
        "x",
    ]
    truth, notes = read_truth({**TRUTH, "annotations": [*bad, good]})
    assert truth["annotations"] == [good]
    assert [note.split(" (the first: ")[0] for note in notes] == [
        "2 annotations left out: image_id is not among the images",
        "2 annotations left out: category_id is not among the categories",
        "1 annotations left out: bbox is not four finite numbers",
        "1 annotations left out: annotation is not an object",
    ]


def test_invalid_masks_are_removed():
    """Such numbers would fill the memory or end the process; the boxes beside them are judged."""
    (good,) = TRUTH["annotations"]
    for mask in ([[0, 0, 5, 5]], [[1e300, 0, 5, 5, 0, 5]], [[]], [], "x", {"counts": "x", "size": [5, 1e9]}):
        truth, notes = read_truth({**TRUTH, "annotations": [{**good, "segmentation": mask}]})
        assert truth["annotations"] == [good]
        assert not notes if mask == [] or mask == [[]] else "kept without its mask" in notes[0]
        assert read_results([{**ONE, "segmentation": mask}], TRUTH) == ([ONE], [])


@pytest.mark.parametrize(
    "names", [("images\\a.jpg", "images\\b.jpg"), ("/data/local-files/?d=b.jpg", "A.JPG"), ("b.jpg", "a.jpg")]
)
def test_images_are_joined_by_names_as_other_systems_write_them(names):
    """Image 1 of the detections is named b in two of the sets: it is image 2 of the ground truth."""
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names, 1)],
        "annotations": [ONE],
    }
    results, _ = read_results(content, TRUTH)
    assert results[0]["image_id"] == (2 if "b.jpg" in names[0] else 1)


def test_names_that_would_be_one_image_are_left_apart():
    content = {
        "images": [{"id": 1, "file_name": "x/b.jpg"}, {"id": 2, "file_name": "y/b.jpg"}],
        "annotations": [ONE],
    }
    assert read_results(content, TRUTH) == ([ONE], [])


def test_detections_of_images_that_were_left_out_are_left_out():
    huge = {"id": 3, "file_name": "c.jpg", "height": 2_000_000, "width": 5}
    truth, (note,) = read_truth({**TRUTH, "images": [*TRUTH["images"], huge]})
    assert truth["images"] == TRUTH["images"] and truth["left_out"] == [3] and "c.jpg" in note
    results, notes = read_results([ONE, {**ONE, "image_id": 3}], truth)
    assert results == [ONE]
    assert notes == ["1 detections left out: the ground truth leaves their images out"]


def test_ids_of_images_are_text_if_one_is_a_word():
    """Numbers and words could not be sorted together."""
    images = [{"id": 2, "file_name": "a.jpg"}, {"id": "x", "file_name": "b.jpg"}]
    truth, _ = read_truth(
        {**TRUTH, "images": images, "annotations": [{**TRUTH["annotations"][0], "image_id": 2}]}
    )
    assert [one["id"] for one in truth["images"]] == ["2", "x"]
    assert truth["annotations"][0]["image_id"] == "2"
    results, _ = read_results([{**ONE, "image_id": 2}, {**ONE, "image_id": "x"}], truth)
    assert [one["image_id"] for one in results] == ["2", "x"]


def test_a_data_set_of_detections_is_joined_by_name():
    """The names agree, the numbers do not; a data set whose names say nothing goes by its numbers."""
    said = {
        "images": [{"id": 70, "file_name": "b.jpg"}, {"id": 71, "file_name": "a.jpg"}],
        "categories": [{"id": 0, "name": "cup"}, {"id": 1, "name": "lid"}],
        "annotations": [{**ONE, "image_id": 70, "category_id": 1}, {**ONE, "image_id": 71, "category_id": 0}],
    }
    before = copy.deepcopy(said)
    results, notes = read_results(said, TRUTH)
    assert [(one["image_id"], one["category_id"]) for one in results] == [(2, 5), (1, 1)]
    assert len(notes) == 2 and said == before
    same = {**TRUTH, "annotations": [ONE]}
    assert read_results(same, TRUTH) == ([ONE], [])
    assert read_results({"annotations": [ONE]}, TRUTH) == ([ONE], [])
    said["images"][0]["file_name"] = "c.jpg"
    with pytest.raises(UserError, match="1 images of the detections are not in the ground truth .*c.jpg"):
        read_results(said, TRUTH)


def test_every_real_ground_truth_is_accepted():
    seen = 0
    for path in sorted(real_data.folder().rglob("*.json")):
        content = json.loads(path.read_text())
        lists = {"images", "annotations", "categories"}
        if "_results" in path.stem or "dets" in path.stem:
            continue  # detections
        if isinstance(content, dict) and lists <= content.keys():
            truth, notes = read_truth(content)
            seen += 1
            if "edge_cases" not in str(path):
                assert len(truth["annotations"]) == len(content["annotations"]), (path, notes)
    assert seen >= 10
