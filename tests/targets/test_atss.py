"""ATSS' assignment against mmdetection, by hand, and what must hold for any objects."""

import functools

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.ops.anchors import anchor_grid
from kgarden.ops.boxes import iou
from kgarden.targets.assign_result import under_crowd
from kgarden.targets.atss import assign_anchors, atss_candidates


def truth(boxes, labels, crowd=()):
    """Ground truth of one image as in kgarden.structures, with a row of padding."""
    rows = np.zeros((1, len(boxes) + len(crowd) + 1, 4), "float32")
    rows[0, : len(boxes)] = boxes
    is_crowd = np.zeros(rows.shape[:2], bool)
    is_crowd[0, len(boxes) : len(boxes) + len(crowd)] = True
    rows[is_crowd] = np.float32(crowd).reshape(-1, 4)
    padded = np.full(rows.shape[:2], -1, "int32")
    padded[0, : len(labels)] = labels
    return {"boxes": rows, "labels": padded, "crowd": is_crowd}, padded >= 0


@pytest.mark.parametrize("golden", goldens("mmdet_atss_assigner"), ids=str)
def test_assignment_agrees_with_the_reference(golden):
    priors, counts, got = golden["priors"], golden["num_level_priors"].tolist(), {}

    @functools.partial(fast, static=["top_k"])
    def assign_truth(boxes, valid, ignored, top_k):
        found = atss_candidates(priors, counts, boxes, gt_valid=valid, top_k=top_k, ignored=ignored)
        return assign_anchors(found, ignored)

    for case, s in params(golden)["cases"].items():
        none = s.get("gt") == "none"
        share = s.get("ignore_iof_thr", -1)
        boxes, labels = (golden[name][: 0 if none else None] for name in ("gt_bboxes", "gt_labels"))
        crowd = golden["ignore_bboxes"] if share > 0 else []
        y, valid = truth(boxes, labels, crowd)
        ignored = under_crowd(priors, y, share) if share > 0 else None
        matched = ops.convert_to_numpy(assign_truth(y["boxes"], valid, ignored, top_k=s["topk"]))[0]
        got[f"{case}/gt_inds"] = np.where(matched == -2, -1, matched + 1)
        if f"{case}/labels" in golden:
            row = np.maximum(matched, 0)
            got[f"{case}/labels"] = np.where(matched >= 0, y["labels"][0, row], -1)
            overlap = ops.convert_to_numpy(iou(priors, y["boxes"][0]))
            got[f"{case}/max_overlaps"] = np.where(matched >= 0, overlap[np.arange(len(row)), row], 0)
    assert_agrees(golden, got)


GRID = anchor_grid([(16, 16), (8, 8), (4, 4)], [8, 16, 32], [[64], [128], [256]])


candidates = fast(functools.partial(atss_candidates, GRID.boxes, GRID.counts()), static=["top_k"])
assign = fast(assign_anchors)


def assigned(boxes, labels=None, **settings):
    y, valid = truth(boxes, np.zeros(len(boxes)) if labels is None else labels)
    found = candidates(y["boxes"], valid, **settings)
    return ops.convert_to_numpy(assign(found))[0], found


def test_one_box_by_hand():
    # 64 px around (41, 42). With one candidate on each level, those at (40, 40), (48, 48), (32, 32) and of
    # 64, 128 and 256 px: common 63 * 62 of 64^2, then the whole box in the larger anchors.
    matched, found = assigned([[9, 10, 73, 74]], top_k=1)
    first = 63 * 62 / (2 * 64**2 - 63 * 62)
    ious = np.array([first, 64**2 / 128**2, 64**2 / 256**2])
    threshold = ious.mean() + ious.std(ddof=1)
    np.testing.assert_allclose(ops.convert_to_numpy(found.threshold)[0, 0], threshold, rtol=1e-5)
    assert np.flatnonzero(matched == 0).tolist() == [5 * 16 + 5]


def test_contested_anchor_goes_to_highest_iou():
    matched, found = assigned([[8, 8, 72, 72], [12, 12, 76, 76], [8, 8, 72, 72]])
    possible = ops.convert_to_numpy(found.possible)[0]
    wanted = possible[:2].all(axis=0)
    assert wanted.any() and (matched != 2).all()  # the twin of row 0 comes later
    overlap = ops.convert_to_numpy(iou(np.float32([[8, 8, 72, 72], [12, 12, 76, 76]]), GRID.boxes))
    np.testing.assert_array_equal(matched[wanted], overlap[:, wanted].argmax(axis=0))


