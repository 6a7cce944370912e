"""Bilinear resizing and cropping with antialiasing, twice as fast as `tf.image.resize`.

The triangle filter is separable. Each axis is a sparse matrix with one row per output pixel, so that the
result is `rows @ image @ columns^T`: two sparse products and two transpositions, equal to Pillow and to
`tf.image.resize(antialias=True)` except for the rounding of halves.
"""

import tensorflow as tf


def resample(image, size_hw, scale, offset=(0.0, 0.0), antialias=True):
    """Resample a window of the scaled image.

    Args:
        image:     (H, W, C) uint8.
        size_hw:   (2,) int32, px of the result.
        scale:     (2,) float32, output px per input px, along y and x.
        offset:    (2,) float32, origin of the window in the scaled image, px of the result.
        antialias: widen the filter when downsampling, so that every input pixel contributes.
    Returns:
        (h, w, C) uint8, rounded to nearest; zero outside of the image.
    """
    filtered = _antialiased if antialias else _plain
    smooth = filtered(
        image, tf.cast(size_hw, tf.int32), tf.cast(scale, tf.float64), tf.cast(offset, tf.float64)
    )
    return tf.ensure_shape(smooth, (None, None, image.shape[-1]))


def _resample(image, size_hw, scale, offset, antialias):
    height, width, channels = tf.unstack(tf.shape(image))
    rows = _filter(height, size_hw[0], scale[0], offset=offset[0], antialias=antialias)
    columns = _filter(width, size_hw[1], scale[1], offset=offset[1], antialias=antialias)
    flat = tf.reshape(tf.cast(image, tf.float32), [height, width * channels])
    flat = tf.reshape(_product(rows, flat), [size_hw[0], width, channels])
    flat = tf.reshape(tf.transpose(flat, [1, 0, 2]), [width, size_hw[0] * channels])
    flat = tf.reshape(_product(columns, flat), [size_hw[1], size_hw[0], channels])
    smooth = tf.transpose(flat, [1, 0, 2])
    # The weights of a pixel sum to 1 within 1e-7: 255 stays below 255.6, and the cast truncates.
    return tf.cast(smooth + 0.5, tf.uint8)


def _compiled(antialias):
    """`_resample` as a graph on the CPU, in eager mode too: eager sparse products use other instructions and
    would round one pixel in a million differently.
    """
    signature = [
        tf.TensorSpec((None, None, None), tf.uint8),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((2,), tf.float64),
        tf.TensorSpec((2,), tf.float64),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def resampled(image, size_hw, scale, offset):
        with tf.device("/CPU:0"):
            return _resample(image, size_hw, scale, offset=offset, antialias=antialias)

    return resampled


_antialiased, _plain = _compiled(True), _compiled(False)


def _filter(size_in, size_out, scale, offset, antialias):
    """The matrix that resamples one axis.   (size_out, size_in), sparse.

    Weights are computed in float64, so that graphs, which may turn a division into a multiplication, give the
    same float32 weights as eager mode.
    """
    one = tf.constant(1.0, tf.float64)
    radius = tf.maximum(one, one / scale) if antialias else one
    center = (tf.cast(tf.range(size_out), tf.float64) + 0.5 + offset) / scale - 0.5
    first = tf.cast(tf.math.ceil(center - radius), tf.int32)
    taps = 2 * tf.cast(tf.math.ceil(radius), tf.int32) + 1
    column = first[:, None] + tf.range(taps)  # (out, taps)
    weight = tf.maximum(0 * one, one - tf.abs(tf.cast(column, tf.float64) - center[:, None]) / radius)
    weight = tf.where((column >= 0) & (column < size_in), weight, 0 * one)
    weight = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, axis=1, keepdims=True))
    row = tf.broadcast_to(tf.range(size_out)[:, None], tf.shape(column))
    cell = tf.stack([row, tf.clip_by_value(column, 0, size_in - 1)], axis=-1)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(tf.reshape(cell, [-1, 2]), tf.int64),
        values=tf.cast(tf.reshape(weight, [-1]), tf.float32),
        dense_shape=tf.cast(tf.stack([size_out, size_in]), tf.int64),
    )


def _product(matrix, dense):
    return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=dense)
