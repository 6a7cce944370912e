"""Multi-level RoIAlign: pools S x S bins for each box from a feature pyramid.

He et al. 2017, arXiv:1703.06870, section 3, in the "aligned" form of detectron2: a feature lies at the
centre of its cell, so that x px is at x / stride - 1/2 cells. A bin averages n x n bilinear samples. Bilinear
weights are separable, and so is the mean over samples:

    out[i, j] = sum over cells (y, x) of  rows[i, y] * columns[j, x] * features[y, x]

where rows and columns do not depend on the features. Adaptive sampling (n = the bin's extent in cells,
rounded up) therefore costs no more than n = 2, and the samples are never materialised.

Two implementations give the same numbers: `_dense` here, with static shapes, for every backend and XLA; and
the sparse product of `roi_align_sparse`, on TensorFlow outside XLA.
"""

import math

from keras import ops

from kgarden.ops.boxes import enlarge
from kgarden.ops.float32 import matmul
from kgarden.ops.gather import gather
from kgarden.ops.gradients import custom_gradient
from kgarden.ops.jit import is_traced_for_xla

CHUNK_BYTES = 1 << 26  # of gathered features per chunk of `_dense`
LANES = 16  # boxes; the vectors of a processor are filled, so that XLA rounds all of a chunk alike
FARTHEST_PX = 1e7  # limit of coordinates, so that a diverging box cannot overflow


def roi_align(
    pyramid,
    strides,
    boxes,
    output_size,
    sampling_ratio=0,
    canonical_level=4,
    canonical_size=224,
    aligned=True,
    enlarged=1.0,
    plus_one=False,
    least_cells=None,
):
    """Pools the features of each box from the pyramid level assigned by its size.

    Args:
        pyramid:         list of (B, H_l, W_l, D), H_l and W_l static.
        strides:         of the levels in px, powers of two.
        boxes:           (B, P, 4) xyxy, px, clipped or not; no gradient flows to them.
        output_size:     S, bins along each side.
        sampling_ratio:  samples per bin along each side; 0: as many as the bin has cells, rounded up.
        canonical_level: level of a box whose side is `canonical_size` px; see `assign_levels`.
        canonical_size:  px.
        aligned:         False: x px is at x / stride cells, without the half-cell shift (maskrcnn-benchmark,
                         mmdetection 1).
        enlarged:        factor on width and height of each box, after its level is assigned.
        plus_one:        a box from 0 to 15 is 16 px wide, for level assignment and enlargement.
        least_cells:     least width and height of a box; None: 1 if not aligned (maskrcnn-benchmark), else 0.
    Returns:
        (B, P, S, S, D) in the dtype of the pyramid, computed in float32. Zero for empty boxes (with
        sampling_ratio 0) and for samples more than one cell outside the map.
    """
    batch, count = ops.shape(boxes)[0], ops.shape(boxes)[1]
    depth = pyramid[0].shape[-1]
    boxes = ops.cast(ops.stop_gradient(boxes), "float32")
    boxes = ops.where(ops.isfinite(boxes), ops.clip(boxes, -FARTHEST_PX, FARTHEST_PX), 0.0)
    level = assign_levels(boxes, strides, canonical_level, canonical_size=canonical_size, plus_one=plus_one)
    boxes = enlarge(boxes, enlarged, plus_one) if enlarged != 1.0 else boxes
    sizes = [tuple(features.shape[1:3]) for features in pyramid]
    if least_cells is None:
        least_cells = 0.0 if aligned else 1.0
    how = dict(bins=output_size, ratio=sampling_ratio, aligned=aligned, least_cells=least_cells)
    rois = _on_their_levels(boxes, level, sizes, strides=strides, **how)

    table = ops.concatenate([ops.reshape(features, (-1, depth)) for features in pyramid], axis=0)
    if _may_be_dynamic():
        from kgarden.ops.roi_align_sparse import pool

        out = pool(ops.cast(table, "float32"), rois)
    else:
        longest = _most_cells(sizes, enlarged * canonical_size * 2.0 ** (1 - canonical_level) + (not aligned))
        out = _dense(ops.cast(table, "float32"), rois, longest)
    return ops.cast(ops.reshape(out, (batch, count, output_size, output_size, depth)), table.dtype)


