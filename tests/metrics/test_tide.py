"""TIDE errors: every error type by hand, invariants, and the matching of pycocotools."""

import contextlib
import io
import json
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import real_data
from support.metric_tables import table

from kgarden.metrics import curves
from kgarden.metrics.analysis import analyse
from kgarden.metrics.arrays import pairs, tabulate
from kgarden.metrics.coco import coco_metrics
from kgarden.metrics.evaluation_table import complete
from kgarden.metrics.matching import ranks
from kgarden.metrics.tide import KINDS, ap_gains, classify_errors, confusion_counts, match_detections

CAT, DOG = 0, 1
# One image each: 10 x 10 px objects at the origin, and detections of them.
OBJECTS = [(n, 0, 0, 10, 10, CAT) for n in range(6)]
FOUND = [
    (0, 0, 0, 10, 10, 0.95, CAT),  # correct
    (0, 0, 0, 10, 9, 0.90, CAT),  # duplicate: IoU 0.9 with an object that a higher-scoring box matches
    (1, 0, 0, 10, 4, 0.85, CAT),  # localisation: IoU 0.4
    (2, 0, 0, 10, 10, 0.80, DOG),  # class
    (3, 0, 0, 10, 3, 0.75, DOG),  # both: IoU 0.3 with a cat
    (4, 50, 50, 60, 60, 0.70, CAT),  # background
    (5, 0, 0, 10, 10, 0.65, CAT),  # correct
]  # and the objects of images 3 and 4 are missed


def parts(data, reach=0.5, near=0.1):
    order = data.detections.order()
    close = pairs(data)
    matching = match_detections(data, close, ranks(order), reach)
    return close, matching, classify_errors(data, close, matching, reach=reach, near_iou=near), order


def test_every_error_type_once():
    data = table(OBJECTS, FOUND, 2)
    _, matching, found, _ = parts(data)
    names = ["right", "duplicate", "localisation", "class", "both", "background", "right"]
    assert [KINDS[kind] if kind >= 0 else "right" for kind in found.kind] == names
    assert matching.hits.tolist() == [name == "right" for name in names]
    assert np.flatnonzero(found.missed).tolist() == [
        3,
        4,
    ]  # those of `localisation` and `class` are told already
    assert found.target.tolist() == [-1, -1, 1, 2, -1, -1, -1]


def test_error_types_have_a_precedence():
    """A cat and a dog of nearly the same box; a second cat box also overlaps the unmatched dog: class."""
    objects = [(0, 0, 0, 10, 10, CAT), (0, 0, 0, 10, 9, DOG)]
    said = [(0, 0, 0, 10, 10, 0.9, CAT), (0, 0, 0, 10, 9, 0.8, CAT), (0, 0, 0, 10, 4, 0.7, CAT)]
    _, _, found, _ = parts(table(objects, said, 2))
    assert [KINDS[kind] for kind in found.kind[1:]] == ["class", "localisation"]
    assert found.target.tolist() == [-1, 1, 0] and not found.missed.any()


def ap101(verdicts, number):
    """By hand: the best precision from each of 101 recalls on."""
    right = np.cumsum(verdicts)
    curve = [(Fraction(int(r), number), Fraction(int(r), n + 1)) for n, r in enumerate(right)]
    return float(
        sum(max((p for r, p in curve if r >= Fraction(n, 100)), default=0) for n in range(101)) / 101
    )


def test_ap_gain_of_every_error_type_by_hand():
    """Six objects, all cats; detections of cats in order: correct, dup, loc, background, correct."""
    data = table(OBJECTS, FOUND, 2)
    _, matching, found, order = parts(data)
    ap, gains = ap_gains(data, matching, found, order)
    base = ap101([1, 0, 0, 0, 1], 6)
    mended = {
        "localisation": ap101([1, 0, 1, 0, 1], 6),
        "class": ap101([1, 0, 0, 1, 0, 1], 6),  # the box of score 0.80 is a cat's now
        "duplicate": ap101([1, 0, 0, 1], 6),
        "both": base,  # it was said of dogs, which have no objects and no AP
        "background": ap101([1, 0, 0, 1], 6),
        "missed": ap101([1, 0, 0, 0, 1], 4),
    }
    assert ap == pytest.approx(base, abs=1e-12)
    for kind in KINDS:
        assert gains[kind] == pytest.approx(mended[kind] - base, abs=1e-12), kind


