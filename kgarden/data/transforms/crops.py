"""Random crops of the stored image, before resizing."""

import tensorflow as tf

from kgarden.data import rng
from kgarden.data.transforms.base import CROP, Transform, check_part, check_range
from kgarden.data.transforms.geometry import area_of, cut, hw_of
from kgarden.structures import BOXES, CROWD, LABELS

IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # minimum IoUs of SSD's crop; the seventh choice is the whole image
TRIALS = 50
SIDE_RATIO = 2.0  # limit of the window's aspect ratio, relative to the image's


def random_crop(probability=0.5, fraction=(0.5, 1.0), min_visible=0.25):
    """Random crop whose height and width are independent fractions of the image's.

    An image with objects is not cropped if no object would remain.

    Args:
        probability: of applying it.
        fraction:    [low, high] of height and width.
        min_visible: objects with a smaller visible fraction are removed.
    """
    probability = check_part("random_crop.probability", probability)
    low, high = check_range("random_crop.fraction", fraction, 0.01, 1.0)
    min_visible = check_part("random_crop.min_visible", min_visible)

    def change(example, seed, partner):
        draws = rng.uniform(seed, 5)
        window = _windows(hw_of(example), rng.scale(low, high, draws[:2]), draws[2:4])
        left = _box_share(example[BOXES], window)
        objects = (example[LABELS] >= 0) & ~example[CROWD]
        useful = tf.reduce_any(objects & (left >= min_visible)) | ~tf.reduce_any(objects)
        taken = useful & (draws[4] < probability)
        return cut(example, tf.where(taken, window, _whole(example)), min_visible)

    return Transform(change, CROP)


def random_iou_crop(probability=0.5, side=(0.3, 1.0), min_visible=0.0):
    """Random crop of SSD: some object has at least a randomly drawn IoU with the window.

    Liu et al. 2016, arXiv:1512.02325, section 2.2. In one case of seven the image stays whole. Otherwise the
    first of 50 random windows is taken that has an aspect ratio between half and twice the image's, contains
    the centre of an object, and has an IoU with one of the objects of at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9,
    drawn per window; without such a window the image stays whole. Objects with centres outside are removed.

    Args:
        probability: of applying it.
        side:        [low, high], height and width of windows as fractions of the image's.
        min_visible: objects with a smaller visible fraction are removed, too.
    """
    probability = check_part("random_iou_crop.probability", probability)
    low, high = check_range("random_iou_crop.side", side, 0.01, 1.0)
    min_visible = check_part("random_iou_crop.min_visible", min_visible)

    def change(example, seed, partner):
        draws = rng.uniform(seed, 2 + 5 * TRIALS)
        trials = tf.reshape(draws[2:], [TRIALS, 5])
        fractions = rng.scale(low, high, trials[:, :2])
        windows = _windows(hw_of(example), fractions, trials[:, 2:4])
        min_iou = tf.gather(tf.constant(IOUS), tf.cast(trials[:, 4] * len(IOUS), tf.int32))
        good = _is_valid(example, windows, min_iou) & (draws[1] * (len(IOUS) + 1) < len(IOUS))
        ratio = fractions[:, 0] / fractions[:, 1]
        good &= (ratio <= SIDE_RATIO) & (ratio >= 1 / SIDE_RATIO)
        taken = tf.reduce_any(good) & (draws[0] < probability)
        window = tf.where(taken, windows[tf.argmax(good)], _whole(example))
        return cut(example, window, min_visible, by_center=True)

    return Transform(change, CROP)


def _windows(hw, fractions, positions):
    """Windows of whole px inside an image.   (..., 4) int32 yxyx

    Args:
        hw:        (2,) int, px.
        fractions: (..., 2) of height and width.
        positions: (..., 2) in [0, 1): relative position between the two extremes.
    """
    side = tf.cast(hw, tf.float32)
    size = tf.clip_by_value(tf.cast(tf.round(side * fractions), tf.int32), 1, hw)
    first = tf.cast(tf.cast(hw - size + 1, tf.float32) * positions, tf.int32)
    return tf.concat([first, first + size], axis=-1)


def _whole(example):
    return tf.concat([[0, 0], hw_of(example)], axis=0)


def _box_share(boxes, window):
    """Fraction of each box inside of windows.   (..., N), windows (..., 4) yxyx"""
    shared = _shared(boxes, window)
    return tf.math.divide_no_nan(shared, area_of(boxes))


def _shared(boxes, windows):
    windows = tf.cast(tf.gather(windows, [1, 0, 3, 2], axis=-1), tf.float32)[..., None, :]
    low, high = tf.maximum(boxes[:, :2], windows[..., :2]), tf.minimum(boxes[:, 2:], windows[..., 2:])
    return area_of(tf.concat([low, high], axis=-1))


def _is_valid(example, windows, min_iou):
    """Whether windows contain the centre of an object and reach the minimum IoU with one.   (T,) bool"""
    boxes = example[BOXES]
    objects = (example[LABELS] >= 0) & ~example[CROWD]
    shared = _shared(boxes, windows)  # (T, N)
    side = tf.cast(windows[:, 2:] - windows[:, :2], tf.float32)
    union = area_of(boxes) + (side[:, 0] * side[:, 1])[:, None] - shared
    iou = tf.math.divide_no_nan(shared, union)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2  # xy
    low, high = tf.cast(windows[:, None, 1::-1], tf.float32), tf.cast(windows[:, None, :1:-1], tf.float32)
    contained = objects & tf.reduce_all((center >= low) & (center < high), axis=-1)
    reached = objects & (iou >= min_iou[..., None])
    return tf.reduce_any(contained & (iou > 0), axis=1) & tf.reduce_any(reached, axis=1)
