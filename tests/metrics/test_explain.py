"""Diagnosis of near-zero AP: a case for every cause, and cases without a cause."""

import copy

import numpy as np
import pytest

from kgarden.metrics.coco import coco_metrics
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.explain import explain, explain_table, needs_explaining, unknown_classes, unknown_images
from kgarden.metrics.registry import measure
from tfrecords.data_statistics import facts_of

NAMES = ["cup", "lid", "pot", "pan", "jar"]
IDS = [1, 2, 3, 5, 6]


@pytest.fixture
def truth():
    """Forty images of many sizes, 1 to 4 objects each."""
    random = np.random.default_rng(3)
    images, annotations = [], []
    for n in range(40):
        width, height = (int(side) for side in random.integers(300, 700, 2))
        name = f"kitchen_{n:03d}.jpg"
        images.append({"id": 10 + n, "width": width, "height": height, "file_name": name})
        for _ in range(random.integers(1, 5)):
            w, h = random.uniform(0.1, 0.4, 2) * (width, height)
            x, y = random.uniform(0, 1, 2) * (width - w, height - h)
            box = [float(one) for one in (x, y, w, h)]
            category = IDS[random.integers(5)]
            annotations.append({"image_id": 10 + n, "category_id": category, "bbox": box, "iscrowd": 0})
    categories = [{"id": one, "name": name} for one, name in zip(IDS, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def good(truth):
    """Detections that are nearly right, to which single faults are added."""
    random = np.random.default_rng(4)
    results = []
    for one in truth["annotations"]:
        box = (np.array(one["bbox"]) + random.normal(0, 2, 4)).tolist()
        keys = {key: one[key] for key in ("image_id", "category_id")}
        results.append({**keys, "bbox": box, "score": float(random.uniform(0.3, 1))})
    return results


def changed(results, change):
    results = copy.deepcopy(results)
    for one in results:
        one.update(change(one))
    return results


def size_of(truth, one):
    image = next(image for image in truth["images"] if image["id"] == one["image_id"])
    return image["width"], image["height"]


def the_cause(truth, results, **more):
    sentences = explain(truth, results, **more)
    assert all(s[0].isupper() or s[0].isdigit() for s in sentences) and all(
        s.endswith(".") for s in sentences
    )
    return sentences[0]


def test_near_zero_headlines_need_explaining(truth, good):
    judged = measure(["coco"], truth, good)
    assert judged["metrics"]["ap"] > 50 and not needs_explaining(judged)
    for value, wanted in [(None, True), (0.0, True), (0.99, True), (1.0, False)]:
        assert needs_explaining({"headline": "ap", "metrics": {"ap": value}}) == wanted


def test_no_detections(truth):
    assert "There are no detections" in the_cause(truth, [])


def test_objects_of_unlisted_classes_are_not_measured(truth, good):
    """AP is undefined without detections playing a part: the classes are the cause."""
    for one in truth["annotations"]:
        one["category_id"] += 50
    assert coco_metrics(truth, good)["metrics"]["ap"] is None
    for results in (good, []):
        cause = the_cause(truth, results)
        assert "is of a class that the ground truth lists" in cause and "51, 52, 53" in cause
    truth["annotations"][0] |= {"category_id": 1, "iscrowd": 1}
    assert "All 1 objects are crowd regions" in the_cause(truth, good)


def test_low_scores(truth, good):
    *_, last = explain(truth, changed(good, lambda one: {"score": one["score"] / 100}))
    assert "All scores are below 0.05" in last
    assert not any("scores are below" in one for one in explain(truth, good))


@pytest.mark.parametrize("change,words", [
    (str, "converted to integers, all would be"),
    (lambda n: f"kitchen_{n - 10:03d}.jpg", "read as file names, all would be"),
    (lambda n: f"kitchen_{n - 10:03d}", "read as file names without suffix, all would be"),
    (lambda n: n - 1, "increased by one, all would be"),
    (lambda n: n + 1, "decreased by one, all would be"),
    (lambda n: n - 10, "read as positions in the list of ids, from 0, all would be"),
    (lambda n: n + 5000, "(detections: 5010, 5011, 5012, …; ground truth: 10, 11, 12, …)."),
])  # fmt: skip
def test_unknown_image_ids(truth, good, change, words):
    results = changed(good, lambda one: {"image_id": change(one["image_id"])})
    cause = the_cause(truth, results)
    assert words in cause and "image ids" in cause
    if "would be" not in words:
        assert f"{len(good)} of {len(good)} detections" in cause
    assert unknown_images(truth, [one["image_id"] for one in good]) is None


def test_text_ids_in_the_ground_truth(truth, good):
    for part, key in (("images", "id"), ("annotations", "image_id")):
        for one in truth[part]:
            one[key] = str(one[key])
    assert "converted to strings, all would be" in the_cause(truth, good)


@pytest.mark.parametrize("change,words", [
    (lambda n: NAMES[IDS.index(n)], "read as class names, all would be"),
    (lambda n: IDS.index(n), "read as positions in the list of ids, from 0, all would be"),
    (lambda n: n + 50, "(detections: 51, 52, 53, …; ground truth: 1, 2, 3, …)."),
])  # fmt: skip
def test_unknown_category_ids(truth, good, change, words):
    results = changed(good, lambda one: {"category_id": change(one["category_id"])})
    cause = the_cause(truth, results)
    assert words in cause and "category ids" in cause
    assert unknown_classes(truth, [one["category_id"] for one in good]) is None


def test_shifted_category_ids(truth, good):
    """Every id is known and wrong; only the boxes reveal it."""
    for category, one in zip(truth["categories"], range(1, 6), strict=True):
        category["id"] = one
    for one in truth["annotations"]:
        one["category_id"] = IDS.index(one["category_id"]) % 4 + 1  # 1..4: a shift stays within 1..5
    right = changed(good, lambda one: {"category_id": IDS.index(one["category_id"]) % 4 + 1})
    higher = changed(right, lambda one: {"category_id": one["category_id"] + 1})
    assert coco_metrics(truth, higher)["metrics"]["ap"] < 1
    assert "with category ids decreased by one" in the_cause(truth, higher)
    lower = [one for one in right if one["category_id"] > 1]
    lower = changed(lower, lambda one: {"category_id": one["category_id"] - 1})
    assert "with category ids increased by one" in the_cause(truth, lower)
    truth["categories"][:0] = [{"id": 0, "name": "other"}]
    mixed = changed(right, lambda one: {"category_id": (one["category_id"] * 2) % 5})
    cause = the_cause(truth, mixed)
    assert "classes do not" in cause and "is predicted as" in cause and "decreased by one" not in cause


def test_all_detections_of_one_class(truth, good):
    cause = the_cause(
        truth, changed([o for o in good if o["category_id"] != 6], lambda one: {"category_id": 6})
    )
    assert "The boxes match, the classes do not" in cause and "is predicted as jar" in cause


def as_format(truth, one, form, share=False):
    x, y, w, h = one["bbox"]
    box = {
        "xyxy": [x, y, x + w, y + h],
        "yxyx": [y, x, y + h, x + w],
        "xywh": [x, y, w, h],
        "yxhw": [y, x, h, w],
        "cxcywh": [x + w / 2, y + h / 2, w, h],
    }[form]
    width, height = size_of(truth, one)
    sides = [height, width] * 2 if form.startswith("y") else [width, height] * 2
    return {"bbox": [n / side for n, side in zip(box, sides, strict=True)] if share else box}


@pytest.mark.parametrize("form,share,words", [
    ("xyxy", False, "read as x0, y0, x1, y1 in px"),
    ("yxyx", False, "read as y0, x0, y1, x1 in px"),
    ("yxhw", False, "read as y, x, height, width in px"),
    ("cxcywh", False, "read as centre x, centre y, width, height in px"),
    ("xyxy", True, "read as x0, y0, x1, y1 in fractions of the image"),
    ("yxyx", True, "read as y0, x0, y1, x1 in fractions of the image"),
    ("xywh", True, "read as x, y, width, height in fractions of the image"),
    ("cxcywh", True, "read as centre x, centre y, width, height in fractions of the image"),
])  # fmt: skip
def test_boxes_of_another_format(truth, good, form, share, words):
    results = changed(good, lambda one: as_format(truth, one, form, share))
    cause = the_cause(truth, results)
    assert words in cause, cause
    assert "The boxes do not match" in cause


def scaled(one, sx, sy):
    x, y, w, h = one["bbox"]
    return {"bbox": [x * sx, y * sy, w * sx, h * sy]}


@pytest.mark.parametrize("scale,words", [
    (lambda w, h: (320 / w, 320 / h), "images resized to 320 x 320"),
    (lambda w, h: (800 / min(w, h),) * 2, "images with a short side of 800"),
    (lambda w, h: (1333 / max(w, h),) * 2, "images with a long side of 13"),
    (lambda w, h: (0.5, 0.5), "images 0.5 times as large"),
])  # fmt: skip
def test_boxes_in_px_of_another_size(truth, good, scale, words):
    results = changed(good, lambda one: scaled(one, *scale(*size_of(truth, one))))
    assert f"read as px of {words}" in the_cause(truth, results)


def test_boxes_of_the_next_image(truth, good):
    wrong = changed(good, lambda one: {"image_id": one["image_id"] + 1 if one["image_id"] < 49 else 10})
    assert "assigned to the previous image" in the_cause(truth, wrong)


def test_boxes_outside_their_images(truth, good):
    wrong = changed(good, lambda one: {"bbox": [one["bbox"][0] - 4000, *one["bbox"][1:]]})
    assert "100 % of the boxes lie outside their images" in the_cause(truth, wrong)


def test_ground_truth_without_objects(truth, good):
    nothing = {**truth, "annotations": []}
    assert "contains no objects" in the_cause(nothing, good)
    crowds = {**truth, "annotations": [{**one, "iscrowd": 1} for one in truth["annotations"]]}
    assert "are crowd regions" in the_cause(crowds, good)
    difficult = {**truth, "annotations": [{**one, "difficult": 1} for one in truth["annotations"]]}
    assert "marked difficult" in the_cause(difficult, good, headline="voc07_map")
    assert "difficult" not in the_cause(difficult, good)
    assert "None of the 2 evaluated images" in the_cause(truth, good, image_ids=[900, 901])
    empty = {**truth, "annotations": [one for one in truth["annotations"] if one["image_id"] != 10]}
    assert "no objects in the 1 evaluated images" in the_cause(empty, good, image_ids=[10])
    others = [one for one in good if one["image_id"] > 20]
    assert "in an evaluated image" in the_cause(truth, others, image_ids=[10, 11])


def test_boxes_of_low_iou(truth, good):
    """Half of the width: IoU about 0.45 with the object, never 0.5."""

    def narrower(one):
        x, y, w, h = one["bbox"]
        return {"bbox": [x, y, 0.42 * w, h]}

    cause = the_cause(truth, changed(good, narrower))
    assert "best box of an object has IoU 0.4" in cause and "needs more training" in cause


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_have_no_cause(truth, good, seed):
    """A hundred random boxes in every image, as of an untrained network: no cause is named."""
    random = np.random.default_rng(seed)
    results = []
    for image in truth["images"]:
        corner = random.uniform(0, 0.8, (100, 2))
        boxes = np.concatenate([corner, random.uniform(0.02, 1 - corner)], axis=1)
        boxes *= [image["width"], image["height"]] * 2
        for box in boxes.tolist():
            label, score = int(random.choice(IDS)), float(random.uniform(0.05, 0.1))
            results.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": score})
    assert coco_metrics(truth, results)["metrics"]["ap"] < 3
    cause = the_cause(truth, results)
    assert "needs more training" in cause or "Nothing matches" in cause, cause


def test_boxes_of_other_images_match_nothing(truth, good):
    for image in truth["images"]:
        image.pop("width"), image.pop("height")  # without sizes, fewer interpretations are tested
    tiny = changed(good, lambda one: {"bbox": [3.0, 3.0, 2.0, 2.0]})
    assert "Nothing matches" in the_cause(truth, tiny)


def test_correct_boxes_with_lower_scores_than_wrong_ones(truth, good):
    assert "wrong boxes have higher scores" in the_cause(truth, good)


def test_mistakes_of_the_ground_truth_come_first(truth, good):
    sizes = {one["id"]: (one["width"], one["height"]) for one in truth["images"]}
    for one in truth["annotations"]:
        one["bbox"] = (np.array(one["bbox"]) / np.tile(sizes[one["image_id"]], 2)).tolist()
    [only] = explain(truth, good)
    assert "lie within 0..1, less than one px" in only
    first, second = explain(truth, [])
    assert "lie within 0..1" in first and "There are no detections" in second


def test_facts_from_before_clipping_are_used_where_they_are_known(truth, good):
    raw = copy.deepcopy(truth)
    for one in raw["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
    assert "fit if read as corners" in explain_table(EvaluationTable(truth, [], facts=facts_of(raw)))[0]
    assert len(explain_table(EvaluationTable(truth, []))) == 1