def test_two_errors_at_one_object_are_corrected_once():
    """Two localisation errors at one object: the higher-scoring one is corrected, the other is removed."""
    data = table([(0, 0, 0, 10, 10, CAT)], [(0, 0, 0, 10, 4, 0.9, CAT), (0, 0, 0, 10, 3, 0.8, CAT)], 1)
    _, matching, found, order = parts(data)
    ap, gains = ap_gains(data, matching, found, order)
    assert (ap, gains["localisation"], gains["missed"]) == (0.0, 1.0, 0.0)


def test_a_class_error_at_a_matched_object_is_removed():
    """A dog box on a matched cat is removed when class errors are corrected; only dogs gain."""
    objects = [(0, 0, 0, 10, 10, CAT), (1, 0, 0, 10, 10, DOG), (2, 0, 0, 10, 10, CAT)]
    said = [(0, 0, 0, 10, 10, 0.9, CAT), (0, 0, 0, 10, 10, 0.8, DOG), (1, 0, 0, 10, 10, 0.7, DOG)]
    data = table(objects, said, 2)
    _, matching, found, order = parts(data)
    ap, gains = ap_gains(data, matching, found, order)
    assert ap == pytest.approx((51 / 101 + 0.5) / 2) and gains["class"] == pytest.approx(0.25)


def test_a_class_without_detections_gets_ap_1_when_missed_objects_are_corrected():
    """Cats keep their AP of 1/2, a wrong box before the right one; the AP of dogs rises from 0 to 1."""
    objects = [(0, 0, 0, 10, 10, CAT), (0, 20, 20, 30, 30, DOG)]
    said = [(0, 60, 60, 70, 70, 0.95, CAT), (0, 0, 0, 10, 10, 0.9, CAT)]
    data = table(objects, said, 2)
    _, matching, found, order = parts(data)
    ap, gains = ap_gains(data, matching, found, order)
    assert (ap, gains["missed"]) == (0.25, 0.5)


def test_detections_in_a_crowd_are_ignored():
    crowd = (0, 0, 0, 100, 100, CAT, 0, 0, 1)
    data = table([crowd], [(0, 10, 10, 20, 20, 0.9, CAT), (0, 10, 10, 20, 20, 0.8, DOG)], 2)
    _, matching, found, _ = parts(data)
    assert matching.counted.tolist() == [False, True] and not found.missed.any()
    assert [KINDS[kind] for kind in found.kind if kind >= 0] == ["background"]


def test_thresholds_are_arguments():
    data = table(OBJECTS[:1], [(0, 0, 0, 10, 4, 0.9, CAT)], 1)
    for thresholds, kind in [((0.5, 0.1), 0), ((0.4, 0.1), -1), ((0.5, 0.45), 4)]:
        assert parts(data, *thresholds)[2].kind.tolist() == [kind]


def test_confusion_matrix_by_hand():
    data = table(OBJECTS, FOUND, 2)
    close, matching, _, _ = parts(data)
    whole = confusion_counts(data, close, matching, score=0.0, reach=0.5)
    # cats: two found, one called dog, three without a box; boxes without an object: three cats', one dog's
    assert whole.tolist() == [[2, 1, 3], [0, 0, 0], [3, 1, 0]]
    assert confusion_counts(data, close, matching, score=0.82, reach=0.5).tolist() == [
        [1, 0, 5],
        [0, 0, 0],
        [2, 0, 0],
    ]
    close, matching, _, _ = parts(data, reach=0.25)
    assert confusion_counts(data, close, matching, score=0.0, reach=0.25).tolist()[0] == [3, 2, 1]


