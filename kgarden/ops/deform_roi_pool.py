"""Deformable RoI pooling: RoIAlign whose bins are moved by learned offsets, differentiable in both.

Dai et al. 2017, arXiv:1703.06211, Eq. 5 and 6, without position-sensitive channels. Bin (i, j) of a box of
w x h cells averages n x n bilinear samples, all of them moved by gamma w dx_ij and gamma h dy_ij. In a bin
sample positions are still products of rows and columns, so that the mean is

    out[i, j] = sum over cells (y, x) of  rows[i, j, y] * columns[i, j, x] * features[y, x]

as in `roi_align`, except that every bin has rows and columns of its own: each is a RoI of one bin. Its
gradient by an offset is the same sum with the derivatives of the rows or of the columns.

Two forms:

                        released (TSD)                      aligned (mmcv's DeformRoIPool)
    box                 rounded to whole px, >= 0.1 cells   as it is
    sample k of n       (k / n) of the bin                  ((k + 1/2) / n) of the bin
    outside             beyond the border cells: left out   more than a cell beyond the map: 0
    divisor             samples that count                  all samples

There are two implementations with the same numbers, as of RoIAlign: `_dense` here, and the sparse product of
`deform_roi_pool_sparse`.
"""

from keras import ops

from kgarden.ops import roi_align
from kgarden.ops.gradients import custom_gradient

LEAST_CELLS = 0.1  # width and height of a box, released form
CANONICAL = {"canonical_level": 4, "canonical_size": 224}


def deform_roi_pool(
    pyramid,
    strides,
    boxes,
    offsets=None,
    output_size=7,
    samples=4,
    gamma=0.1,
    aligned=False,
    plus_one=False,
    levels=None,
):
    """Pools the features of each box, every bin moved by its offset.

    Args:
        pyramid:     list of (B, H_l, W_l, D), H_l and W_l static.
        strides:     of the levels in px, powers of two.
        boxes:       (B, P, 4) xyxy, px; no gradient flows to them.
        offsets:     (B, P, S, S, 2) dx, dy, in box widths and heights over gamma; or (B, P, 1, 1, 2), one for
                     all bins; None: 0.
        output_size: S, bins along each side.
        samples:     n along each side of a bin; 0, aligned form only: as many as the bin has cells.
        gamma:       factor on the offsets.
        aligned:     which form, see above.
        plus_one:    boxes name their last px, so that one from 0 to 15 is 16 px wide; released form only.
        levels:      (B, P) int32, position in `strides`; None: by the boxes' sizes, see `assign_levels`.
    Returns:
        (B, P, S, S, D) in the dtype of the pyramid, computed in float32; differentiable with respect to
        pyramid and offsets.
    """
    if not samples and not aligned:
        raise ValueError("samples 0: the released form has a fixed number of them")
    batch, count, depth = ops.shape(boxes)[0], ops.shape(boxes)[1], pyramid[0].shape[-1]
    bins = bins_of(
        [tuple(features.shape[1:3]) for features in pyramid],
        strides,
        boxes,
        offsets,
        output_size=output_size,
        samples=samples,
        gamma=gamma,
        aligned=aligned,
        plus_one=plus_one,
        levels=levels,
    )
    table = ops.concatenate([ops.reshape(features, (-1, depth)) for features in pyramid], axis=0)
    if roi_align._may_be_dynamic():
        from kgarden.ops.deform_roi_pool_sparse import pool

        out = pool(ops.cast(table, "float32"), bins)
    else:
        out = _dense(ops.cast(table, "float32"), bins)
    return ops.cast(ops.reshape(out, (batch, count, output_size, output_size, depth)), table.dtype)


def bin_centers(boxes, offsets=None, output_size=7, gamma=0.1, aligned=False, plus_one=False):
    """Computes the centres of the moved bins.

    Args:
        boxes, ..., plus_one: as in `deform_roi_pool`.
    Returns:
        (B, P, S, S, 2) float32, x and y in px; differentiable with respect to the offsets.
    """
    how = dict(output_size=output_size, samples=1, gamma=gamma, aligned=aligned, plus_one=plus_one)
    bins = bins_of([(1, 1)], (1,), boxes, offsets, **how)  # on a level of stride 1 cells are px
    x, y = (axis.begin + axis.shift + axis.extent / 2 + 0.5 for axis in (bins.columns, bins.rows))
    shape = (*ops.shape(boxes)[:2], output_size, output_size, 2)
    return ops.reshape(ops.concatenate([x, y], axis=-1), shape)


