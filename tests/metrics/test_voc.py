"""AP of PASCAL VOC and Open Images: reference numbers, fractions by hand, an implementation in loops."""

from fractions import Fraction

import numpy as np
import pytest
from support.golden import assert_agrees, goldens
from support.metric_tables import table

from kgarden.metrics.open_images import of_present_classes, open_images_ap
from kgarden.metrics.voc import voc_ap


@pytest.mark.parametrize("golden", goldens("mmdet_voc_openimages_ap"), ids=str)
def test_ap_agrees_with_the_reference(golden):
    size = int(golden["num_classes"]), int(golden["num_images"])
    data = table(golden["gt"], golden["det"], *size)
    cases = golden.params["cases"]
    got = {}
    for name in cases:
        case = settled(cases, name)
        if case.get("use_group_of"):
            found = open_images_ap(
                data, case["iou_thr"], case["ioa_thr"], filtered(data, case["class_filter"])
            )
        else:
            assert case["difficult"] == "ignored"
            found = voc_ap(data, case["iou_thr"], rule_held(golden, name, data, case), plus_one(case))
        # a class without objects: the references write 0 or NaN, neither of which is a measurement
        empty = np.isnan(found["ap"])
        np.testing.assert_array_equal(np.nan_to_num(golden[f"{name}/ap"][empty]), 0)
        nothing = np.isnan(found["map"])
        got[f"{name}/ap"] = np.where(empty, golden[f"{name}/ap"], found["ap"])
        got[f"{name}/mAP"] = golden[f"{name}/mAP"] if nothing else np.float64(found["map"])
        if f"{name}/num_gts" in golden:
            got[f"{name}/num_gts"] = found["num_objects"]
    assert_agrees(golden, got)


def settled(cases, name):
    """The settings of a case that names another which it is like."""
    case = cases[name]
    return {**(settled(cases, case["like"]) if "like" in case else {}), **case}


def plus_one(case):
    return case.get("legacy_plus_one", False)


def filtered(data, words):
    if words is None:
        return None
    assert words in ("classes with gt in the image", "classes with gt in the image, and class 0")
    return of_present_classes(data, always=[0] if words.endswith("class 0") else [])


def rule_held(golden, name, data, case):
    """Which mean a file's case holds.

    `eval_map` of mmdetection 3 takes the rule from `eval_mode`, by default the area, and no longer from the
    name of the data set. So a case called "11 points" may hold areas: in the file of this repository it does.
    Which of the two it is, is plain from the numbers; the eleven points are held by the tests below.
    """
    if case["metric"] != "11 points":
        return case["metric"]
    stored = np.nan_to_num(golden[f"{name}/ap"])
    off = {
        rule: np.abs(np.nan_to_num(voc_ap(data, case["iou_thr"], rule, plus_one(case))["ap"]) - stored).max()
        for rule in ("11 points", "area")
    }
    return min(off, key=off.get)


# Five objects, detections in the order of their scores: right, wrong, right, right, wrong, right.
# Recall 1/5, 1/5, 2/5, 3/5, 3/5, 4/5; precision 1, 1/2, 2/3, 3/4, 3/5, 4/6.
SQUARES = [(n, 10, 10, 20, 20, 0) for n in range(5)]
FOUND = [(0, 10, 10, 20, 20, 0.9, 0), (0, 30, 30, 40, 40, 0.8, 0), (1, 10, 10, 20, 20, 0.7, 0)]
FOUND += [(2, 10, 10, 20, 20, 0.6, 0), (3, 50, 50, 60, 60, 0.5, 0), (4, 10, 10, 20, 20, 0.4, 0)]


def test_both_ap_rules_by_hand():
    """3 of 5 is 0.6, which is below 6 * 0.1 in floating point: that point belongs to recall 4/5."""
    area = Fraction(1, 5) * (1 + Fraction(3, 4) + Fraction(3, 4) + Fraction(2, 3))
    eleven = (3 * Fraction(1) + 3 * Fraction(3, 4) + 3 * Fraction(2, 3)) / 11
    data = table(SQUARES, FOUND, 1)
    assert voc_ap(data, points="area")["map"] == pytest.approx(float(area), abs=1e-12)
    assert voc_ap(data, points="11 points")["map"] == pytest.approx(float(eleven), abs=1e-12)


def test_difficult_objects_are_ignored():
    """The last object is difficult: recall 1/4, 2/4, 3/4, precision 1, 2/3, 3/4; the last is ignored."""
    objects = [*SQUARES[:4], (*SQUARES[4], 1)]
    area = Fraction(1, 4) * (1 + Fraction(3, 4) + Fraction(3, 4))
    found = voc_ap(table(objects, FOUND, 1))
    assert found["map"] == pytest.approx(float(area), abs=1e-12) and found["num_objects"].tolist() == [4]
    everything = voc_ap(table([(*row, 1) for row in SQUARES], FOUND, 1))
    assert np.isnan(everything["ap"]).all() and np.isnan(everything["map"])


def test_only_the_object_of_the_highest_iou_is_considered():
    """A second box on the same object is a false positive, though it overlaps a free object, too."""
    objects = [(0, 0, 0, 10, 10, 0), (0, 3, 0, 13, 10, 0)]
    found = [(0, 0, 0, 10, 10, 0.9, 0), (0, 1, 0, 11, 10, 0.8, 0)]  # IoU of the second: 9/11 and 8/12
    assert voc_ap(table(objects, found, 1))["map"] == pytest.approx(0.5)


