"""Max-IoU assigner: the IoU rule of RPN, RetinaNet and mmdetection's anchor heads.

Ren et al. 2015, arXiv:1506.01497, section 3.1.2; Lin et al. 2017, arXiv:1708.02002, section 4; mmdetection's
MaxIoUAssigner and detectron2's Matcher. Letters: B images, M objects (padded), A anchors or RoIs.
"""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.float32 import quotient
from kgarden.ops.matcher import IGNORE, NEGATIVE, POSITIVE, match
from kgarden.targets.assign_result import BACKGROUND, IGNORED

LOW_QUALITY = ("all", "first", "own", None)


class MaxIoU(NamedTuple):
    """Settings of the max-IoU rule.

    Attributes:
        positive:     minimum IoU of an anchor that is assigned to its object of highest IoU.
        negative:     anchors below this IoU are background; (low, high): those from low to high. Others below
                      `positive` are ignored.
        low_quality_matches: anchors below `positive` that are kept for an object: "all" anchors of its
                      highest IoU, or the "first" of them (mmdetection; a later object overwrites an earlier
                      one); with "own" (detectron2) all of them become positive, each for its own object of
                      highest IoU; None: no such matches.
        low_quality_above: minimum IoU of such matches. They must overlap the object, unless this is None:
                      then an object that overlaps no anchor makes all anchors positive, as in detectron2's
                      Matcher.
        ignore_share: an anchor is ignored if more than this share of its area is in an ignore region; None:
                      ignore regions are background.
        share_of:     area that the share is relative to: "prior" (the anchor) or "region".
    """

    positive: float = 0.7
    negative: float | tuple = 0.3
    low_quality_matches: str | None = "all"
    low_quality_above: float | None = 0.0
    ignore_share: float | None = None
    share_of: str = "prior"

    def intervals(self):
        """Ascending IoU thresholds, and the labels of the intervals between them, as `match` takes them."""
        if isinstance(self.negative, list | tuple):
            low, high = self.negative
            return (low, high, self.positive), (IGNORE, NEGATIVE, IGNORE, POSITIVE)
        return (self.negative, self.positive), (NEGATIVE, IGNORE, POSITIVE)


def assign(iou, gt_valid, rule, ignored=None):
    """Assigns anchors to objects.

    Args:
        iou:      (B, M, A) of every object with every anchor.
        gt_valid: (B, M) bool.
        rule:     MaxIoU.
        ignored:  (B, A) bool from `in_ignore_region`, or None.
    Returns:
        matched: (B, A) int32, see kgarden/targets/assign_result.py.
        best:    (B, A) float32, the largest IoU of each anchor; -1 where it is in an ignore region, 0 without
                 objects.
    """
    outside = ops.ones_like(iou[:, 0], "bool") if ignored is None else ~ignored
    row, label = match(iou, gt_valid, *rule.intervals(), valid=outside)
    matched = ops.where(label == POSITIVE, row, ops.where(label == NEGATIVE, BACKGROUND, IGNORED))
    iou = ops.where(gt_valid[..., None] & outside[:, None], iou, -1.0)
    if rule.low_quality_matches is not None:
        kept_for = _low_quality_matches(iou, rule)
        matched = ops.where(kept_for >= 0, row if rule.low_quality_matches == "own" else kept_for, matched)
    # Without objects all anchors are background, even if the lowest interval is ignored.
    all_background = ~ops.any(gt_valid, axis=1, keepdims=True) & outside
    best = ops.where(all_background, 0.0, ops.max(iou, axis=1))
    return ops.where(all_background, BACKGROUND, matched), best


def _low_quality_matches(iou, rule):
    """The last object for which an anchor has the highest IoU, -1 where there is none.   (B, A) int32."""
    highest = ops.max(iou, axis=2, keepdims=True)
    if rule.low_quality_above is None:
        may = highest >= 0
    else:
        may = (highest > 0) & (highest >= rule.low_quality_above)
    is_best = iou == highest
    if rule.low_quality_matches == "first":
        first = ops.argmax(iou, axis=2)[..., None]
        is_best = ops.arange(iou.shape[2], dtype=first.dtype) == first
    rows = ops.arange(iou.shape[1], dtype="int32")[:, None]
    return ops.max(ops.where(is_best & may, rows, -1), axis=1)


def in_ignore_region(boxes, regions, region_valid, rule):
    """Masks the anchors with more than `ignore_share` of their area in an ignore region.

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
    share = quotient(common, ops.where(area > 0, area, 1.0))
    return ops.any((share > rule.ignore_share) & region_valid[..., None], axis=1)
