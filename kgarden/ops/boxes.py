"""Box operations: area, IoU, clipping, rescaling, and encoding and decoding of deltas.

Boxes are xyxy corners in px, continuous (no "+1"), float32. A box with x1 <= x0 or y1 <= y0 is empty: area 0,
IoU 0 with everything.
"""

import math

from keras import ops

from kgarden.ops.float32 import quotient

SCALE_CLAMP = math.log(1000.0 / 16)  # upper limit of decoded dw, dh, so that exp() does not explode


def area(boxes):
    """Area of each box, px^2.   (..., 4) -> (...,)."""
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    return ops.maximum(right - left, 0.0) * ops.maximum(bottom - top, 0.0)


def nonempty(boxes):
    """Mask of boxes with positive width and height.   (..., 4) -> (...,) bool."""
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    return (right > left) & (bottom > top)


def intersection(a, b):
    """Intersection area of every pair of boxes, px^2.   (..., N, 4), (..., M, 4) -> (..., N, M)."""
    left, top, right, bottom = ops.unstack(ops.expand_dims(a, -2), axis=-1)
    left_b, top_b, right_b, bottom_b = ops.unstack(ops.expand_dims(b, -3), axis=-1)
    width = ops.minimum(right, right_b) - ops.maximum(left, left_b)
    height = ops.minimum(bottom, bottom_b) - ops.maximum(top, top_b)
    return ops.maximum(width, 0.0) * ops.maximum(height, 0.0)


def iou(a, b):
    """Intersection over union of every pair of boxes, 0 for disjoint ones.

    Args:
        a: (..., N, 4) xyxy, px.
        b: (..., M, 4) xyxy, px.
    Returns:
        (..., N, M) in [0, 1].
    """
    common = intersection(a, b)
    union = ops.expand_dims(area(a), -1) + ops.expand_dims(area(b), -2) - common
    return ops.where(common > 0, quotient(common, ops.where(common > 0, union, 1.0)), 0.0)


def clip(boxes, size_hw, least_px=0.0):
    """Clip boxes to their image.

    Args:
        boxes:   (B, N, 4) xyxy, px.
        size_hw: (B, 2) height and width of the image inside the canvas, px, any dtype.
        least_px: width and height that boxes outside keep, at the border.
    Returns:
        (B, N, 4) with x in [0, width] and y in [0, height].
    """
    height, width = ops.split(ops.cast(size_hw, boxes.dtype), 2, axis=1)  # (B, 1) each
    limit = ops.stack([width, height, width, height], axis=-1)  # (B, 1, 4)
    if not least_px:
        return ops.clip(boxes, 0.0, limit)
    least = ops.convert_to_tensor([0.0, 0.0, least_px, least_px], dtype=boxes.dtype)
    return ops.clip(boxes, least, limit - ops.flip(least))


def mirror(boxes, size_hw):
    """Boxes of the horizontally flipped image: x becomes width - x, continuous (no "+1").

    Args:
        boxes:   (B, N, 4) xyxy, px.
        size_hw: (B, 2) height and width of the image inside the canvas, px, any dtype.
    Returns:
        (B, N, 4).
    """
    width = ops.cast(size_hw, boxes.dtype)[:, 1:]
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    return ops.stack([width - right, top, width - left, bottom], axis=-1)


def rescale(boxes, size_hw, other_hw):
    """Rescale boxes from one image size to another.

    Args:
        boxes:    (B, N, 4) xyxy, px of the image at `size_hw`.
        size_hw:  (B, 2) height and width, px, any dtype.
        other_hw: (B, 2) likewise.
    Returns:
        (B, N, 4) float32.
    """
    size_xy, other_xy = (ops.cast(ops.flip(hw, axis=-1), "float32")[:, None] for hw in (size_hw, other_hw))
    scale = other_xy / size_xy  # (B, 1, 2)
    return boxes * ops.concatenate([scale, scale], axis=-1)


