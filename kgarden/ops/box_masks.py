"""Masks stored as bitmaps in the frames of boxes, resampled on a grid over the image."""

from keras import ops

from kgarden.ops import boxes as box_ops


def masks_on_grid(bitmaps, boxes, size, stride):
    """What bitmaps are at the centres of a grid's cells, by the bitmap's cell that holds the centre.

    Args:
        bitmaps: (B, N, S, S) bool over the boxes; see "masks" in kgarden/structures.py.
        boxes:   (B, N, 4) px.
        size:    (H, W) of the grid.
        stride:  px for one cell of the grid, whose cell n has its centre at (n + 0.5) * stride.
    Returns:
        (B, N, H, W) bool, False outside of the boxes.
    """
    side = bitmaps.shape[-1]
    row, row_known = _cells_at(boxes[..., 1], boxes[..., 3], size[0], stride=stride, side=side)
    column, column_known = _cells_at(boxes[..., 0], boxes[..., 2], size[1], stride=stride, side=side)
    bits = ops.take_along_axis(bitmaps, row[..., :, None], axis=2)
    bits = ops.take_along_axis(bits, column[..., None, :], axis=3)
    return bits & row_known[..., :, None] & column_known[..., None, :]


def mass_centers(bitmaps, boxes):
    """Computes the centre of mass of each mask, in pixel numbers as AdelaiDet counts them.

    There a pixel lies at its number and not half a pixel further on, so that a mask that fills its box has
    its centre of mass half a pixel left of and above the box's centre.

    Args:
        bitmaps: (B, N, S, S) bool over the boxes; see "masks" in kgarden/structures.py.
        boxes:   (B, N, 4) px.
    Returns:
        (B, N, 2) float32 xy px; the centre of the box where the bitmap is empty.
    """
    side = bitmaps.shape[-1]
    bits = ops.cast(bitmaps, "float32")
    cell = (ops.arange(side, dtype="float32") + 0.5) / side
    area = ops.sum(bits, axis=(2, 3))
    moments = [ops.sum(ops.sum(bits, axis=axis) * cell, axis=-1) for axis in (2, 3)]  # x, y
    within = ops.stack(moments, axis=-1) / ops.maximum(area, 1.0)[..., None]
    found = boxes[..., :2] + within * (boxes[..., 2:] - boxes[..., :2]) - 0.5
    return ops.where(area[..., None] > 0, found, box_ops.centers(boxes))


def covered_area(bitmaps, boxes, others, size):
    """How much of every cell of other boxes' frames is set: exactly, by area.

    A bitmap is taken for what it is, cells that are full or empty, with nothing outside of its box. The area
    that it has in common with a cell is a sum over its rows and columns of what each has in common with the
    cell along its own axis.

    Args:
        bitmaps: (..., S, S) bool over the boxes.
        boxes:   (..., 4) px.
        others:  (..., 4) px, whose frames are asked for.
        size:    T, cells of their sides.
    Returns:
        (..., T, T) float32 in [0, 1].
    """
    side = bitmaps.shape[-1]
    rows = _in_common(boxes[..., 1::2], others[..., 1::2], side, size)
    columns = _in_common(boxes[..., 0::2], others[..., 0::2], side, size)
    covered = ops.matmul(rows, ops.cast(bitmaps, "float32"))
    return ops.matmul(covered, ops.swapaxes(columns, -1, -2))


def _in_common(own, other, side, size):
    """Lengths that a box's rows have in common with those of another, in rows of the other.

    Args:
        own, other: (..., 2) where each begins and ends, px.
    Returns:
        (..., size, side) float32.
    """
    (begin, end), (other_begin, other_end) = ((x[..., :1], x[..., 1:]) for x in (own, other))
    scale = size / ops.maximum(other_end - other_begin, 1e-6)
    edges = (begin - other_begin) * scale + ops.arange(side + 1, dtype="float32") * (
        (end - begin) * scale / side
    )
    cells = ops.arange(size, dtype="float32")[:, None]
    reached = ops.clip(edges[..., None, :] - cells, 0.0, 1.0)  # of each cell, up to each edge
    return reached[..., 1:] - reached[..., :-1]


def _cells_at(begin, end, length, stride, side):
    """Which of a box's cells along an axis hold the grid's centres, and if one does.   (B, N, length)."""
    centre = (ops.arange(length, dtype="float32") + 0.5) * stride
    begin, end = begin[..., None], end[..., None]
    cell = ops.floor((centre - begin) * (side / ops.maximum(end - begin, 1e-6)))
    known = (centre >= begin) & (centre < end)
    return ops.cast(ops.clip(cell, 0, side - 1), "int32"), known
