"""IoU losses on distances from a point to the four sides of a box (ltrb)."""

from keras import ops

from kgarden.errors import UserError


def ltrb_iou_loss(predicted, target, kind="giou", smoothing=1.0):
    """Computes the loss of each row.

    IoU: Yu et al. 2016, arXiv:1608.01471; GIoU: Rezatofighi et al. 2019, arXiv:1902.09630. The
    smoothing, added to intersection and union, is that of the FCOS and CenterNet releases.

    Args:
        predicted, target: (..., 4) distances l, t, r, b from the same point, in strides.
        kind:      "giou" 1 - GIoU, "iou" -log IoU, "linear_iou" 1 - IoU.
        smoothing: added to numerator and denominator of the IoU.
    Returns:
        (...,) float32.
    """
    left, top, right, bottom = ops.unstack(predicted, axis=-1)
    gt_left, gt_top, gt_right, gt_bottom = ops.unstack(target, axis=-1)
    area = (left + right) * (top + bottom)
    gt_area = (gt_left + gt_right) * (gt_top + gt_bottom)
    wide = _even(ops.minimum, left, gt_left) + _even(ops.minimum, right, gt_right)
    high = _even(ops.minimum, top, gt_top) + _even(ops.minimum, bottom, gt_bottom)
    intersection = wide * high
    union = area + gt_area - intersection
    iou = (intersection + smoothing) / (union + smoothing)
    if kind == "iou":
        return -ops.log(iou)
    if kind == "linear_iou":
        return 1 - iou
    if kind != "giou":
        raise UserError(f"box loss {kind!r}: one of giou, iou, linear_iou")
    hull_wide = _even(ops.maximum, left, gt_left) + _even(ops.maximum, right, gt_right)
    hull_high = _even(ops.maximum, top, gt_top) + _even(ops.maximum, bottom, gt_bottom)
    hull = hull_wide * hull_high
    return 1 - (iou - (hull - union) / hull)


def _even(choose, a, b):
    """minimum or maximum, gradient split between equal arguments: zero for a perfect box."""
    return ops.where(a == b, 0.5 * (a + b), choose(a, b))
