"""Horizontal and vertical flips."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.transforms.base import FINISH, Transform, check_part
from kgarden.data.transforms.geometry import flipped


def horizontal_flip(probability=0.5):
    """Random horizontal flip.

    Args:
        probability: of applying it.
    """
    return _flip(1, check_part("horizontal_flip.probability", probability))


def vertical_flip(probability=0.5):
    """Random vertical flip.

    Args:
        probability: of applying it.
    """
    return _flip(0, check_part("vertical_flip.probability", probability))


def _flip(axis, probability):
    def change(example, seed, partner):
        done = rng.uniform(seed)[0] < probability
        never = tf.zeros_like(done)
        return flipped(example, *((done, never) if axis == 0 else (never, done)))

    return Transform(change, FINISH, mirror=(axis, probability))
