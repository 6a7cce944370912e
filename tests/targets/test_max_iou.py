"""The max-IoU rule against mmdetection's in seven settings, and by hand."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.ops.boxes import iou
from kgarden.targets.max_iou import MaxIoU, assign, in_ignore_region


def rule_of(case):
    """MaxIoU from the words of a file."""
    negative = case["neg_iou_thr"]
    kind = ("all" if case["gt_max_assign_all"] else "first") if case["match_low_quality"] else None
    return MaxIoU(
        positive=case["pos_iou_thr"],
        negative=tuple(negative) if isinstance(negative, list) else negative,
        low_quality_matches=kind,
        low_quality_above=case["min_pos_iou"],
        ignore_share=case["ignore_iof_thr"] if case["ignore_iof_thr"] > 0 else None,
        share_of="prior" if case["ignore_wrt_candidates"] else "region",
    )


def assigned(priors, objects, regions, rule):
    """(gt_inds, max_overlaps) in the file's words: -1 ignored, 0 background, k object k-1."""
    valid = np.arange(len(objects) + 2)[None] < len(objects)  # two rows of padding
    padded = np.concatenate([objects, np.float32([[0, 0, 50, 50], [1, 1, 9, 9]])])[None]
    ignored = None
    if rule.ignore_share is not None and regions is not None:
        ignored = in_ignore_region(priors, regions[None], np.ones((1, len(regions)), bool), rule)
    matched, best = assign(iou(padded, priors), valid, rule, ignored)
    matched = ops.convert_to_numpy(matched)[0]
    return np.where(matched >= 0, matched + 1, np.where(matched == -1, 0, -1)), ops.convert_to_numpy(best)[0]


@pytest.mark.parametrize("golden", goldens("mmdet_max_iou_assigner"), ids=str)
def test_assignments_agree_with_the_reference(golden):
    found = {}
    for name, case in params(golden)["cases"].items():
        rule = rule_of(case)
        for scene in ("", "scene2/"):
            if f"{scene}priors" not in golden:
                continue
            priors, objects = golden[f"{scene}priors"], golden[f"{scene}gt_bboxes"]
            indices, best = assigned(priors, objects, golden[f"{scene}ignore_bboxes"], rule)
            labels = np.where(indices > 0, golden[f"{scene}gt_labels"][np.maximum(indices - 1, 0)], -1)
            found |= {
                f"{scene}{name}/gt_inds": indices,
                f"{scene}{name}/max_overlaps": best,
                f"{scene}{name}/labels": labels,
            }
        found[f"{name}/nogt_gt_inds"] = assigned(golden["priors"], np.zeros((0, 4), "float32"), None, rule)[0]
    assert_agrees(golden, found)


def test_object_without_overlap_is_not_matched():
    overlap = np.float32([[[0.0, 0.0], [0.0, 0.6]]])
    matched, _ = assign(overlap, np.array([[True, True]]), MaxIoU())
    assert ops.convert_to_numpy(matched).tolist() == [[-1, 1]]


def test_an_object_s_best_anchor_at_the_limit_is_kept():
    """mmdetection's `min_pos_iou` is inclusive."""
    iou, valid = np.float32([[[0.5, 0.25]]]), np.ones((1, 1), bool)
    for least, row in ((0.5, 0), (0.51, -1)):
        rule = MaxIoU(0.7, 0.6, low_quality_above=least)
        assert ops.convert_to_numpy(assign(iou, valid, rule)[0])[0].tolist() == [row, -1]


def test_an_anchor_of_which_a_region_has_exactly_the_share_is_not_ignored():
    boxes, regions = np.float32([[0, 0, 10, 10], [0, 0, 10, 9]]), np.float32([[[0, 0, 10, 5]]])
    rule = MaxIoU(ignore_share=0.5)
    got = in_ignore_region(boxes, regions, np.ones((1, 1), bool), rule)
    assert ops.convert_to_numpy(got)[0].tolist() == [False, True]
