"""RoIAlign on TensorFlow as one product with a sparse matrix of bins x cells.

On two CPU cores this takes about a third of the time of the dense product and needs no memory for gathered
features. Its shapes depend on the boxes, so that XLA cannot compile it.
"""

import tensorflow as tf

from kgarden.ops.gradients import custom_gradient


def pool(table, rois):
    """Weighted sum of every bin over its cells.

    Args:
        table: (N, D) float32, the cells of all levels and images.
        rois:  `_Rois` of `roi_align`: R boxes with S x S bins.
    Returns:
        (R * S * S, D) float32, differentiable with respect to `table`.
    """
    indices, values = entries(rois)
    bins = tf.size(rois.base, out_type=tf.int64) * rois.bins**2
    shape = (bins, tf.shape(table, out_type=tf.int64)[0])

    def matrix():  # rebuilt cheaply in the backward pass: a SavedModel cannot hold it
        return csr_matrix(indices, values, shape)

    @custom_gradient
    def product(table):
        def gradient(upstream):
            transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix(), type=tf.float32)
            return tf.raw_ops.SparseMatrixMatMul(a=transposed, b=upstream)

        return tf.raw_ops.SparseMatrixMatMul(a=matrix(), b=table), gradient

    return product(table)


def csr_matrix(indices, values, shape):
    """A sparse matrix from `entries`; `shape` is (rows, columns), int64."""
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.ensure_shape(indices, (None, 2)),
        values=tf.ensure_shape(values, (None,)),
        dense_shape=tf.stack(shape),
    )


def entries(rois, of_row=None, of_column=None):
    """Entries of the matrix: (E, 2) int64 bin and cell, ordered by bins; (E,) float32 weights.

    Each box has S x S bins of `tall` x `wide` cells, so that E depends on the boxes.

    Args:
        rois:              `_Rois` of `roi_align`, or `Bins` of `deform_roi_pool`.
        of_row, of_column: functions of cells that give the factors of a weight; None: those of the axes.
    """
    bins = rois.bins
    row_weights, rows, tall = _of_axis(rois.rows, of_row or rois.rows.weights)
    column_weights, columns, wide = _of_axis(rois.columns, of_column or rois.columns.weights)
    rows = tf.expand_dims(rois.base, 2) + rows * tf.expand_dims(rois.width, 2)  # first cell of the row

    of_bin = tall * wide
    length = of_bin * bins**2
    end = tf.cumsum(length)
    box = tf.cumsum(tf.scatter_nd(end[:-1, None], tf.ones_like(end[:-1]), end[-1:]))
    position = tf.range(end[-1]) - tf.gather(end - length, box)  # within the box, then within the bin
    of_bin, wide = tf.gather(of_bin, box), tf.gather(wide, box)
    bin_ = position // of_bin
    position = position - bin_ * of_bin
    row = position // wide
    column = position - row * wide
    at_row = (box * bins + bin_ // bins) * tf.shape(rows)[2] + row
    at_column = (box * bins + bin_ % bins) * tf.shape(columns)[2] + column

    cell = _pick(rows, at_row) + _pick(columns, at_column)
    value = _pick(row_weights, at_row) * _pick(column_weights, at_column)
    return tf.cast(tf.stack([box * bins**2 + bin_, cell], axis=1), tf.int64), value


def _of_axis(axis, weights_of):
    """Cells and weights of all bins along one axis, padded to the longest.

    Returns:
        weights: (R, S, K) float32.
        cells:   (R, S, K) int32, within the map.
        count:   (R,) int32, number of the K cells that a box uses.
    """
    first, last = axis.bin_windows()
    count = tf.cast(tf.reduce_max(last - first, axis=1), tf.int32) + 1
    cells = tf.expand_dims(first, 2) + tf.range(tf.cast(tf.reduce_max(count), tf.float32))
    weights = weights_of(cells)
    return weights, tf.cast(tf.minimum(cells, tf.expand_dims(axis.size - 1.0, 2)), tf.int32), count


def _pick(table, index):
    return tf.gather(tf.reshape(table, [-1]), index)
