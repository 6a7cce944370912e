"""Ground truth padded or truncated to exactly M rows."""

import tensorflow as tf

from kgarden.data.transforms.geometry import area_of
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, PAD_LABEL

TRUTH = (BOXES, LABELS, CROWD, MASKS)


def pad_to_max_objects(truth, max_objects):
    """Pad or truncate the ground truth of a batch to M rows.

    Of more than M objects the largest are kept, in their order; crowd regions get the remaining rows.

    Args:
        truth: boxes (B, N, 4), labels (B, N) or -1 for padding, crowd (B, N), optionally masks (B, N, ...).
    Returns:
        dict with M rows instead of N; boxes, crowd and masks are zero where the label is -1.
    """
    truth = {key: truth[key] for key in TRUTH if key in truth}
    count = tf.shape(truth[LABELS])[1]

    def largest():
        area = area_of(truth[BOXES])
        rank = tf.where(truth[CROWD], area - 2.0**40, area)
        rank = tf.where(truth[LABELS] >= 0, rank, -float("inf"))
        rows = tf.sort(tf.math.top_k(rank, tf.minimum(count, max_objects)).indices, axis=1)
        return {key: tf.gather(value, rows, batch_dims=1) for key, value in truth.items()}

    truth = tf.cond(count > max_objects, largest, lambda: dict(truth))
    missing = max_objects - tf.minimum(count, max_objects)
    padded = {}
    for key, value in truth.items():
        if key != LABELS:
            valid = tf.reshape(
                truth[LABELS] >= 0, tf.concat([tf.shape(truth[LABELS]), [1] * (value.ndim - 2)], 0)
            )
            value = tf.where(valid, value, tf.zeros([], value.dtype))
        fill = PAD_LABEL if key == LABELS else tf.zeros([], value.dtype)
        value = tf.pad(value, [[0, 0], [0, missing], *[[0, 0]] * (value.ndim - 2)], constant_values=fill)
        padded[key] = tf.ensure_shape(value, (value.shape[0], max_objects, *value.shape[2:]))
    return padded


def in_rows_of_one(truth, max_objects):
    """`pad_to_max_objects` for the ground truth of one image."""
    truth = {key: truth[key][None] for key in TRUTH if key in truth}
    return {key: value[0] for key, value in pad_to_max_objects(truth, max_objects).items()}
