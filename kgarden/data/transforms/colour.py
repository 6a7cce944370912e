"""Colour jitter; boxes do not change."""

import math

import numpy as np
import tensorflow as tf

from kgarden.data import rng
from kgarden.data.transforms.base import FINISH, Transform, check_part
from kgarden.data.transforms.geometry import IMAGE

GREY = np.float32([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
TO_YIQ = np.float32([GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def color_jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, probability=1.0):
    """Random brightness, contrast, saturation and hue, applied as one colour matrix.

    All four are affine in the pixel, so they are composed first: one product per pixel and one rounding at
    the end. Brightness scales; contrast interpolates with the image's mean grey; saturation interpolates with
    the pixel's own grey; hue rotates the chroma plane of YIQ.

    Args:
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue:         rotations are drawn from -x to x, 1 being a full turn.
        probability: of applying it.
    """
    reach = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    reach = [check_part(f"color_jitter.{name}", value) for name, value in reach.items()]
    probability = check_part("color_jitter.probability", probability)

    def change(example, seed, partner):
        draws = rng.uniform(seed, 5)
        bright, contrasted, saturated, turn = tf.unstack((2 * draws[:4] - 1) * reach)

        def jittered():
            matrix = _saturation(1 + saturated) @ _hue(turn)
            return _changed(example[IMAGE], 1 + bright, 1 + contrasted, matrix)

        image = tf.cond(draws[4] < probability, jittered, lambda: example[IMAGE])
        return {**example, IMAGE: image}

    return Transform(change, FINISH)


def _changed(image, bright, contrasted, matrix):
    pixels = tf.cast(image, tf.float32)
    grey = tf.reduce_sum(tf.reduce_mean(pixels, axis=[0, 1]) * GREY)
    matrix = bright * contrasted * matrix
    shift = bright * (1 - contrasted) * grey  # both matrices preserve grey
    pixels = tf.reshape(pixels, [-1, 3]) @ matrix + (shift + 0.5)
    return tf.cast(tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), tf.shape(image)), tf.uint8)


def _saturation(factor):
    """(3, 3) matrix, multiplied from the right to rows of RGB."""
    return factor * tf.eye(3) + (1 - factor) * tf.tile(tf.constant(GREY)[:, None], [1, 3])


def _hue(turn):
    angle = 2 * math.pi * turn
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    rotation = tf.stack(
        [tf.stack([zero + 1, zero, zero]), tf.stack([zero, cos, -sin]), tf.stack([zero, sin, cos])]
    )
    there, back = tf.constant(TO_YIQ), tf.constant(np.linalg.inv(TO_YIQ))
    return tf.transpose(back @ rotation @ there)