class Axis:
    """The samples of every bin along one axis, in cells of its level; R bins.

    Attributes:
        begin:   (R, 1) float32, start of the bin before its offset; differentiable by nothing.
        shift:   (R, 1) float32, its offset.
        extent:  (R, 1), of the bin.
        number:  (R, 1) float32, samples.
        size:    (R, 1) float32, cells of the map.
        ratio:   number of samples if fixed, or 0.
        aligned: the form.
    """

    def __init__(self, begin, shift, extent, number, size, *, ratio, aligned):
        self.begin, self.shift, self.extent, self.number = begin, shift, extent, number
        self.size, self.ratio, self.aligned = size, ratio, aligned
        self.into_bin, self.margin = (0.5, 1.0) if aligned else (0.0, 0.5)

    def with_shift(self, shift):
        """The same axis with other offsets."""
        arrays = (self.begin, shift, self.extent, self.number, self.size)
        return Axis(*arrays, ratio=self.ratio, aligned=self.aligned)

    def positions(self, sample):
        """Where samples lie, and which of them count.   (R, ...), broadcast against `sample`."""
        begin, shift, extent, number, size = (
            ops.reshape(array, (-1, *(1 for _ in sample.shape[1:])))
            for array in (self.begin, self.shift, self.extent, self.number, self.size)
        )
        step = extent / ops.maximum(number, 1.0)
        position = begin + shift + (sample + self.into_bin) * step
        counts = (position >= -self.margin) & (position <= size - 1.0 + self.margin)
        return position, counts & (sample >= 0) & (sample < number)

    def counts(self):
        """How many samples count in each bin, released form.   (R, 1) float32."""
        _, real = self.positions(ops.arange(self.ratio, dtype="float32")[None, :])
        return ops.sum(ops.cast(real, "float32"), axis=1, keepdims=True)

    def divisor(self):
        """What the sum over samples is divided by, at least 1.   (R, 1) float32."""
        return ops.maximum(self.number if self.aligned else self.counts(), 1.0)

    def bin_windows(self):
        """First and last cell that the samples of a bin touch.   (R, 1) float32 each."""
        start = self.begin + self.shift
        first = start + self.into_bin * self.extent / ops.maximum(self.number, 1.0)
        last = first + self.extent * (self.number - 1.0) / ops.maximum(self.number, 1.0)
        low, high = ops.minimum(first, last), ops.maximum(first, last)
        border = self.size - 1.0
        first = ops.floor(ops.clip(low - SLACK, 0.0, border))
        return first, ops.minimum(ops.floor(ops.clip(high + SLACK, 0.0, border)) + 1.0, border)

    def weights(self, cells):
        """Weight of each cell in the mean over the samples of a bin.   (R, 1, K) -> (R, 1, K)."""
        return self.weights_and_slopes(cells)[0]

    def slopes(self, cells):
        """Derivative of `weights` by the shift.   (R, 1, K) -> (R, 1, K)."""
        return self.weights_and_slopes(cells)[1]

    def weights_and_slopes(self, cells):
        """`weights` and `slopes`.

        A sample on an integer position, also one clamped to the border, has no slope.

        Args:
            cells: (R, 1, K) float32, rows or columns of the map; outside of it both are 0.
        """
        border = ops.reshape(self.size, (-1, 1, 1)) - 1.0
        weight = slope = 0.0
        for sample in self._nearby_samples(cells):
            position, counts = self.positions(sample)
            away = cells - ops.clip(position, 0.0, border)
            near = counts & (ops.abs(away) < 1.0)
            weight = weight + ops.where(near, 1.0 - ops.abs(away), 0.0)
            slope = slope + ops.where(near, ops.sign(away), 0.0)
        inside = (cells >= 0.0) & (cells <= border)
        divisor = self.divisor()[:, :, None]
        return tuple(ops.where(inside, total / divisor, 0.0) for total in (weight, slope))

    def _nearby_samples(self, cells):
        """Indices of the samples that may contribute to a cell: all of them, if their number is fixed."""
        if self.ratio:
            return [ops.full((1, 1, 1), float(sample)) for sample in range(self.ratio)]
        step = ops.where(self.number > 1, self.extent / ops.maximum(self.number, 1.0), 1.0)[:, :, None]
        begin = (self.begin + self.shift)[:, :, None]
        before = ops.floor((cells - 1.0 - begin) / step - self.into_bin)
        return [before + nearby for nearby in range(6)]  # as `roi_align` has it


SLACK = 1e-3  # cells, so that rounding of positions leaves no cell out of a window


class Bins:
    """All bins of all boxes of a batch, flattened; what `entries` of roi_align_sparse reads of `_Rois`.

    Attributes:
        rows, columns: `Axis`, y and x.
        base:  (R, 1) int32, first row of the bin's map in the table.
        width: (R, 1) int32, width of that map.
        bins:  1.
    """

    bins = 1

    def __init__(self, rows, columns, base, width):
        self.rows, self.columns, self.base, self.width = rows, columns, base, width

    def with_shifts(self, down, right):
        """The same bins with other offsets, (R, 1) cells."""
        axes = self.rows.with_shift(down), self.columns.with_shift(right)
        return Bins(*axes, self.base, self.width)


