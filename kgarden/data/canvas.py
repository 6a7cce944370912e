"""Resizing and padding of images to a canvas, the fixed input sizes of the network.

An image is scaled so that its shorter side is `short_side_px`, or less if its longer side would exceed
`long_side_px`, and placed in the upper left corner of a canvas, a fixed input size of the network. The canvas
depends on the image size alone. Training, Predictor and the exported graph share these functions, which are
pure TensorFlow so that a SavedModel can contain them.
"""

import tensorflow as tf

from kgarden.config.canvases import default_canvases
from kgarden.data.resize import resample


def fitted_hw(hw, short_side_px, long_side_px, limit_hw=None):
    """Size of an image after resizing.   (..., 2) int32

    scale = min(short / min(h, w), long / max(h, w)), and at most what fits into `limit_hw`; sides are
    rounded to the nearest integer, halves upwards. Integer arithmetic, so that every caller agrees.

    Args:
        hw:            (..., 2) int, px of the image.
        short_side_px: () int; long_side_px: () int.
        limit_hw:      (..., 2) int or None: the canvas.
    """
    hw = tf.cast(hw, tf.int64)
    shorter, longer = tf.reduce_min(hw, axis=-1), tf.reduce_max(hw, axis=-1)
    above = tf.cast(short_side_px, tf.int64) * tf.ones_like(shorter)
    below = shorter
    above, below = _smaller_fraction(above, below, tf.cast(long_side_px, tf.int64), longer)
    if limit_hw is not None:
        limit = tf.cast(limit_hw, tf.int64)
        above, below = _smaller_fraction(above, below, limit[..., 0], hw[..., 0])
        above, below = _smaller_fraction(above, below, limit[..., 1], hw[..., 1])
    size = (2 * hw * above[..., None] + below[..., None]) // (2 * below[..., None])
    return tf.cast(tf.maximum(size, 1), tf.int32)


def canvas_of(hw, canvases, short_side_px, long_side_px):
    """Canvas of an image: the first that holds it, else the one that allows the largest scale.

    Args:
        hw:       (..., 2) int, px of the image.
        canvases: (C, 2) int, [[height, width], ...].
        short_side_px, long_side_px: () int, the largest in use.
    Returns:
        (...,) int32, row of canvases.
    """
    hw, canvases = tf.cast(hw, tf.int32), tf.cast(canvases, tf.int32)
    size = fitted_hw(hw, short_side_px, long_side_px)
    holds = tf.reduce_all(size[..., None, :] <= canvases, axis=-1)  # (..., C)
    scale = tf.reduce_min(canvases / hw[..., None, :], axis=-1)
    return tf.where(
        tf.reduce_any(holds, axis=-1),
        tf.argmax(tf.cast(holds, tf.int32), axis=-1, output_type=tf.int32),
        tf.argmax(scale, axis=-1, output_type=tf.int32),
    )


def resize(image, size_hw, antialias=True):
    """Bilinear resizing with half-pixel centres.

    Args:
        image:   (H, W, 3) uint8.
        size_hw: (2,) int32.
    Returns:
        (h, w, 3) uint8, rounded to nearest.
    """
    image, size_hw = tf.convert_to_tensor(image), tf.convert_to_tensor(size_hw)
    scale = size_hw / tf.shape(image)[:2]
    return resample(image, size_hw, scale, antialias=antialias)


def resized(image, size_hw, antialias=True):
    """`resize`, or the image itself if it has that size."""
    same = tf.reduce_all(tf.shape(image)[:2] == size_hw)
    return tf.cond(same, lambda: image, lambda: resize(image, size_hw, antialias))


def pad_to_canvas(image, canvas_hw):
    """Pad with zeros below and to the right: (h, w, 3) -> (H, W, 3)."""
    missing = tf.cast(canvas_hw, tf.int32) - tf.shape(image)[:2]
    return tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])


def resize_to_canvas(image, short_side_px, long_side_px, canvases=None, antialias=True):
    """Resize an image and pad it to its canvas.

    Args:
        image:    (H, W, 3) uint8 RGB, array or tensor.
        canvases: [[height, width], ...] or None for `default_canvases`.
    Returns:
        canvas:  (Hc, Wc, 3) uint8, of static shape if there is one canvas.
        size_hw: (2,) int32, size of the image inside the canvas.
    """
    image = tf.convert_to_tensor(image)
    canvases = [list(c) for c in canvases or default_canvases(short_side_px, long_side_px)]
    hw = tf.shape(image)[:2]
    canvas_hw = tf.gather(canvases, canvas_of(hw, canvases, short_side_px, long_side_px))
    size_hw = fitted_hw(hw, short_side_px, long_side_px, canvas_hw)
    canvas = pad_to_canvas(resized(image, size_hw, antialias), canvas_hw)
    static = canvases[0] if len(canvases) == 1 else (None, None)
    return tf.ensure_shape(canvas, (*static, 3)), size_hw


def _smaller_fraction(above, below, other_above, other_below):
    """The smaller of above / below and other_above / other_below, as a fraction."""
    take = other_above * below < above * other_below
    return tf.where(take, other_above, above), tf.where(take, other_below, below)