def assign_levels(boxes, strides, canonical_level=4, canonical_size=224, plus_one=False, epsilon=1e-8):
    """Assigns each box to a pyramid level by its size.

    k = floor(canonical_level + log2(sqrt(area) / canonical_size)), clamped to the available levels; a level
    of stride s has the number log2(s).   Lin et al. 2016, arXiv:1612.03144, Eq. 1.

    Args:
        boxes:   (..., 4) xyxy, px.
        strides: of the levels, finest first.
        plus_one: a box from 0 to 15 is 16 px wide.
        epsilon: added to the quotient; a side exactly at a level's limit may round either way.
    Returns:
        (...,) int32, position in `strides`.
    """
    numbers = [round(math.log2(stride)) for stride in strides]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError(f"strides {list(strides)} must be consecutive powers of two")
    left, top, right, bottom = ops.unstack(boxes, axis=-1)
    width, height = right - left + float(plus_one), bottom - top + float(plus_one)
    side = ops.sqrt(ops.maximum(width * height, 0.0))
    number = ops.floor(canonical_level + ops.log2(side / canonical_size + epsilon))
    return ops.cast(ops.clip(number, numbers[0], numbers[-1]), "int32") - numbers[0]


class _Axis:
    """The bins of all boxes along one axis, in cells of each box's level; R boxes, S bins.

    Sample k of bin s lies at (start + s * extent) + (k + 1/2) * extent / number. The references round to
    float32 at each of these steps, so that at large coordinates the result depends on their order.

    Attributes:
        begin:  (R, S) float32, start of each bin.
        extent: (R, 1) of one bin; negative where a box is inverted.
        number: (R, 1) float32, samples per bin.
        size:   (R, 1) float32, cells of the map.
        ratio:  number of samples if fixed, or 0.
    """

    def __init__(self, begin, extent, number, size, ratio):
        self.begin, self.extent, self.number, self.size, self.ratio = begin, extent, number, size, ratio

    @classmethod
    def between(cls, start, end, size, bins, ratio):
        """`bins` bins from `start` to `end`, all (R,) float32."""
        start, end, size = (ops.expand_dims(array, 1) for array in (start, end, size))
        whole = end - start
        extent = whole / ops.full_like(whole, bins)  # XLA turns a division by a scalar into a multiplication
        begin = start + ops.arange(bins, dtype="float32") * extent
        if ratio:
            number = ops.full_like(extent, ratio)
        else:
            number = ops.maximum(ops.ceil(extent), 0.0)
            one_less = ops.maximum(number - 1.0, 0.0)  # and may do so here too: 175 * (1 / 7) > 25
            number = ops.where(one_less * bins >= whole, one_less, number)
        return cls(begin, extent, number, size, ratio)

    def map(self, function):
        """Apply `function` to every array."""
        arrays = (self.begin, self.extent, self.number, self.size)
        return _Axis(*map(function, arrays), self.ratio)

    def bin_windows(self):
        """First and last cell that the samples of a bin touch.   (R, S) float32 each."""
        margin = 0.5 * self.extent / ops.maximum(self.number, 1.0)
        outermost = self.begin + margin, self.begin + self.extent - margin
        low, high = ops.minimum(*outermost), ops.maximum(*outermost)
        border = self.size - 1.0
        first = ops.floor(ops.clip(low, 0.0, border))
        return first, ops.minimum(ops.floor(ops.clip(high, 0.0, border)) + 1.0, border)

    def window(self):
        """First and last cell that the samples of a box touch.   (R, 1) float32 each."""
        first, last = self.bin_windows()
        return ops.min(first, axis=1, keepdims=True), ops.max(last, axis=1, keepdims=True)

    def weights(self, cells):
        """Weight of each cell in the mean over the samples of a bin.

        A sample more than one cell outside the map is zero; one closer is clamped to the border.

        Args:
            cells: (R, S or 1, K) float32, rows or columns of the map; outside of it the weight is 0.
        Returns:
            (R, S, K) float32.
        """
        of_bins = (self.begin, self.extent, self.number, self.size - 1.0)
        begin, extent, number, border = (ops.expand_dims(array, 2) for array in of_bins)
        total = 0.0
        for sample in self._nearby_samples(cells):
            position = begin + (sample + 0.5) * extent / ops.maximum(number, 1.0)
            weight = ops.relu(1.0 - ops.abs(ops.clip(position, 0.0, border) - cells))
            real = (sample >= 0) & (sample < number) & (position >= -1.0) & (position <= border + 1.0)
            total = total + ops.where(real, weight, 0.0)
        inside = (cells >= 0.0) & (cells <= border)
        return ops.where(inside, total / ops.maximum(number, 1.0), 0.0)

    def _nearby_samples(self, cells):
        """Indices of the samples that may contribute to a cell: all of them, if their number is fixed.

        Adaptive samples are more than half a cell apart, so that at most four are in range of a cell; one
        more on either side allows for rounding, and for the single sample of a bin smaller than a cell.
        """
        if self.ratio:
            return [float(sample) for sample in range(self.ratio)]
        step = ops.where(self.number > 1, self.extent / ops.maximum(self.number, 1.0), 1.0)
        begin, step = ops.expand_dims(self.begin, 2), ops.expand_dims(step, 2)
        before = ops.floor((cells - 1.0 - begin) / step - 0.5)
        return [before + nearby for nearby in range(6)]


