"""Assignment results: the values that all assigners of dense heads return.

A place is a cell, or an anchor where a cell has several. `matched` (B, A) int32 holds a row of the ground
truth, or one of the two constants below.
"""

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, CROWD, LABELS

BACKGROUND, IGNORED = -1, -2


def truth_at(matched, y):
    """Box and class that each place must predict.

    Args:
        matched: (B, A) int32.
        y:       ground truth as in kgarden.structures.
    Returns:
        boxes:  (B, A, 4) px; those of object 0 where there is nothing to predict.
        labels: (B, A) int32; BACKGROUND or IGNORED where there is nothing to predict.
    """
    row = ops.maximum(matched, 0)
    boxes = ops.take_along_axis(y[BOXES], row[..., None], axis=1)
    labels = ops.take_along_axis(ops.cast(y[LABELS], "int32"), row, axis=1)
    return boxes, ops.where(matched >= 0, labels, matched)


def one_hot(labels, num_classes):
    """(B, A) int32 -> (B, A, C) float32; no class is set on background and ignored places."""
    return ops.cast(labels[..., None] == ops.arange(num_classes, dtype="int32"), "float32")


def smallest(possible, cost):
    """Each place's object of least cost among those it may answer for, the lowest row among equals.

    Args:
        possible: (B, M, A) bool.
        cost:     (B, M, A), or broadcast against it.
    Returns:
        (B, A) int32, BACKGROUND where no object is possible.
    """
    row = ops.argmin(ops.where(possible, cost, float("inf")), axis=1)
    return ops.where(ops.any(possible, axis=1), ops.cast(row, "int32"), BACKGROUND)


def under_crowd(boxes, y, share):
    """Anchors of which more than a share of their own area lies in one crowd region.

    Args:
        boxes: (A, 4) px.
        y:     ground truth as in kgarden.structures.
        share: of an anchor's area.
    Returns:
        (B, A) bool.
    """
    covered = box_ops.intersection(y[BOXES], boxes) / box_ops.area(boxes)
    return ops.any((covered > share) & y[CROWD][..., None], axis=1)
