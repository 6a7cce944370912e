"""IoU-threshold assigner of RetinaNet.

Lin et al. 2017, arXiv:1708.02002, section 4. Letters: B images, M objects (padded), A anchors.
"""

from keras import ops

from kgarden.ops.matcher import IGNORE, NEGATIVE, POSITIVE, match
from kgarden.targets.assign_result import BACKGROUND, IGNORED

RESCUES = ("keep", "overwrite", None)


def assign_by_iou(iou, gt_valid, thresholds=(0.4, 0.5), rescue="overwrite"):
    """The best object of each anchor, and whether that is good enough.

    Args:
        iou:        (B, M, A) every object against every anchor.
        gt_valid:   (B, M) bool.
        thresholds: an anchor is background below the first, an object from the second on, ignored between.
        rescue:     what becomes of anchors that overlap an object as much as any other anchor does, however
                    little. "keep" (detectron2): positive, and still for the object that they overlap most.
                    "overwrite" (mmdetection): positive, for the last such object. None: nothing.
    Returns:
        best:    (B, A) int32, the object that each anchor overlaps most, good enough or not.
        matched: (B, A) int32, see kgarden/targets/assign_result.py.
    """
    labels = [NEGATIVE, IGNORE, POSITIVE]
    best, label = match(iou, gt_valid, list(thresholds), labels, low_quality=rescue == "keep")
    matched = ops.where(label == POSITIVE, best, ops.where(label == IGNORE, IGNORED, BACKGROUND))
    if rescue == "overwrite":
        highest = ops.max(iou, axis=2, keepdims=True)
        # An object that touches no anchor has 0 as its highest, which is no reason to take any.
        tied = (iou == highest) & (highest > 0) & gt_valid[..., None]
        row = ops.arange(iou.shape[1], dtype="int32")[:, None]
        last = ops.max(ops.where(tied, row, -1), axis=1)
        matched = ops.where(last >= 0, last, matched)
    return best, matched