def test_plus_one_by_hand():
    """10 x 9 px against 10 x 18: 90 / 180 = 0.5; with 1 px more each way 110 / 209 = 0.526."""
    data = table([(0, 0, 0, 10, 18, 0)], [(0, 0, 0, 10, 9, 0.9, 0)], 1)
    assert [voc_ap(data, iou)["map"] for iou in (0.5, 0.52)] == [1.0, 0.0]
    assert [voc_ap(data, iou, plus_one=True)["map"] for iou in (0.52, 0.53)] == [1.0, 0.0]


def test_groups_by_hand():
    """Two boxes in a group are one true positive; a third box is wrong; a single object is found."""
    objects = [(0, 0, 0, 100, 100, 0, 0, 1), (0, 200, 0, 210, 10, 0, 0, 0)]
    found = [(0, 10, 10, 20, 20, 0.9, 0), (0, 30, 30, 40, 40, 0.8, 0), (0, 150, 0, 160, 10, 0.7, 0)]
    found += [(0, 200, 0, 210, 10, 0.6, 0)]
    judged = open_images_ap(table(objects, found, 1))
    assert judged["map"] == pytest.approx(float(Fraction(1, 2) * (1 + Fraction(2, 3))), abs=1e-12)
    assert judged["num_objects"].tolist() == [2]
    # half of a box in the group is enough at 0.5 and not at 0.6
    half = table(objects[:1], [(0, 95, 0, 105, 10, 0.9, 0)], 1)
    assert [open_images_ap(half, inside=share)["map"] for share in (0.5, 0.6)] == [1.0, 0.0]


def test_classes_not_annotated_in_an_image_are_ignored():
    objects = [(0, 0, 0, 10, 10, 0), (1, 0, 0, 10, 10, 1)]
    found = [(0, 50, 50, 60, 60, 0.9, 1), (1, 0, 0, 10, 10, 0.8, 1), (0, 0, 0, 10, 10, 0.7, 0)]
    found += [(1, 0, 0, 10, 10, 0.9, 0)]
    data = table(objects, found, 2)
    assert of_present_classes(data).tolist() == [False, True, True, False]
    assert of_present_classes(data, always=[0]).tolist() == [False, True, True, True]
    np.testing.assert_allclose(open_images_ap(data)["ap"], [0.5, 0.5])
    np.testing.assert_allclose(open_images_ap(data, kept=of_present_classes(data))["ap"], [1, 1])
    np.testing.assert_allclose(open_images_ap(data, kept=of_present_classes(data, [0]))["ap"], [0.5, 1])


def by_loops(objects, found, iou, points, groups):
    """The same rules in loops, one detection at a time."""
    aps = []
    for label in sorted({row[5] for row in objects}):
        there = [row for row in objects if row[5] == label]
        single = [row for row in there if not (groups and row[7])]
        number = len(there) if groups else sum(not row[6] for row in there)
        taken, spoken, verdicts = set(), set(), []
        for row in sorted((row for row in found if row[6] == label), key=lambda row: -row[5]):
            near = [(one_iou(row[1:5], o[1:5]), -n, o) for n, o in enumerate(single) if o[0] == row[0]]
            best, n, o = max(near, default=(0, 0, None))
            if o is not None and best >= iou and (groups or not o[6]) and n not in taken:
                taken.add(n)
                verdicts.append(True)
            elif o is not None and best >= iou and not groups and o[6]:
                continue
            else:
                grouped = [(n, o) for n, o in enumerate(there) if groups and o[7] and o[0] == row[0]]
                inside = [(one_iou(row[1:5], o[1:5], True), -n) for n, o in grouped]
                share, n = max(inside, default=(0, 0))
                if share >= 0.5 and n in spoken:
                    continue
                if share >= 0.5:
                    spoken.add(n)
                verdicts.append(share >= 0.5)
        right = [sum(verdicts[: n + 1]) for n in range(len(verdicts))]
        curve = [(Fraction(r, number), Fraction(r, n + 1)) for n, r in enumerate(right)] if number else []
        if points == "area":
            steps = zip([(0, 0), *curve[:-1]], curve, range(len(curve)), strict=True)
            aps.append(sum((b[0] - a[0]) * max(p for _, p in curve[n:]) for a, b, n in steps))
        else:
            points_ = [max((p for r, p in curve if float(r) >= n * 0.1), default=0) for n in range(11)]
            aps.append(Fraction(sum(points_), 11))
        if not number:
            aps.pop()
    return float(sum(aps) / len(aps))


def one_iou(a, b, of_first=False):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (areas[0] if of_first else areas[0] + areas[1] - width * height)


@pytest.mark.parametrize("seed", range(8))
def test_vectorised_ap_equals_loops(seed):
    random = np.random.default_rng(seed)

    def boxes(count):
        corner = random.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + random.uniform(10, 50, (count, 2))], axis=1)

    objects = np.zeros((40, 8))
    objects[:, 0], objects[:, 5] = random.integers(0, 6, 40), random.integers(0, 3, 40)
    objects[:, 1:5], objects[:, 6:] = boxes(40), random.random((40, 2)) < 0.25
    near = objects[random.integers(0, 40, 120)]
    found = np.column_stack([near[:, :5], random.random(120), near[:, 5]])
    found[:, 1:5] += random.normal(0, 4, (120, 4))
    found[:24, 6] = random.integers(0, 3, 24)
    data = table(objects, found, 3)
    rows = objects.tolist(), found.tolist()
    for iou in (0.5, 0.75):
        for points in ("area", "11 points"):
            assert voc_ap(data, iou, points)["map"] == pytest.approx(by_loops(*rows, iou, points, False))
        assert open_images_ap(data, iou)["map"] == pytest.approx(by_loops(*rows, iou, "area", True))
