"""Mosaic and mixup: augmentations that combine several images."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.transforms.base import FINISH, SIZE, Transform, check_part, check_range
from kgarden.data.transforms.geometry import FRAMES, IMAGE, hw_of, moved, resize
from kgarden.data.transforms.sizes import placed, placement
from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, LABELS, MASKS

TRUTH = (BOXES, LABELS, CROWD, MASKS, FRAMES)


def mosaic(probability=1.0, scale=(0.8, 1.6), center=(0.3, 0.7), fill=114, min_visible=0.1, antialias=True):
    """Mosaic of four images around a random point of the canvas.

    Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3. Each image is scaled, and a window of it is placed
    in its quadrant; an image smaller than its quadrant touches the point. The result fills the canvas of the
    first image: `size_hw` is the canvas, and uncovered pixels are grey, not padding.

    Args:
        probability: of applying it; otherwise the image is resized as usual.
        scale:       [low, high] for each image, 1: it just fits into its quadrant.
        center:      [low, high], range of the point as a fraction of the canvas' sides.
        fill:        0..255, grey value of uncovered pixels.
        min_visible: objects with a smaller visible fraction are removed.
    """
    probability = check_part("mosaic.probability", probability)
    scale = check_range("mosaic.scale", scale, 0.01, 10.0)
    center = check_range("mosaic.center", center, 0.05, 0.95)
    min_visible = check_part("mosaic.min_visible", min_visible)
    if fill not in range(256):
        raise UserError(f"augment: mosaic.fill: {fill} is not an integer from 0 to 255")

    def change(example, seed, partner):
        draws = rng.uniform(seed, 15)
        height, width = tf.unstack(example["canvas_hw"])
        point = tf.cast(tf.cast(example["canvas_hw"], tf.float32) * rng.scale(*center, draws[1:3]), tf.int32)
        heights, widths = (point[0], height - point[0]), (point[1], width - point[1])

        def quadrant(number):
            below, beside = divmod(number, 2)
            own = example if number == 0 else partner(number - 1)
            corner = tf.stack([below * point[0], beside * point[1]])
            hw = tf.stack([heights[below], widths[beside]])
            factor, draw_y, draw_x = tf.unstack(draws[3 + 3 * number : 6 + 3 * number])
            place = placement(hw_of(own), hw, rng.scale(*scale, factor), draw_y=draw_y, draw_x=draw_x)
            own = placed(own, place, min_visible, antialias)
            room = hw - place[3]
            before = tf.where([below == 0, beside == 0], room, 0)  # grey px above and to the left
            padding = tf.stack([before, room - before], axis=1)
            image = tf.pad(own[IMAGE], tf.concat([padding, [[0, 0]]], axis=0), constant_values=fill)
            return moved({**own, IMAGE: image}, shift=corner + before)

        def four():
            parts = [quadrant(number) for number in range(4)]
            rows = [tf.concat([left[IMAGE], right[IMAGE]], axis=1) for left, right in (parts[:2], parts[2:])]
            return together({**example, IMAGE: tf.concat(rows, axis=0)}, *parts)

        return either(draws[0] < probability, four, lambda: resize(antialias)(example), example)

    return Transform(change, SIZE, partners=3)


def mixup(probability=0.5, alpha=8):
    """Mixup: blend of two images, with the objects of both.

    Zhang et al. 2018, arXiv:1710.09412; for detection, without deforming either: Zhang et al. 2019,
    arXiv:1902.04103. The result covers both images; outside of one of them the other keeps its own blending
    weight. The weight of the first is drawn from Beta(alpha, alpha). Objects are not weighted in the loss, so
    it should be near 1/2.

    Args:
        probability: of applying it.
        alpha:       integer from 1: 1 draws any weight, 8 mostly from 0.3 to 0.7.
    """
    probability = check_part("mixup.probability", probability)
    if isinstance(alpha, bool) or not isinstance(alpha, int) or not 1 <= alpha <= 100:
        raise UserError(f"augment: mixup.alpha: {alpha} is not an integer from 1 to 100")

    def change(example, seed, partner):
        draws = rng.uniform(seed, 2 * alpha)
        weight = tf.sort(draws[1:])[alpha - 1]  # the median of 2a - 1 uniform draws is Beta(a, a)

        def two():
            other = partner(0)
            hw = tf.maximum(hw_of(example), hw_of(other))
            first, second = (tf.cast(_grown(one[IMAGE], hw), tf.float32) for one in (example, other))
            blended = tf.cast(weight * first + (1 - weight) * second + 0.5, tf.uint8)
            return together({**example, IMAGE: blended}, example, other)

        return either(draws[0] < probability, two, lambda: example, example)

    return Transform(change, FINISH, partners=1)


def together(example, *parts):
    """An example with the concatenated objects of several."""
    keys = [key for key in TRUTH if key in example]
    return {**example, **{key: tf.concat([part[key] for part in parts], axis=0) for key in keys}}


def _grown(image, hw):
    missing = hw - tf.shape(image)[:2]
    return tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])


def either(condition, then, otherwise, example):
    """tf.cond over the keys that transforms change; partners are decoded only in the branch taken."""
    keys = [IMAGE, *(key for key in TRUTH if key in example)]

    def changed(function):
        result = function()
        return {key: result[key] for key in keys}

    return {**example, **tf.cond(condition, lambda: changed(then), lambda: changed(otherwise))}