def random_table(seed, num_images=30, crowds=True):
    random = np.random.default_rng(seed)

    def boxes(count):
        corner = random.integers(0, 60, (count, 2))
        return np.concatenate([corner, corner + random.integers(8, 50, (count, 2))], axis=1)

    num, said = 120, 600
    objects = np.column_stack([random.integers(0, num_images, num), boxes(num), random.integers(0, 4, num),
                               np.zeros((num, 2)), random.random(num) < 0.1 * crowds])  # fmt: skip
    near = objects[random.integers(0, num, said)]
    moved = near[:, 1:5] + random.integers(-8, 9, (said, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    label = np.where(random.random(said) < 0.7, near[:, 5], random.integers(0, 4, said))
    score = random.integers(1, 50, said) / 50  # many are equal
    return table(objects, np.column_stack([near[:, 0], moved, score, label]), 4, num_images)


def as_coco(data):
    """The table as COCO dictionaries."""

    def entry(image, label, box):
        x0, y0, x1, y1 = box.tolist()
        return {"image_id": int(image) + 1, "category_id": int(label) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}

    o, d = data.objects, data.detections
    areas = (o.boxes[:, 2:] - o.boxes[:, :2]).prod(axis=1)
    truth = {
        "images": [{"id": int(n) + 1, "height": 200, "width": 200} for n in data.image_ids],
        "categories": data.categories,
        "annotations": [
            entry(image, label, box) | {"id": n + 1, "iscrowd": int(crowd), "area": float(area)}
            for n, (image, label, box, crowd, area) in enumerate(
                zip(o.image, o.label, o.boxes, o.crowd, areas, strict=True)
            )
        ],
    }
    rows = zip(d.image, d.label, d.boxes, d.score, strict=True)
    return truth, [entry(*row[:3]) | {"score": float(row[3])} for row in rows]


def matched_by_pycocotools(truth, results, iou):
    """{row of results: row of annotations, or "ignored"}; rows that are not there are wrong."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        judge_ = COCOeval(known, known.loadRes([dict(one) for one in results]), "bbox")
        judge_.params.iouThrs, judge_.params.areaRng = np.array([iou]), [[0, 1e10]]
        judge_.params.areaRngLbl = ["all"]
        judge_.evaluate()
    row_of = {one["id"]: n for n, one in enumerate(truth["annotations"])}
    found = {}
    for one in filter(None, judge_.evalImgs):
        matches = zip(one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0], strict=True)
        for detection, annotation, ignored in matches:
            if ignored or annotation:
                found[detection - 1] = "ignored" if ignored else row_of[int(annotation)]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_matching_equals_that_of_pycocotools(seed, iou):
    data = random_table(seed)
    _, matching, *_ = parts(data, iou)
    got = {n: int(there) for n, there in enumerate(matching.matched) if there >= 0}
    got |= {n: "ignored" for n in np.flatnonzero(~matching.counted).tolist()}
    assert got == matched_by_pycocotools(*as_coco(data), iou)
    assert "ignored" in got.values() and len(got) > 30


def test_ties_of_iou_as_in_pycocotools():
    """The first box overlaps both objects equally and matches the later one, the only one the other fits."""
    objects = [(0, 0, 0, 10, 10, CAT), (0, 4, 0, 14, 10, CAT)]
    said = [(0, 2, 0, 12, 10, 0.9, CAT), (0, 5, 0, 15, 10, 0.8, CAT)]
    data = table(objects, said, 1)
    _, matching, *_ = parts(data)
    assert matching.matched.tolist() == [1, -1]
    assert matched_by_pycocotools(*as_coco(data), 0.5) == {0: 1}


def assert_adds_up(data, analysis):
    kinds = analysis["errors"]
    wrong = sum(kinds[kind]["count"] for kind in KINDS[:-1])
    assert analysis["right"] + wrong + analysis["not_counted"] == len(data.detections)
    rows = analysis["per_class"]
    for kind in KINDS:
        assert sum(row["errors"][kind] for row in rows) == kinds[kind]["count"]
    assert sum(row["objects"] for row in rows) == analysis["objects"]
    cells, score = analysis["confusion"]["cells"], analysis["confusion"]["score"]
    objects = sum(count for meant, _, count in cells if meant is not None)
    assert objects == analysis["objects"]
    said = sum(count for _, label, count in cells if label is not None)
    assert said <= (data.detections.score >= score).sum()
    found = sum(sum(analysis["scores"][name]) for name in ("right", "wrong"))
    assert found == len(data.detections) - analysis["not_counted"]


@pytest.mark.parametrize("seed", range(4))
def test_invariants_of_any_detections(seed):
    """Counts add up, AP50 is COCO's, and the order of rows is irrelevant if scores differ."""
    data = random_table(seed)
    analysis = analyse(data)
    assert_adds_up(data, analysis)
    truth, results = as_coco(data)
    assert analysis["ap"] == pytest.approx(coco_metrics(truth, results)["metrics"]["ap50"], abs=1e-4)
    mean = analysis["curves"]["iou50"]["mean"]
    assert np.mean(mean) == pytest.approx(analysis["ap"], abs=0.01) and len(mean) == 101
    unlike = [{**one, "score": n / 1000} for n, one in enumerate(results)]
    shuffled = np.random.default_rng(seed).permutation(len(unlike))
    one = analyse(tabulate(truth, unlike))
    other = analyse(tabulate(truth, [unlike[n] for n in shuffled]))
    assert one == other


@pytest.mark.parametrize("names", [
    ("bbox_area_no_crowd/sampled_gts_bbox_area.json", "bbox_area_no_crowd/sampled_bbox_results.json"),
    (
        "cocoapi_val2014_100/instances_val2014_100.json",
        "cocoapi_val2014_100/instances_val2014_fakebbox100_results.json",
    ),
])  # fmt: skip
def test_counts_of_real_detections_add_up(names):
    folder = real_data.folder("coco_samples")
    truth, results = (json.loads((folder / name).read_text()) for name in names)
    truth = complete(truth)
    results = results["annotations"] if isinstance(results, dict) else results
    data = tabulate(truth, results)
    analysis = analyse(data)
    assert_adds_up(data, analysis)
    assert analysis["ap"] == pytest.approx(coco_metrics(truth, results)["metrics"]["ap50"], abs=1e-4)


def test_errors_of_masks():
    folder = real_data.folder("coco_samples", "cocoapi_val2014_100")
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    data = tabulate(complete(truth, "segm"), results, iou_type="segm")
    analysis = analyse(data)
    assert_adds_up(data, analysis)
    metrics = coco_metrics(truth, results, iou_type="segm")["metrics"]
    assert analysis["ap"] == pytest.approx(metrics["ap50"], abs=1e-4)


@pytest.mark.parametrize("objects,said", [([], []), (OBJECTS, []), ([], FOUND)])
def test_no_objects_and_no_detections(objects, said):
    data = table(objects, said, 2, num_images=6)
    analysis = analyse(data)
    assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    assert analysis["ap"] == (0.0 if objects else None)
    assert analysis["errors"]["missed"]["count"] == len(objects)
    assert analysis["errors"]["background"]["count"] == len(said)


def test_best_f1_by_hand():
    """Correct, wrong, correct of four objects: F1 after each 2/5, 2/6, 4/7."""
    objects = [(n, 0, 0, 10, 10, CAT) for n in range(4)]
    said = [(0, 0, 0, 10, 10, 0.9, CAT), (0, 50, 50, 60, 60, 0.8, CAT), (1, 0, 0, 10, 10, 0.7, CAT)]
    best = analyse(table(objects, said, 1))["best_f1"]
    assert best["score"] == 0.7 and best["f1"] == pytest.approx(400 / 7, abs=1e-5)
    assert (best["precision"], best["recall"]) == (pytest.approx(200 / 3, abs=1e-5), 50.0)


def test_only_the_first_hundred_of_a_class_in_an_image_count():
    """As in COCO: the correct box follows a hundred wrong ones and is ignored."""
    wrong = [(0, 50 + n, 50, 60 + n, 60, 0.9, CAT) for n in range(100)]
    said = [*wrong, (0, 0, 0, 10, 10, 0.1, CAT), (0, 0, 0, 10, 10, 0.1, DOG)]
    data = table([(0, 0, 0, 10, 10, CAT), (0, 0, 0, 10, 10, DOG)], said, 2)
    analysis = analyse(data)
    assert (analysis["ap"], analysis["not_counted"], analysis["right"]) == (50.0, 1, 1)
    truth, results = as_coco(data)
    assert coco_metrics(truth, results)["metrics"]["ap50"] == 50.0


def test_ap_rules_by_hand():
    precision, recall = np.array([1, 1 / 2, 2 / 3]), np.array([1 / 2, 1 / 2, 1])
    assert curves.ap_area(precision, recall) == pytest.approx(1 / 2 + 1 / 3)
    assert curves.ap_eleven(precision, recall) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert curves.ap_coco(precision, recall) == pytest.approx((51 + 50 * 2 / 3) / 101)
