"""Sampling of a deformable convolution: what its kernel sees at every output cell.

Dai et al. 2017, arXiv:1703.06211, Eq. 2 to 4 (v1); with masks: Zhu et al. 2018, arXiv:1811.11168, Eq. 1 (v2).
"""

import keras
from keras import ops

from kgarden.ops.gradients import custom_gradient


def deformed_taps(x, offsets, masks=None, *, kernel_size=3, strides=1, dilation=1):
    """The features under the taps of a kernel whose taps are moved by offsets.

    Tap (i, j) of output cell (r, s) reads x bilinearly in row r * strides + (i - half) * dilation + dy, and
    likewise for columns; the map is zero outside. The padding is (kernel_size // 2) * dilation on all sides.

    Positions are computed in float32 whatever the dtype of x. Nothing but x, offsets and masks is kept for
    the backward pass.

    Args:
        x:       (B, H, W, D).
        offsets: (B, H', W', G * T * 2), cells of x: for each of G groups of channels and each of the
                 T = kernel_size ** 2 taps, row by row, dy and dx.
        masks:   (B, H', W', G * T), factors of the taps, or None.
        kernel_size, strides, dilation: ints.
    Returns:
        (B, H', W', T, D), in the dtype of x.
    """
    batch, (height, width, depth) = ops.shape(x)[0], x.shape[1:]
    rows, columns = offsets.shape[1:3]
    taps = kernel_size**2
    groups = offsets.shape[-1] // (2 * taps)
    moved = ops.reshape(ops.cast(offsets, "float32"), (-1, rows, columns, groups, taps, 2))
    down, right = _regular_grid(rows, columns, kernel_size=kernel_size, strides=strides, dilation=dilation)
    y_cells, y_weights = _neighbours(moved[..., 0] + down, height)
    x_cells, x_weights = _neighbours(moved[..., 1] + right, width)
    if masks is not None:
        masks = ops.reshape(ops.cast(masks, "float32"), (-1, rows, columns, groups, taps))
        y_weights = [weight * masks for weight in y_weights]

    image = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1, 1, 1))
    group = ops.reshape(ops.arange(groups, dtype="int32"), (1, 1, 1, -1, 1))

    def by_tap(value):
        """(B, H', W', G, T) -> rows of the result, (B * H' * W' * T * G,)."""
        return ops.reshape(ops.transpose(value, (0, 1, 2, 4, 3)), (-1,))

    cells, weights = [], []
    for y_cell, y_weight in zip(y_cells, y_weights, strict=True):
        for x_cell, x_weight in zip(x_cells, x_weights, strict=True):
            cells.append(by_tap(((image * height + y_cell) * width + x_cell) * groups + group))
            weights.append(by_tap(y_weight * x_weight))
    table = ops.reshape(x, (-1, depth // groups))
    found = _weighted_rows(table, ops.stack(weights), cells)
    return ops.reshape(found, (-1, rows, columns, taps, depth))


def _regular_grid(rows, columns, kernel_size, strides, dilation):
    """Positions of the taps without offsets, cells of the input: rows (H', 1, 1, T), columns (W', 1, T)."""
    tap = (ops.arange(kernel_size, dtype="float32") - kernel_size // 2) * dilation
    tap_row = ops.reshape(ops.repeat(tap, kernel_size), (1, -1))
    tap_column = ops.reshape(ops.tile(tap, kernel_size), (1, -1))
    down = ops.arange(rows, dtype="float32")[:, None, None, None] * strides + tap_row
    right = ops.arange(columns, dtype="float32")[:, None, None] * strides + tap_column
    return down, right


def _neighbours(position, length):
    """The two cells beside each position along one axis, and their weights: 0 outside the map.

    Returns:
        [before, after] int32 within the map, [weight of before, weight of after] float32.
    """
    position = ops.clip(position, -2.0, length + 1.0)  # what lies further out is zero anyway
    before = ops.floor(position)
    part = position - before
    cells, weights = [], []
    for cell, weight in ((before, 1.0 - part), (before + 1.0, part)):
        inside = ops.logical_and(cell >= 0, cell <= length - 1)
        cells.append(ops.clip(ops.cast(cell, "int32"), 0, length - 1))  # as integers: clipped NaN stays NaN
        weights.append(weight * ops.cast(inside, "float32"))
    return cells, weights


def _weighted_rows(table, weights, cells):
    """Weighted sums of rows of a table; gathered rows are not kept for the gradient but gathered again.

    Args:
        table:   (R, D).
        weights: (K, N) float32.
        cells:   list of K arrays (N,) int32, rows of the table.
    Returns:
        (N, D).
    """
    if keras.backend.backend() == "jax":  # inside of `keras.remat`, a custom gradient would leak the cells
        return keras.remat(_sum_of_rows)(table, weights, *cells)

    @custom_gradient
    def weighted(table, weights):
        def gradient(upstream):
            of_rows = ops.cast(weights, table.dtype)
            of_table = sum(
                ops.segment_sum(upstream * of_rows[number][:, None], rows, num_segments=ops.shape(table)[0])
                for number, rows in enumerate(cells)
            )
            of_weights = [
                ops.sum(ops.cast(ops.take(table, rows, axis=0) * upstream, "float32"), axis=-1)
                for rows in cells
            ]
            return of_table, ops.stack(of_weights)

        return _sum_of_rows(table, weights, *cells), gradient

    return weighted(table, weights)


def _sum_of_rows(table, weights, *cells):
    weights = ops.cast(weights, table.dtype)
    return sum(ops.take(table, rows, axis=0) * weights[number][:, None] for number, rows in enumerate(cells))
