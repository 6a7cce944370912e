"""Geometry of transforms: crops, scaling and flips of images, boxes and masks, and which objects are kept.

A removed object gets label -1, the padding label; rows are never dropped, so that they stay aligned.
"""

import tensorflow as tf

from kgarden.data.canvas import fitted_hw
from kgarden.data.resize import resample
from kgarden.data.transforms import masks
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, PAD_LABEL

IMAGE = "image"
FRAMES = masks.FRAMES


def hw_of(example):
    return tf.shape(example[IMAGE])[:2]


def moved(example, scale=None, shift=None):
    """Scale and shift boxes and mask frames; `scale` and `shift` (px) are (2,) along y and x."""
    changed = {}
    for key in (BOXES, FRAMES):
        if key in example:
            boxes = example[key]
            if scale is not None:
                boxes = boxes * tf.gather(tf.cast(scale, tf.float32), [1, 0, 1, 0])
            if shift is not None:
                boxes = boxes + tf.gather(tf.cast(shift, tf.float32), [1, 0, 1, 0])
            changed[key] = boxes
    return {**example, **changed}


def trimmed(example, min_visible, area_yxyx=None, by_center=False):
    """Clip boxes to a rectangle; objects with too small a visible part are removed.

    An object inside is kept. A clipped one is kept if at least `min_visible` of its mask, or of its box if it
    has no mask, is inside and both sides of the rest are at least 1 px; if its mask was cut, the box shrinks
    to the rest. A crowd region is kept as long as 1 px of it is inside, since it masks out a region of the
    loss.

    Args:
        min_visible: minimum visible fraction of the object's area.
        area_yxyx:   (4,) px; None: the image.
        by_center:   remove objects with centres outside, too.
    """
    boxes, labels = example[BOXES], example[LABELS]
    if area_yxyx is None:
        area_yxyx = tf.concat([[0, 0], hw_of(example)], axis=0)
    top, left, bottom, right = tf.unstack(tf.cast(area_yxyx, tf.float32))
    low, high = tf.stack([left, top, left, top]), tf.stack([right, bottom, right, bottom])
    clipped = tf.clip_by_value(boxes, low, high)
    inside = tf.math.divide_no_nan(area_of(clipped), area_of(boxes))
    if MASKS in example:
        clipped, inside = masks.closed_up(example, clipped, inside)
    sides = clipped[:, 2:] - clipped[:, :2]
    stays = (inside >= min_visible) | example[CROWD]
    if by_center:
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        stays &= tf.reduce_all((center >= low[:2]) & (center < high[:2]), axis=1) | example[CROWD]
    stays &= tf.reduce_all(sides >= 1 - 1e-3, axis=1)
    stays |= tf.reduce_all(clipped == boxes, axis=1)
    labels = tf.where(stays, labels, PAD_LABEL)
    return {**example, BOXES: clipped, LABELS: labels, CROWD: example[CROWD] & (labels >= 0)}


def cut(example, window, min_visible, by_center=False):
    """Crop the image to a window, and recompute its target size.

    Args:
        window: (4,) int32 yxyx, inside the image.
        example, min_visible, by_center: see `trimmed`.
    """
    top, left, bottom, right = tf.unstack(window)
    example = moved(example, shift=-tf.stack([top, left]))
    example = {**example, IMAGE: example[IMAGE][top:bottom, left:right]}
    return aimed(trimmed(example, min_visible, by_center=by_center))


def aimed(example):
    """Set the target size on the canvas from the current image size."""
    size = fitted_hw(hw_of(example), example["short_side_px"], example["long_side_px"], example["canvas_hw"])
    return {**example, "target_hw": size}


def resize(antialias=True):
    """Build a function that resizes an example to its "target_hw", (2,) int32."""

    def apply(example):
        before, after = hw_of(example), example["target_hw"]

        def resized():
            return resample(example[IMAGE], after, after / before, antialias=antialias)

        image = tf.cond(tf.reduce_all(before == after), lambda: example[IMAGE], resized)
        example = moved({**example, IMAGE: image}, scale=after / before)
        side = tf.cast(tf.gather(after, [1, 0, 1, 0]), tf.float32)
        return {**example, BOXES: tf.minimum(example[BOXES], side)}  # float32 may round across the border

    return apply


def flipped(example, vertical, horizontal):
    """Flip an example vertically, horizontally, both or not at all.

    Args:
        vertical, horizontal: () bool.
    """
    changed = {IMAGE: mirrored_pixels(example[IMAGE], vertical, horizontal)}
    for key in (BOXES, FRAMES):
        if key in example:
            changed[key] = mirrored(example[key], hw_of(example), vertical, horizontal)
    if MASKS in example:
        bits = example[MASKS]
        bits = tf.cond(vertical, lambda: tf.reverse(bits, [1]), lambda: bits)
        changed[MASKS] = tf.cond(horizontal, lambda: tf.reverse(bits, [2]), lambda: bits)
    return {**example, **changed}


def mirrored_pixels(image, vertical, horizontal):
    """Flip an image; by a gather of rows, which is faster than tf.reverse, or not at all."""
    last = tf.shape(image)[0] - 1
    rows = tf.range(last, -1, -1)
    image = tf.cond(vertical, lambda: tf.gather(image, rows), lambda: image)
    return tf.cond(horizontal, lambda: tf.reverse(image, [1]), lambda: image)


def mirrored(boxes, size_hw, vertical, horizontal):
    """Boxes of a flipped image.

    Args:
        boxes:    (..., N, 4) xyxy px.
        size_hw:  (..., 2) px of the image.
        vertical, horizontal: (...,) bool.
    """
    height, width = tf.unstack(tf.cast(size_hw, tf.float32)[..., None], axis=-2)  # (..., 1) each
    x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
    vertical, horizontal = (
        tf.convert_to_tensor(vertical)[..., None],
        tf.convert_to_tensor(horizontal)[..., None],
    )
    x0, x1 = tf.where(horizontal, width - x1, x0), tf.where(horizontal, width - x0, x1)
    y0, y1 = tf.where(vertical, height - y1, y0), tf.where(vertical, height - y0, y1)
    return tf.stack([x0, y0, x1, y1], axis=-1)


def area_of(boxes):
    """Box area in px^2.   (...,)"""
    left, top, right, bottom = tf.unstack(boxes, axis=-1)
    return tf.maximum(right - left, 0.0) * tf.maximum(bottom - top, 0.0)
