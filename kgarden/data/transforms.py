"""Changes of a picture together with its boxes.

A transform is a function (example, seed) -> example, in TensorFlow and without state: the same example and
seed give the same result wherever and whenever it runs. The functions here make transforms from settings.

    example  {"image": (H, W, 3) uint8 RGB, "boxes": (N, 4) float32 xyxy px of this image,
              "labels": (N,) int32, -1: not an object, "crowd": (N,) bool, ...}; other keys pass through
    seed     (2,) int
"""

import tensorflow as tf

from kgarden.data import canvas


def chain(transforms):
    """One transform that does several in turn, each with a seed of its own."""

    def apply(example, seed):
        seeds = tf.unstack(tf.random.split(seed, len(transforms))) if transforms else ()
        for transform, own_seed in zip(transforms, seeds, strict=True):
            example = transform(example, own_seed)
        return example

    return apply


def resize(antialias=True):
    """To the size in example["target_hw"], (2,) int32."""

    def apply(example, seed):
        image, boxes = example["image"], example["boxes"]
        before, after = tf.shape(image)[:2], example["target_hw"]

        def resized():
            scale = tf.cast(after, tf.float32) / tf.cast(before, tf.float32)
            return canvas.resize(image, after, antialias), boxes * tf.gather(scale, [1, 0, 1, 0])

        image, boxes = tf.cond(tf.reduce_all(before == after), lambda: (image, boxes), resized)
        return {**example, "image": image, "boxes": boxes}

    return apply


def horizontal_flip(probability=0.5):
    """Left becomes right."""
    return _flip(1, probability)


def vertical_flip(probability=0.5):
    """Top becomes bottom."""
    return _flip(0, probability)


FLIPS = {"horizontal": horizontal_flip, "vertical": vertical_flip}


def _flip(axis, probability):
    low, high = (1, 3) if axis == 0 else (0, 2)  # columns of a box along the axis

    def apply(example, seed):
        def flipped():
            image, boxes = example["image"], example["boxes"]
            side = tf.cast(tf.shape(image)[axis], tf.float32)
            columns = tf.unstack(boxes, axis=-1)
            columns[low], columns[high] = side - columns[high], side - columns[low]
            return tf.reverse(image, [axis]), tf.stack(columns, axis=-1)

        image, boxes = tf.cond(
            tf.random.stateless_uniform([], seed) < probability,
            flipped,
            lambda: (example["image"], example["boxes"]),
        )
        return {**example, "image": image, "boxes": boxes}

    return apply