class _Rois:
    """All boxes of a batch, flattened, each on its level.

    Attributes:
        rows, columns: `_Axis`, y and x.
        base:  (R, 1) int32, first row of the box's map in the table.
        width: (R, 1) int32, width of that map.
        bins:  S.
    """

    def __init__(self, rows, columns, base, width):
        self.rows, self.columns, self.base, self.width = rows, columns, base, width
        self.bins = rows.begin.shape[1]

    def _map(self, function):
        axes = self.rows.map(function), self.columns.map(function)
        return _Rois(*axes, function(self.base), function(self.width))

    def padded(self, missing):
        """Append `missing` boxes of weight 0."""
        return self._map(lambda array: ops.pad(array, [[0, missing], [0, 0]]))

    def chunk(self, start, size):
        """Boxes `start` to `start + size`."""
        return self._map(lambda array: ops.slice(array, (start, 0), (size, array.shape[1])))


def _on_their_levels(boxes, level, sizes, strides, bins, ratio, aligned, least_cells):
    """`_Rois` of boxes (B, P, 4) px on the levels (B, P) that they are pooled from."""
    base, height, width, scale = maps_of(sizes, strides, level)
    half = 0.5 if aligned else 0.0
    sides = ops.unstack(ops.reshape(boxes, (-1, 4)), axis=1)
    left, top, right, bottom = (side * scale - half for side in sides)
    if least_cells:
        right, bottom = ops.maximum(right, left + least_cells), ops.maximum(bottom, top + least_cells)
    rows = _Axis.between(top, bottom, ops.cast(height, "float32"), bins=bins, ratio=ratio)
    columns = _Axis.between(left, right, ops.cast(width, "float32"), bins=bins, ratio=ratio)
    return _Rois(rows, columns, ops.expand_dims(base, 1), ops.expand_dims(width, 1))


def maps_of(sizes, strides, level):
    """The maps that boxes are pooled from, in a table of the cells of all levels and images.

    Args:
        sizes:   list of (H_l, W_l).
        strides: px.
        level:   (B, P) int32.
    Returns:
        base, height, width: (B * P,) int32, first row of the map in the table, and its sides.
        scale: (B * P,) float32, cells of a px.
    """
    batch, flat = ops.shape(level)[0], ops.reshape(level, (-1,))
    height, width = (_lookup([size[i] for size in sizes], flat, "int32") for i in (0, 1))
    scale = _lookup([1.0 / stride for stride in strides], flat, "float32")
    before = [sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))]
    image = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], ops.shape(level))
    base = batch * _lookup(before, flat, "int32") + ops.reshape(image, (-1,)) * height * width
    return base, height, width, scale


def _lookup(values, index, dtype):
    return gather(ops.convert_to_tensor(values, dtype=dtype), index, batch_dims=0)