def test_ignored_anchors_are_last_candidates_with_iou_minus_one():
    # The third level has 16 anchors; all but three are ignored there, so of nine candidates six are.
    y, valid = truth([[30, 30, 100, 110]], [0])
    ignored = np.zeros((1, len(GRID.boxes)), bool)
    ignored[0, -13:] = True
    found = candidates(y["boxes"], gt_valid=valid, top_k=9, ignored=ignored)
    plain = candidates(y["boxes"], gt_valid=valid, top_k=9)
    ious = ops.convert_to_numpy(iou(y["boxes"][0, :1], GRID.boxes))[0]
    away = ((GRID.points() - [65, 70]) ** 2).sum(axis=1)
    order = np.argsort(away, kind="stable")
    first, last = GRID.counts()[0], len(GRID.boxes) - 16
    nearest = [order[order < first][:9], order[(order >= first) & (order < last)][:9]]
    values = np.concatenate([ious[np.concatenate(nearest)], ious[last : last + 3], np.full(6, -1.0)])
    threshold = ops.convert_to_numpy(found.threshold)[0, 0]
    np.testing.assert_allclose(threshold, values.mean() + values.std(ddof=1), rtol=1e-5)
    assert threshold != pytest.approx(ops.convert_to_numpy(plain.threshold)[0, 0], rel=0.01)
    matched = ops.convert_to_numpy(assign(found, ignored))[0]
    assert (matched[-13:] == -2).all() and (matched[:-13] != -2).all()


@pytest.mark.parametrize("seed", range(3))
def test_invariant_to_order_and_padding(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (5, 2))], axis=1)
    order = rng.permutation(5)
    one, other = assigned(boxes)[0], assigned(boxes[order])[0]
    assert (one >= 0).any()
    np.testing.assert_array_equal(one, np.where(other >= 0, order[other], -1))
    assert (assigned(np.zeros((0, 4)))[0] == -1).all()


def test_anchors_that_take_no_part_might_as_well_not_be_there():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (5, 2))], axis=1)
    y, valid = truth([*boxes, [-120, -115, 125, 120]], np.zeros(6))  # the last fits the first coarse anchor
    inside = rng.random(len(GRID.boxes)) < 0.4  # of the coarsest level fewer than nine are left
    inside[-16] = False
    levels = np.split(inside, np.cumsum(GRID.counts())[:-1])
    left = [int(level.sum()) for level in levels]
    assert left[-1] < 9 < left[-2]
    some = candidates(y["boxes"], valid, inside=inside[None])
    others = atss_candidates(GRID.boxes[inside], left, y["boxes"], valid)
    np.testing.assert_allclose(some.threshold[0, :6], others.threshold[0, :6], rtol=1e-5)
    possible = ops.convert_to_numpy(some.possible)
    np.testing.assert_array_equal(possible[..., inside], others.possible)
    assert possible.any() and not possible[..., ~inside].any()


def test_one_candidate_is_its_own_threshold_if_its_centre_lies_inside():
    """The mean of one IoU is that IoU, and its deviation 0; a centre on a side of the object is outside."""
    anchors = np.float32([[0, 0, 8, 8]])
    for box, possible in (([0, 0, 8, 6], True), ([4, 0, 10, 8], False), ([3.5, 0, 10, 8], True)):
        found = atss_candidates(anchors, [1], np.float32([[box]]), np.ones((1, 1), bool), top_k=1)
        assert ops.convert_to_numpy(found.possible)[0, 0].tolist() == [possible]


def test_the_threshold_knows_of_anchors_inside_alone():
    """Mean and sample deviation of three of five candidates; the others lie in padding."""
    anchors = np.float32([[x, 0, x + 8, 8] for x in (0, 2, 4, 6, 8)])
    inside = np.array([[True, True, True, False, False]])
    box = np.float32([[[0, 0, 8, 8]]])
    found = atss_candidates(anchors, [5], box, np.ones((1, 1), bool), top_k=5, inside=inside)
    ious = np.array([1, 48 / 80, 32 / 96])
    np.testing.assert_allclose(
        ops.convert_to_numpy(found.threshold)[0, 0], ious.mean() + ious.std(ddof=1), rtol=1e-5
    )
