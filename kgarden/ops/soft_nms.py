"""Soft-NMS: decays the scores of overlapping boxes instead of removing them.

Bodla, Singh, Chellappa, Davis 2017, arXiv:1704.04503, Fig. 2. Each step selects one box and compares it with
all others. Classes are processed together, separated by labels, since the best box overall is the best of its
class.
"""

from keras import ops

from kgarden.ops.float32 import quotient
from kgarden.ops.gather import gather

KINDS = ("linear", "gaussian", "hard")
GONE = -1.0


def soft_nms(
    boxes,
    scores,
    valid,
    max_output,
    kind="linear",
    iou_threshold=0.5,
    sigma=0.5,
    min_score=1e-3,
    labels=None,
    plus_one=False,
):
    """Soft-NMS: greedily selects the best box and decays the scores of the boxes that overlap it.

    Args:
        boxes:         (B, N, 4) xyxy, px; N static.
        scores:        (B, N), >= 0.
        valid:         (B, N) bool, False on padding.
        max_output:    K, length of the result.
        kind:          factor on the score of a box of IoU u with the selected one: "linear" 1 - u above the
                       threshold (Eq. 3); "gaussian" exp(-u^2 / sigma) (Eq. 5); "hard" 0 above the threshold.
        iou_threshold: Python number.
        sigma:         Python number.
        min_score:     boxes with a decayed score below it are dropped.
        labels:        (B, N) int, or None to compare across classes.
        plus_one:      a box from 0 to 15 is 16 px wide.
    Returns:
        indices: (B, K) int32 rows of `boxes`, best final score first; 0 where not valid.
        scores:  (B, K) final scores.
        valid:   (B, K) bool.
        No gradient flows through any.
    """
    boxes = ops.cast(ops.stop_gradient(boxes), "float32")
    scores = ops.cast(ops.stop_gradient(scores), "float32")
    remaining = ops.where(valid & ops.isfinite(scores), scores, GONE)
    batch = ops.shape(remaining)[0]
    rows = ops.arange(boxes.shape[1], dtype="int32")[None]

    def select(step, remaining, indices, selected):
        best = ops.cast(ops.argmax(remaining, axis=1), "int32")[:, None]
        score = gather(remaining, best)
        slot = ops.arange(max_output, dtype="int32")[None] == step
        indices = ops.where(slot, best, indices)
        selected = ops.where(slot, score, selected)

        u = _iou(gather(boxes, best), boxes, float(plus_one))
        decayed = remaining * _factor(u, kind, iou_threshold, sigma)
        decayed = ops.where(decayed < min_score, GONE, decayed)
        if labels is not None:
            decayed = ops.where(labels == gather(labels, best), decayed, remaining)
        decayed = ops.where((rows == best) | (remaining < 0), GONE, decayed)
        return step + 1, decayed, indices, selected

    start = (
        0,
        remaining,
        ops.zeros((batch, max_output), dtype="int32"),
        ops.full((batch, max_output), GONE, dtype="float32"),
    )
    _, _, indices, selected = ops.while_loop(
        lambda step, remaining, *_: (step < max_output) & ops.any(remaining >= 0), select, start
    )
    kept = selected >= 0
    return ops.where(kept, indices, 0), ops.where(kept, selected, 0.0), kept


def _factor(u, kind, iou_threshold, sigma):
    if kind == "gaussian":
        return ops.exp(-u * u / sigma)
    return ops.where(u > iou_threshold, 1.0 - u if kind == "linear" else 0.0, 1.0)


def _iou(one, boxes, offset):
    """(B, 1, 4), (B, N, 4) -> (B, N); `offset` px (0 or 1) is added to every side."""
    low, high = ops.maximum(one[..., :2], boxes[..., :2]), ops.minimum(one[..., 2:], boxes[..., 2:])
    common = ops.prod(ops.maximum(high - low + offset, 0.0), axis=-1)
    area = ops.prod(ops.maximum(boxes[..., 2:] - boxes[..., :2] + offset, 0.0), axis=-1)
    area_of_one = ops.prod(ops.maximum(one[..., 2:] - one[..., :2] + offset, 0.0), axis=-1)
    union = area + area_of_one - common
    return ops.where(common > 0, quotient(common, ops.where(common > 0, union, 1.0)), 0.0)