def encode_deltas(boxes, targets, weights=(1.0, 1.0, 1.0, 1.0), plus_one=False):
    """Encode targets as deltas dx, dy, dw, dh relative to boxes.

        dx = wx (target centre x - box centre x) / box width       dw = ww log(target width / box width)

    R-CNN, Girshick et al. 2014 (arXiv:1311.2524), appendix C.

    Args:
        boxes:   (..., 4) xyxy, px: anchors or proposals.
        targets: (..., 4) xyxy, px; broadcast against `boxes`.
        weights: wx, wy, ww, wh: inverse standard deviations of the deltas.
        plus_one: a box from 0 to 15 is 16 px wide, as in maskrcnn-benchmark and mmdetection 1.
    Returns:
        (..., 4) deltas; finite but meaningless for an empty box or target.
    """
    x, y, width, height = _center_and_size(boxes, plus_one)
    target_x, target_y, target_width, target_height = _center_and_size(targets, plus_one)
    wx, wy, ww, wh = weights
    width, height = _positive(width), _positive(height)
    return ops.stack(
        [
            wx * (target_x - x) / width,
            wy * (target_y - y) / height,
            ww * ops.log(_positive(target_width) / width),
            wh * ops.log(_positive(target_height) / height),
        ],
        axis=-1,
    )


def decode_deltas(
    deltas,
    boxes,
    weights=(1.0, 1.0, 1.0, 1.0),
    scale_clamp=SCALE_CLAMP,
    clamp_below=False,
    plus_one=False,
):
    """Decode deltas relative to boxes: the inverse of `encode_deltas`.

    Args:
        deltas:  (..., 4) dx, dy, dw, dh; class-specific ones as (..., C, 4) with boxes (..., 1, 4).
        boxes:   (..., 4) xyxy, px; broadcast against `deltas`.
        weights: wx, wy, ww, wh as in `encode_deltas`.
        scale_clamp: upper limit of dw and dh.
        clamp_below: also clamp at -scale_clamp (mmdetection); otherwise no lower limit (detectron2).
        plus_one: see `encode_deltas`.
    Returns:
        (..., 4) xyxy, px, not clipped.
    """
    x, y, width, height = _center_and_size(boxes, plus_one)
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = ops.unstack(deltas, axis=-1)
    dw, dh = ops.minimum(dw / ww, scale_clamp), ops.minimum(dh / wh, scale_clamp)
    if clamp_below:
        dw, dh = ops.maximum(dw, -scale_clamp), ops.maximum(dh, -scale_clamp)
    x, y = dx / wx * width + x, dy / wy * height + y
    half_width = 0.5 * ops.exp(dw) * width
    half_height = 0.5 * ops.exp(dh) * height
    one = 1.0 if plus_one else 0.0
    right, bottom = x + half_width - one, y + half_height - one
    return ops.stack([x - half_width, y - half_height, right, bottom], axis=-1)


def enlarge(boxes, factor, plus_one=False):
    """Scale boxes about their centres, without clipping.

    Args:
        boxes:    (..., 4) xyxy, px.
        factor:   of width and height.
        plus_one: see `encode_deltas`.
    Returns:
        (..., 4) xyxy, px.
    """
    x, y, width, height = _center_and_size(boxes, plus_one)
    one = 1.0 if plus_one else 0.0
    half_width, half_height = 0.5 * factor * width, 0.5 * factor * height
    right, bottom = x + half_width - one, y + half_height - one
    return ops.stack([x - half_width, y - half_height, right, bottom], axis=-1)


def to_ltrb(points, boxes):
    """Distances from points to the left, top, right and bottom side of boxes; negative outside.

    FCOS, Tian et al. 2019 (arXiv:1904.01355), Eq. 1.

    Args:
        points: (..., 2) xy, in any unit.
        boxes:  (..., 4) xyxy, in the same unit; broadcast against `points`.
    Returns:
        (..., 4) in that unit.
    """
    return ops.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def from_ltrb(points, ltrb):
    """Decode distances to the four sides: the inverse of `to_ltrb`.   (..., 4) xyxy."""
    return ops.concatenate([points - ltrb[..., :2], points + ltrb[..., 2:]], axis=-1)


def centers(boxes):
    """Centre of each box.   (..., 4) -> (..., 2) xy."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _center_and_size(boxes, plus_one=False):
    """xyxy -> centre x, centre y, width, height, each (...)."""
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    one = 1.0 if plus_one else 0.0
    width, height = right - left + one, bottom - top + one
    return left + 0.5 * width, top + 0.5 * height, width, height


def _positive(size):
    """Sizes that are safe to divide by and to take the logarithm of; 1 for empty boxes."""
    return ops.where(size > 0, size, 1.0)