def _may_be_dynamic():
    """Whether shapes may depend on values."""
    return not is_traced_for_xla()


# --- dense, with static shapes ------------------------------------------------------------------------------


def _most_cells(sizes, longest_side):
    """Upper bound of the cells that a box touches.

    On every level but the last, a box covers less than longest_side^2 cells, by level assignment; its border
    adds less than two rows and two columns for any aspect ratio. On the last level the bound is the map.

    Args:
        sizes:        list of (H_l, W_l).
        longest_side: side in cells of the largest square on a level.
    """
    bounds = [sizes[-1][0] * sizes[-1][1]]
    covered = 1.01 * longest_side**2
    for height, width in sizes[:-1]:
        long = min(max(height, width), covered)
        bounds.append(min(height * width, math.ceil((long + 2) * (covered / long + 2))))
    return max(bounds)


def _dense(table, rois, most):
    """Weighted sum of every bin over the cells of its box: (S * S, T) @ (T, D) for each box.

    Boxes are processed in chunks, in the forward and backward pass; the latter recomputes the weights.

    Args:
        table: (N, D) float32, the cells of all levels and images.
        rois:  `_Rois`.
        most:  T, upper bound of the cells of a box.
    Returns:
        (R, S * S, D) float32, differentiable with respect to `table`.
    """
    depth, bins, boxes = table.shape[1], rois.bins**2, ops.shape(rois.base)[0]
    size = max(1, CHUNK_BYTES // (4 * most * (depth + bins)))
    chunks = -(-boxes // size)
    if isinstance(boxes, int):  # chunks of equal length: the last is not padded to a whole one
        of_chunk = -(-boxes // max(1, chunks))
        size = min(size, max(1, -(-of_chunk // LANES)) * LANES)
    rois = rois.padded(chunks * size - boxes)

    @custom_gradient
    def product(table):
        def pool(i, out):
            weights, cells = _weights_and_cells(rois.chunk(i * size, size), most)
            pooled = matmul(weights, ops.take(table, cells, axis=0))
            return i + 1, ops.slice_update(out, (i * size, 0, 0), pooled)

        def gradient(upstream):
            upstream = ops.pad(upstream, [[0, chunks * size - boxes], [0, 0], [0, 0]])

            def spread(i, total):
                weights, cells = _weights_and_cells(rois.chunk(i * size, size), most)
                of_chunk = ops.slice(upstream, (i * size, 0, 0), (size, bins, depth))
                at_cells = ops.reshape(matmul(ops.transpose(weights, (0, 2, 1)), of_chunk), (-1, depth))
                total = ops.scatter_update(total, ops.reshape(cells, (-1, 1)), at_cells, reduction="add")
                return i + 1, total

            return walk(spread, ops.zeros_like(table))

        return walk(pool, ops.zeros((chunks * size, bins, depth), dtype="float32"))[:boxes], gradient

    def walk(step, start):
        return ops.while_loop(lambda i, _: i < chunks, step, (0, start))[1]

    return product(table)


def _weights_and_cells(rois, most):
    """The cells of each box, row-major, and the weight of each in each bin.

    Returns:
        weights: (C, S * S, T) float32, 0 beyond the box's last cell.
        cells:   (C, T) int32, rows of the table.
    """
    (top, bottom), (left, right) = rois.rows.window(), rois.columns.window()  # (C, 1) each
    wide = ops.maximum(ops.cast(right - left, "int32") + 1, 1)  # padding boxes have no cells
    position = ops.arange(most, dtype="int32")[None, :]
    row = position // wide
    column = position - row * wide
    x, y = left + ops.cast(column, "float32"), top + ops.cast(row, "float32")
    y = ops.where(y <= bottom, y, -1.0)  # no such row: weight 0

    of_row, of_column = rois.rows.weights(y[:, None, :]), rois.columns.weights(x[:, None, :])
    weights = of_row[:, :, None, :] * of_column[:, None, :, :]
    cells = rois.base + ops.cast(y, "int32") * rois.width + ops.cast(x, "int32")
    return ops.reshape(weights, (-1, rois.bins**2, most)), ops.maximum(cells, 0)
