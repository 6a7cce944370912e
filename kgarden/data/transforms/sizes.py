"""Scale jitter: resizes and crops an image to its canvas in one step, instead of the plain resize."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.resize import resample
from kgarden.data.transforms.base import SIZE, Transform, check_part, check_range
from kgarden.data.transforms.geometry import IMAGE, hw_of, moved, trimmed


def scale_and_crop(scale=(0.1, 2.0), min_visible=0.0, antialias=True):
    """EfficientDet's scaling: larger or smaller than the canvas, and if larger, a window of it.

    Tan et al. 2020, arXiv:1911.09070; with [0.1, 2] as the CenterNet2 release trains its EfficientDet-like
    models. What the image does not fill of its canvas is padding, and `size_hw` says so.

    Args:
        scale:       [low, high], 1: the image just fits into its canvas.
        min_visible: an object of which less is left becomes none.
    """
    return _placed_on_canvas("scale_and_crop", scale, min_visible, antialias)


def large_scale_jitter(scale=(0.1, 2.0), min_visible=0.1, antialias=True):
    """The large scale jitter of copy-paste.

    Ghiasi et al. 2021, arXiv:2012.07177, section 3. The same operation as `scale_and_crop`, under the name
    and with the range of that paper; scraps of objects at the border go.

    Args:
        scale:       [low, high], 1: the image just fits into its canvas. Standard jitter is [0.8, 1.25].
        min_visible: an object of which less is left becomes none.
    """
    return _placed_on_canvas("large_scale_jitter", scale, min_visible, antialias)


def _placed_on_canvas(name, scale, min_visible, antialias):
    low, high = check_range(f"{name}.scale", scale, 0.01, 10.0)
    min_visible = check_part(f"{name}.min_visible", min_visible)

    def change(example, seed, partner):
        draws = rng.uniform(seed, 3)
        factor = rng.scale(low, high, draws[0])
        place = placement(hw_of(example), example["canvas_hw"], factor, draw_y=draws[1], draw_x=draws[2])
        return placed(example, place, min_visible, antialias)

    return Transform(change, SIZE)


def placement(hw, target_hw, factor, draw_y, draw_x):
    """Where a scaled image lies behind a window, for given draws. In float64, as the reference computes it.

    Args:
        hw:             (..., 2) px of the image.
        target_hw:      (..., 2) px of the window.
        factor:         (...,) 1: the image just fits into the window.
        draw_y, draw_x: (...,) in [0, 1): the window's place along the room that there is.
    Returns:
        scaled_hw:  (..., 2) int32, px of the whole image when scaled.
        offset:     (..., 2) int32, where in it the window begins.
        scale:      (...,) float64.
        visible_hw: (..., 2) int32, px of the part behind the window.
    """
    hw, target = tf.cast(hw, tf.float64), tf.cast(target_hw, tf.float64)
    scale = tf.reduce_min(tf.cast(factor, tf.float64)[..., None] * target / hw, axis=-1)
    scaled = tf.maximum(tf.floor(hw * scale[..., None]), 1.0)
    draws = tf.cast(tf.stack([draw_y, draw_x], axis=-1), tf.float64)
    offset = tf.floor(tf.maximum(scaled - target, 0.0) * draws)
    visible = tf.minimum(scaled, offset + target) - offset
    return tf.cast(scaled, tf.int32), tf.cast(offset, tf.int32), scale, tf.cast(visible, tf.int32)


def placed(example, place, min_visible, antialias=True):
    """An image scaled and cut as `placement` says, pixels and truth by the same numbers."""
    _, offset, scale, visible_hw = place
    scales = tf.stack([scale, scale])
    image = resample(
        example[IMAGE], visible_hw, scales, offset=tf.cast(offset, tf.float64), antialias=antialias
    )
    example = moved({**example, IMAGE: image}, scales, -offset)
    return trimmed(example, min_visible)
