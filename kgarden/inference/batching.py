"""Batching: pads a batch to a fixed number of rows, so that a compiled model is not traced again."""

import keras
import numpy as np


def pad_batch(batch, size: int):
    """Repeats the last row of every array until the batch has `size` rows.

    Args:
        batch: nested structure of arrays (n, ...), 1 <= n <= size.
        size:  rows of the padded batch.
    Returns:
        the same structure of numpy arrays (size, ...).
    """

    def padded(array):
        array = np.asarray(array)
        return np.concatenate([array, array[-1:].repeat(size - len(array), axis=0)])

    return keras.tree.map_structure(padded, batch)