def bins_of(sizes, strides, boxes, offsets, *, output_size, samples, gamma, aligned, plus_one, levels=None):
    """`Bins` of boxes, in the order (image, box, row, column).

    Args:
        sizes: list of (H_l, W_l); the others as in `deform_roi_pool`.
    """
    boxes = ops.cast(ops.stop_gradient(boxes), "float32")
    farthest = roi_align.FARTHEST_PX
    boxes = ops.where(ops.isfinite(boxes), ops.clip(boxes, -farthest, farthest), 0.0)
    if levels is None:
        levels = roi_align.assign_levels(boxes, strides, **CANONICAL, plus_one=plus_one)
    base, height, width, scale = roi_align.maps_of(sizes, strides, levels)
    corners = boxes if aligned else _snapped(boxes, plus_one)
    left, top, right, bottom = (ops.reshape(corners[..., i], (-1,)) * scale - 0.5 for i in range(4))

    side = output_size
    if offsets is None:
        offsets = ops.zeros((1, 1, 1, 1, 2), dtype="float32")
    offsets = gamma * ops.cast(offsets, "float32")
    shape = (*ops.shape(boxes)[:2], side, side)

    def per_bin(array):
        """(boxes,), (S,) or (S, 1) of bins, or offsets -> (R, 1)."""
        return ops.reshape(ops.broadcast_to(array, shape), (-1, 1))

    def of_boxes(array):
        return ops.reshape(array, (*ops.shape(boxes)[:2], 1, 1))

    def axis(ends, size, offset, number):
        start, end = ends
        whole = end - start if aligned else ops.maximum(end - start, LEAST_CELLS)
        whole, start = of_boxes(whole), of_boxes(start)
        extent = whole / ops.full_like(whole, side)  # XLA turns a division by a scalar into a multiplication
        count = ops.full_like(extent, samples) if samples else ops.maximum(ops.ceil(extent), 0.0)
        return Axis(
            begin=per_bin(start + number * extent),
            shift=per_bin(offset * whole),
            extent=per_bin(extent),
            number=per_bin(count),
            size=per_bin(of_boxes(ops.cast(size, "float32"))),
            ratio=samples,
            aligned=aligned,
        )

    number = ops.arange(side, dtype="float32")
    rows = axis((top, bottom), height, offsets[..., 1], number[:, None])
    columns = axis((left, right), width, offsets[..., 0], number)
    return Bins(rows, columns, per_bin(of_boxes(base)), per_bin(of_boxes(width)))


def _snapped(boxes, plus_one):
    """Boxes whose first and last px are rounded to whole ones, the far edge behind the last px."""
    last = boxes[..., 2:] - (0.0 if plus_one else 1.0)
    return ops.concatenate([_rounded(boxes[..., :2]), _rounded(last) + 1.0], axis=-1)


def _rounded(x):
    """The nearest integer, halves away from zero, as C rounds."""
    size = ops.abs(x)
    below = ops.floor(size)
    return ops.sign(x) * (below + ops.cast(size - below >= 0.5, "float32"))


# --- dense, with static shapes ------------------------------------------------------------------------------


def _dense(table, bins):
    """Weighted sum of every bin over the cells of its window, one cell of all bins at a time.

    The number of steps is that of the cells of the largest window, some 30 for boxes on their levels; nothing
    is gathered that is not added at once.

    Args:
        table: (N, D) float32, the cells of all levels and images.
        bins:  `Bins`.
    Returns:
        (R, D) float32, differentiable with respect to `table` and the offsets of `bins`.
    """

    @custom_gradient
    def product(table, down, right):
        moved = bins.with_shifts(down, right)
        (top, bottom), (left, right_most) = moved.rows.bin_windows(), moved.columns.bin_windows()
        wide = ops.cast(right_most - left, "int32") + 1  # (R, 1)
        steps = ops.max(wide * (ops.cast(bottom - top, "int32") + 1))

        def at(step):
            """Cell of each bin (R,), and weights and slopes of its row and its column, (R, 1) each."""
            row = step // wide
            y, x = top + ops.cast(row, "float32"), left + ops.cast(step - row * wide, "float32")
            y = ops.where(y <= bottom, y, -1.0)  # no such row: weight 0
            of_row = [one[:, 0] for one in moved.rows.weights_and_slopes(y[..., None])]
            of_column = [one[:, 0] for one in moved.columns.weights_and_slopes(x[..., None])]
            cell = bins.base + ops.cast(y, "int32") * bins.width + ops.cast(x, "int32")
            return ops.maximum(cell[:, 0], 0), of_row, of_column

        def add(step, out):
            cell, (of_row, _), (of_column, _) = at(step)
            return step + 1, out + of_row * of_column * ops.take(table, cell, axis=0)

        def gradient(upstream):
            def spread(step, of_table, of_down, of_right):
                cell, (of_row, row_slope), (of_column, column_slope) = at(step)
                along = ops.sum(upstream * ops.take(table, cell, axis=0), axis=1, keepdims=True)
                of_cell = of_row * of_column * upstream
                of_table = ops.scatter_update(of_table, cell[:, None], of_cell, reduction="add")
                of_down = of_down + row_slope * of_column * along
                return step + 1, of_table, of_down, of_right + of_row * column_slope * along

            return walk(spread, [ops.zeros_like(one) for one in (table, down, right)])

        def walk(body, start):
            return ops.while_loop(lambda step, *_: step < steps, body, (0, *start))[1:]

        shape = (ops.shape(down)[0], table.shape[1])
        return walk(add, [ops.zeros(shape, dtype="float32")])[0], gradient

    return product(table, bins.rows.shift, bins.columns.shift)
