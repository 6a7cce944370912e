"""Scale jitter: random scaling and cropping to the canvas in one step, instead of the plain resize."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.resize import resample
from kgarden.data.transforms.base import SIZE, Transform, check_part, check_range
from kgarden.data.transforms.geometry import IMAGE, hw_of, moved, trimmed


def scale_and_crop(scale=(0.1, 2.0), min_visible=0.0, antialias=True):
    """Scale jitter of EfficientDet: random scale, and a random crop if larger than the canvas.

    Tan et al. 2020, arXiv:1911.09070; with [0.1, 2] as the CenterNet2 release trains its EfficientDet-like
    models. The rest of the canvas is padding, excluded from `size_hw`.

    Args:
        scale:       [low, high], 1: the image just fits into its canvas.
        min_visible: objects with a smaller visible fraction are removed.
    """
    return _placed_on_canvas("scale_and_crop", scale, min_visible, antialias)


def large_scale_jitter(scale=(0.1, 2.0), min_visible=0.1, antialias=True):
    """Large scale jitter of copy-paste.

    Ghiasi et al. 2021, arXiv:2012.07177, section 3. The same operation as `scale_and_crop`, with the name and
    range of that paper, and a minimum visible fraction.

    Args:
        scale:       [low, high], 1: the image just fits into its canvas. Standard jitter is [0.8, 1.25].
        min_visible: objects with a smaller visible fraction are removed.
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
    """Size of a scaled image and origin of the crop window from uniform draws; float64, as the reference.

    Args:
        hw:             (..., 2) px of the image.
        target_hw:      (..., 2) px of the window.
        factor:         (...,) 1: the image just fits into the window.
        draw_y, draw_x: (...,) in [0, 1): relative position of the window.
    Returns:
        scaled_hw:  (..., 2) int32, px of the whole scaled image.
        offset:     (..., 2) int32, origin of the window in it.
        scale:      (...,) float64.
        visible_hw: (..., 2) int32, px of the part inside the window.
    """
    hw, target = tf.cast(hw, tf.float64), tf.cast(target_hw, tf.float64)
    scale = tf.reduce_min(tf.cast(factor, tf.float64)[..., None] * target / hw, axis=-1)
    scaled = tf.maximum(tf.floor(hw * scale[..., None]), 1.0)
    draws = tf.cast(tf.stack([draw_y, draw_x], axis=-1), tf.float64)
    offset = tf.floor(tf.maximum(scaled - target, 0.0) * draws)
    visible = tf.minimum(scaled, offset + target) - offset
    return tf.cast(scaled, tf.int32), tf.cast(offset, tf.int32), scale, tf.cast(visible, tf.int32)


def placed(example, place, min_visible, antialias=True):
    """Scale and crop an example by a `placement`, pixels and ground truth alike."""
    _, offset, scale, visible_hw = place
    scales = tf.stack([scale, scale])
    image = resample(
        example[IMAGE], visible_hw, scales, offset=tf.cast(offset, tf.float64), antialias=antialias
    )
    example = moved({**example, IMAGE: image}, scales, -offset)
    return trimmed(example, min_visible)
