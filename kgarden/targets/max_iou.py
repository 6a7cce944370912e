"""Max-IoU assigner of Faster R-CNN's RPN and of mmdetection's anchor heads, in all its settings.

Ren et al. 2015, arXiv:1506.01497, section 3.1.2; mmdetection's MaxIoUAssigner. Letters: B images, M objects
(padded), A priors: anchors, proposals, RoIs.
"""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.targets.assign_result import BACKGROUND, IGNORED

RESCUES = ("all", "first", "own", None)


class MaxIoU(NamedTuple):
    """The settings of the rule.

    Attributes:
        positive:     from this IoU on a prior answers for the object that it overlaps most.
        negative:     below it a prior is background; (low, high): only from low on; ignored in between.
        rescue:       objects keep a prior however little it overlaps: "all" priors that overlap an object as
                      much as any does answer for it, or the "first" of them (mmdetection; a later object
                      overwrites an earlier one); with "own" (detectron2) all such priors answer, but each for
                      the object that it overlaps most; None: no rescue.
        rescue_above: least IoU for that; a prior that does not touch an object is never taken for it,
                      while detectron2 and mmdetection would take all such.
        ignore_share: a prior is ignored if more than this share of its area lies in an ignore region; None:
                      ignore regions are background.
        share_of:     of whose area, "prior" or "region".
    """

    positive: float = 0.7
    negative: float | tuple = 0.3
    rescue: str | None = "all"
    rescue_above: float = 0.0
    ignore_share: float | None = None
    share_of: str = "prior"


def assign(iou, gt_valid, rule, ignored=None):
    """Apply the rule.

    Args:
        iou:      (B, M, A) every object against every prior.
        gt_valid: (B, M) bool.
        rule:     MaxIoU.
        ignored:  (B, A) bool of `in_ignore_region`, or None.
    Returns:
        matched: (B, A) int32, see kgarden/targets/assign_result.py.
        best:    (B, A) float32, the largest IoU of each prior; -1 where it is in an ignore region, 0 without
                 objects.
    """
    iou = ops.where(gt_valid[..., None], iou, -1.0)
    if ignored is not None:
        iou = ops.where(ignored[:, None], -1.0, iou)
    row, best = ops.cast(ops.argmax(iou, axis=1), "int32"), ops.max(iou, axis=1)
    low, high = rule.negative if isinstance(rule.negative, list | tuple) else (0.0, rule.negative)
    matched = ops.where((best >= low) & (best < high), BACKGROUND, IGNORED)
    matched = ops.where(best >= rule.positive, row, matched)
    if rule.rescue is not None:
        rescued = _rescued(iou, rule)
        matched = ops.where(rescued >= 0, row if rule.rescue == "own" else rescued, matched)
    any_object = ops.any(gt_valid, axis=1, keepdims=True)
    outside = ~ignored if ignored is not None else ops.ones_like(matched, "bool")
    matched = ops.where(any_object | ~outside, matched, BACKGROUND)
    return matched, ops.where(any_object | ~outside, best, 0.0)


def _rescued(iou, rule):
    """The last object of which a prior is the best one, -1 where there is none.   (B, A) int32."""
    highest = ops.max(iou, axis=2, keepdims=True)
    may = (highest > 0) & (highest >= rule.rescue_above)
    taken = iou == highest
    if rule.rescue == "first":
        first = ops.argmax(iou, axis=2)[..., None]
        taken = ops.arange(iou.shape[2], dtype=first.dtype) == first
    rows = ops.arange(iou.shape[1], dtype="int32")[:, None]
    return ops.max(ops.where(taken & may, rows, -1), axis=1)


def in_ignore_region(boxes, regions, region_valid, rule):
    """Priors of which too much lies in an ignore region.

    Args:
        boxes:        (A, 4) or (B, A, 4) px.
        regions:      (B, R, 4) px.
        region_valid: (B, R) bool.
        rule:         MaxIoU with an `ignore_share`.
    Returns:
        (B, A) bool.
    """
    common = box_ops.intersection(regions, boxes)  # (B, R, A)
    area = (
        box_ops.area(regions)[..., None] if rule.share_of == "region" else box_ops.area(boxes)[..., None, :]
    )
    share = common / ops.where(area > 0, area, 1.0)
    return ops.any((share > rule.ignore_share) & region_valid[..., None], axis=1)
