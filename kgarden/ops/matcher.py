"""Matching of boxes to ground truth by IoU thresholds, and sampling of positives and negatives.

`match` returns for every box a row of the ground truth and one of the labels of this module; `sample` draws a
fixed number of boxes, positives first. Both follow detectron2's `Matcher` and `subsample_labels`.
"""

from keras import ops

from kgarden.ops.gather import gather

IGNORE, NEGATIVE, POSITIVE = -1, 0, 1


def match(iou, gt_valid, thresholds, labels, low_quality=False, valid=None):
    """Matches each box to the ground truth of highest IoU and labels it by IoU thresholds.

    A box takes the label of the interval that its best IoU falls into: `labels[i]` for IoU in
    [thresholds[i-1], thresholds[i]). With `low_quality`, the boxes of highest IoU with some ground
    truth are positive for any IoU, and keep their own best row. (Faster R-CNN, section 3.1.2; exactly
    as in detectron2: a ground truth that overlaps no box makes all of them positive.)

    Args:
        iou:         (B, M, N) every ground truth against every box.
        gt_valid:    (B, M) bool, False on padding and on ignored objects.
        thresholds:  ascending IoU thresholds, e.g. (0.3, 0.7).
        labels:      IGNORE, NEGATIVE or POSITIVE for each interval, e.g. (0, -1, 1).
        low_quality: also make the best boxes of every ground truth positive.
        valid:       (B, N) bool, False on padded boxes, which are ignored; None: all are valid.
    Returns:
        matched: (B, N) int32, row of the ground truth; the first of ties; 0 if there is none.
        label:   (B, N) int32, IGNORE, NEGATIVE or POSITIVE.
    """
    if len(labels) != len(thresholds) + 1 or list(thresholds) != sorted(thresholds):
        raise ValueError(f"thresholds {thresholds} must ascend, and labels {labels} be one more")
    if iou.shape[1] == 0:  # a static batch without a single row of ground truth
        iou = ops.pad(iou, [[0, 0], [0, 1], [0, 0]])
        gt_valid = ops.zeros_like(iou[:, :, 0], dtype="bool")
    real = gt_valid[:, :, None] if valid is None else gt_valid[:, :, None] & valid[:, None, :]
    iou = ops.where(real, iou, -1.0)

    matched = ops.cast(ops.argmax(iou, axis=1), "int32")
    best = ops.max(iou, axis=1)  # (B, N), -1 without ground truth
    label = ops.full_like(matched, labels[0])
    for threshold, above in zip(thresholds, labels[1:], strict=True):
        label = ops.where(best >= threshold, above, label)
    if low_quality:
        best_of_gt = ops.max(iou, axis=2, keepdims=True)  # (B, M, 1)
        label = ops.where(ops.any((iou == best_of_gt) & real, axis=1), POSITIVE, label)
    if valid is not None:
        label = ops.where(valid, label, IGNORE)
    return matched, label


def sample(label, num, positive_fraction, random):
    """Samples a fixed number of boxes without replacement, positives first.

    At most int(num * positive_fraction) positives; negatives fill the rest. A
    shortage of negatives is not filled with positives.

    Args:
        label:  (B, N) int32 of `match`.
        num:    S, number of boxes to draw.
        positive_fraction: largest fraction of positives.
        random: (B, N) numbers, highest drawn first: `kgarden.ops.random.hash_uniform`.
    Returns:
        indices:     (B, S) int32 rows of `label`, 0 where not valid.
        valid:       (B, S) bool.
        is_positive: (B, S) bool.
    """
    count = label.shape[1]
    drawn_positive, num_positive = _draw(label == POSITIVE, min(int(num * positive_fraction), count), random)
    drawn_negative, num_negative = _draw(label == NEGATIVE, min(num, count), random)

    slot = ops.arange(num, dtype="int32")[None, :]
    is_positive = slot < num_positive[:, None]
    valid = slot < (num_positive + num_negative)[:, None]
    both = ops.concatenate([drawn_positive, drawn_negative], axis=1)
    column = ops.where(is_positive, slot, slot - num_positive[:, None] + drawn_positive.shape[1])
    column = ops.where(valid, column, 0)
    indices = gather(both, column)
    return ops.where(valid, indices, 0), valid, is_positive


def _draw(eligible, limit, random):
    """Up to `limit` eligible rows, highest `random` first: (B, limit) int32, and their number (B,)."""
    _, rows = ops.top_k(ops.where(eligible, random, -1.0), limit)
    available = ops.sum(ops.cast(eligible, "int32"), axis=1)
    return ops.cast(rows, "int32"), ops.minimum(available, limit)
