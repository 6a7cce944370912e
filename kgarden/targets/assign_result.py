"""Assignment results: the common return value of the assigners of dense heads.

`matched` (B, A) int32 is, for each point or anchor, a row of the ground truth or one of the two constants
below.
"""

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.float32 import quotient
from kgarden.ops.gather import gather
from kgarden.structures import BOXES, CROWD, LABELS, SIZE_HW

BACKGROUND, IGNORED = -1, -2


def truth_at(matched, y):
    """Gathers the target box and class of each point or anchor.

    Args:
        matched: (B, A) int32.
        y:       ground truth as in kgarden.structures.
    Returns:
        boxes:  (B, A, 4) px; those of object 0 where no object is assigned.
        labels: (B, A) int32; BACKGROUND or IGNORED where no object is assigned.
    """
    row = ops.maximum(matched, 0)
    boxes = gather(y[BOXES], row)
    labels = gather(ops.cast(y[LABELS], "int32"), row)
    return boxes, ops.where(matched >= 0, labels, matched)


def one_hot(labels, num_classes):
    """(B, A) int32 -> (B, A, C) float32; all zeros for background and ignored points."""
    return ops.cast(labels[..., None] == ops.arange(num_classes, dtype="int32"), "float32")


def smallest(possible, cost):
    """Assigns to each point the candidate object of lowest cost; ties go to the lowest row.

    Args:
        possible: (B, M, A) bool.
        cost:     (B, M, A), or broadcast against it.
    Returns:
        (B, A) int32, BACKGROUND where no object is possible.
    """
    row = ops.argmin(ops.where(possible, cost, float("inf")), axis=1)
    return ops.where(ops.any(possible, axis=1), ops.cast(row, "int32"), BACKGROUND)


def under_crowd(boxes, y, share):
    """Masks the anchors with more than a fraction of their area in one crowd region.

    Args:
        boxes: (A, 4) px.
        y:     ground truth as in kgarden.structures.
        share: fraction of an anchor's area.
    Returns:
        (B, A) bool.
    """
    covered = quotient(box_ops.intersection(y[BOXES], boxes), box_ops.area(boxes))
    return ops.any((covered > share) & y[CROWD][..., None], axis=1)


def in_own_padding(anchors, y, divisor):
    """Masks the anchors that take part where the padding that a batch adds to an image is left out.

    Args:
        anchors: kgarden.ops.anchors.Anchors.
        y:       ground truth as in kgarden.structures; without "size_hw" images fill the canvas.
        divisor: px, see Anchors.inside; None: all take part.
    Returns:
        (B, A) bool, or None: all.
    """
    return None if divisor is None or SIZE_HW not in y else anchors.inside(y[SIZE_HW], divisor)


def either(one, other):
    """Where one of two masks holds, which may be None: nowhere."""
    if one is None or other is None:
        return other if one is None else one
    return one | other
