"""Rows of each image's array.

Keras' `ops.take_along_axis` takes an index for every number, so that the row of a box is repeated four times
and that of a mask 12,544 times; TensorFlow's own gather takes one for every row.
"""

import keras
from keras import ops


def gather(array, rows, batch_dims=1):
    """Rows of an array, different ones for each image of the batch, as `tf.gather`.

    Rows outside of the array raise an error, are zeros or are others, by backend and device.

    Args:
        array:      (*batch, N, ...), `batch_dims` dimensions of the batch.
        rows:       (*batch, *K) int, 0 to N - 1; K are any number of dimensions.
        batch_dims: dimensions that both have in common; 0: rows of one array for all images.
    Returns:
        (*batch, *K, ...).
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(array, rows, axis=batch_dims, batch_dims=batch_dims)
    if not batch_dims:
        return ops.take(array, rows, axis=0)
    batch, further = ops.shape(rows)[:batch_dims], ops.shape(array)[batch_dims + 1 :]
    flat = ops.reshape(rows, (*batch, -1, *(1 for _ in further)))
    chosen = ops.take_along_axis(array, flat, axis=batch_dims)
    return ops.reshape(chosen, (*ops.shape(rows), *further))
