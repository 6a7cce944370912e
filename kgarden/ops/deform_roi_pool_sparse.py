"""Deformable RoI pooling on TensorFlow as products with sparse matrices of bins x cells.

As `roi_align_sparse`; the gradient by the offsets is one more product, with the slopes of rows and columns.
"""

import tensorflow as tf

from kgarden.ops.gradients import custom_gradient
from kgarden.ops.roi_align_sparse import csr_matrix, entries


def pool(table, bins):
    """Weighted sum of every bin over its cells.

    Args:
        table: (N, D) float32, the cells of all levels and images.
        bins:  `Bins` of `deform_roi_pool`, R of them.
    Returns:
        (R, D) float32, differentiable with respect to `table` and the offsets of `bins`.
    """
    count, cells = tf.size(bins.base, out_type=tf.int64), tf.shape(table, out_type=tf.int64)[0]

    @custom_gradient
    def product(table, down, right):
        moved = bins.with_shifts(down, right)
        indices, values = entries(moved)

        def gradient(upstream):
            matrix = csr_matrix(indices, values, (count, cells))  # a SavedModel cannot hold it
            transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
            of_table = tf.raw_ops.SparseMatrixMatMul(a=transposed, b=upstream)
            slopes = [
                entries(moved, of_row=moved.rows.slopes)[1],
                entries(moved, of_column=moved.columns.slopes)[1],
            ]
            of_shifts = [
                tf.raw_ops.SparseMatrixMatMul(a=csr_matrix(indices, slope, (count, cells)), b=table)
                for slope in slopes
            ]
            return of_table, *(tf.reduce_sum(one * upstream, 1, keepdims=True) for one in of_shifts)

        return tf.raw_ops.SparseMatrixMatMul(a=csr_matrix(indices, values, (count, cells)), b=table), gradient

    return product(table, bins.rows.shift, bins.columns.shift)
