"""IoU, GIoU, DIoU and related losses between pairs of boxes, element-wise, as in mmdetection.

IoU: Yu et al. 2016, arXiv:1608.01471; GIoU: Rezatofighi et al. 2019, arXiv:1902.09630; DIoU and CIoU: Zheng
et al. 2019, arXiv:1911.08287; bounded IoU: Tychsen-Smith and Petersson 2017, arXiv:1711.00164.
kgarden/losses/ltrb_iou.py has the form of the FCOS and CenterNet releases.
"""

import math

from keras import ops

from kgarden.errors import UserError
from kgarden.losses.roi import smooth_l1
from kgarden.ops.float32 import quotient

EPSILON = 1e-6


def box_iou_loss(predicted, target, kind="giou", epsilon=EPSILON):
    """Computes the loss of each pair.

    Args:
        predicted, target: (..., 4) xyxy, in the same unit.
        kind:    "giou", "diou", "ciou", "iou" (-log IoU), "linear_iou" (1 - IoU), "square_iou" (1 - IoU^2).
        epsilon: lower limit of union and hull as divisors, and of the IoU in the logarithm.
    Returns:
        (...,) float32.
    Raises:
        UserError: unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"box loss {kind!r}: one of {', '.join(KINDS)}")
    return KINDS[kind](predicted, target, epsilon)


def pairwise_iou(a, b, epsilon=EPSILON):
    """Element-wise IoU of two arrays of boxes.   (..., 4), (..., 4) -> (...,)."""
    return _overlap_and_union(a, b, epsilon)[0]


def bounded_iou_loss(predicted, target, beta=0.2, epsilon=1e-3):
    """Bounded IoU loss: smooth L1 on an upper bound of the IoU for each coordinate.

    Args:
        predicted, target: (..., 4) xyxy.
        beta:    of smooth L1.
        epsilon: added to divisors.
    Returns:
        (..., 4): x, y, width, height.
    """
    x, y, width, height = _center_and_size(predicted)
    gt_x, gt_y, gt_width, gt_height = _center_and_size(target)

    def moved(offset, side):
        distance = ops.abs(offset)
        return 1 - ops.maximum((side - 2 * distance) / (side + 2 * distance + epsilon), 0.0)

    def resized(side, gt_side):
        return 1 - ops.minimum(gt_side / (side + epsilon), side / (gt_side + epsilon))

    losses = [
        moved(gt_x - x, gt_width),
        moved(gt_y - y, gt_height),
        resized(width, gt_width),
        resized(height, gt_height),
    ]
    return smooth_l1(ops.stack(losses, axis=-1), 0.0, beta)


def _log(a, b, epsilon):
    return -ops.log(_at_least(pairwise_iou(a, b, epsilon), epsilon))


def _linear(a, b, epsilon):
    return 1 - _at_least(pairwise_iou(a, b, epsilon), epsilon)


def _square(a, b, epsilon):
    return 1 - ops.square(_at_least(pairwise_iou(a, b, epsilon), epsilon))


def _giou(a, b, epsilon):
    iou, union = _overlap_and_union(a, b, epsilon)
    width, height = _hull(a, b)
    hull = _at_least(width * height, epsilon)
    return 1 - (iou - (hull - union) / hull)


def _diou(a, b, epsilon):
    iou, _ = _iou_by_sum(a, b, epsilon)
    return 1 - (iou - _center_distance(a, b, epsilon))


def _ciou(a, b, epsilon):
    iou, _ = _iou_by_sum(a, b, epsilon)
    width, height = a[..., 2] - a[..., 0], a[..., 3] - a[..., 1] + epsilon
    gt_width, gt_height = b[..., 2] - b[..., 0], b[..., 3] - b[..., 1] + epsilon
    shape = 4 / math.pi**2 * ops.square(ops.arctan(gt_width / gt_height) - ops.arctan(width / height))
    rest = 1 - iou + shape  # 0 for a perfect box
    trade_off = ops.where((iou > 0.5) & (rest > 0), shape / ops.where(rest > 0, rest, 1.0), 0.0)
    ciou = iou - (_center_distance(a, b, epsilon) + ops.stop_gradient(trade_off) * shape)
    return 1 - ops.clip(ciou, -1.0, 1.0)


KINDS = {
    "giou": _giou,
    "diou": _diou,
    "ciou": _ciou,
    "iou": _log,
    "linear_iou": _linear,
    "square_iou": _square,
}


def _common(a, b):
    """Intersection area."""
    top_left = _even(ops.maximum, a[..., :2], b[..., :2])
    bottom_right = _even(ops.minimum, a[..., 2:], b[..., 2:])
    sides = _at_least(bottom_right - top_left, 0.0)
    return sides[..., 0] * sides[..., 1]


def _area(boxes):
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    return (right - left) * (bottom - top)


def _overlap_and_union(a, b, epsilon):
    common = _common(a, b)
    union = _at_least(_area(a) + _area(b) - common, epsilon)
    return common / union, union


def _iou_by_sum(a, b, epsilon):
    """IoU and union for DIoU and CIoU, where epsilon is added instead of a lower limit."""
    common = _common(a, b)
    union = _area(a) + _area(b) - common + epsilon
    return quotient(common, union), union


def _hull(a, b):
    """Width and height of the smallest box around both."""
    top_left = _even(ops.minimum, a[..., :2], b[..., :2])
    bottom_right = _even(ops.maximum, a[..., 2:], b[..., 2:])
    sides = _at_least(bottom_right - top_left, 0.0)
    return sides[..., 0], sides[..., 1]


def _center_distance(a, b, epsilon):
    """Squared distance of the centres over the squared diagonal of the hull."""
    width, height = _hull(a, b)
    apart = (b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]) / 2
    return ops.sum(ops.square(apart), axis=-1) / (ops.square(width) + ops.square(height) + epsilon)


def _center_and_size(boxes):
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    return x, y, boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _at_least(x, low):
    """max(x, low) whose gradient at x = low is that of x: a degenerate box still has a gradient."""
    return ops.where(x >= low, x, low)


def _even(choose, a, b):
    """minimum or maximum, gradient split between equal arguments: zero for a perfect box."""
    return ops.where(a == b, 0.5 * (a + b), choose(a, b))
