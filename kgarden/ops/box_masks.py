"""Masks stored as bitmaps in the frames of boxes, resampled on a grid over the image."""

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.float32 import matmul


def masks_on_grid(bitmaps, boxes, size, stride):
    """Resample bitmaps at the centres of a grid's cells, nearest neighbour.

    Args:
        bitmaps: (B, N, S, S) bool over the boxes; see "masks" in kgarden/structures.py.
        boxes:   (B, N, 4) px.
        size:    (H, W) of the grid.
        stride:  of the grid, px; cell n has its centre at (n + 0.5) * stride.
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
    """Fraction of every cell of other boxes' frames that a bitmap covers: exact area resampling.

    A bitmap consists of full and empty cells, and is empty outside of its box. The overlap of two cells is
    the product of their overlaps along each axis, so that this is two matrix products.

    Args:
        bitmaps: (..., S, S) bool over the boxes.
        boxes:   (..., 4) px.
        others:  (..., 4) px, the boxes to resample over.
        size:    T, cells per side of the result.
    Returns:
        (..., T, T) float32 in [0, 1].
    """
    side = bitmaps.shape[-1]
    rows = _overlap(boxes[..., 1::2], others[..., 1::2], side, size)
    columns = _overlap(boxes[..., 0::2], others[..., 0::2], side, size)
    covered = matmul(rows, ops.cast(bitmaps, "float32"))
    return matmul(covered, ops.swapaxes(columns, -1, -2))


def _overlap(own, other, side, size):
    """Overlap of a box's rows with those of another box, in rows of the other.

    Args:
        own, other: (..., 2) start and end, px.
    Returns:
        (..., size, side) float32.
    """
    (begin, end), (other_begin, other_end) = ((x[..., :1], x[..., 1:]) for x in (own, other))
    scale = size / ops.maximum(other_end - other_begin, 1e-6)
    edges = (begin - other_begin) * scale + ops.arange(side + 1, dtype="float32") * (
        (end - begin) * scale / side
    )
    cells = ops.arange(size, dtype="float32")[:, None]
    reached = ops.clip(edges[..., None, :] - cells, 0.0, 1.0)  # fraction of each cell below each edge
    return reached[..., 1:] - reached[..., :-1]


def _cells_at(begin, end, length, stride, side):
    """Cell of a box that holds each grid centre along an axis, and whether one does.   (B, N, length)."""
    centre = (ops.arange(length, dtype="float32") + 0.5) * stride
    begin, end = begin[..., None], end[..., None]
    cell = ops.floor((centre - begin) * (side / ops.maximum(end - begin, 1e-6)))
    known = (centre >= begin) & (centre < end)
    return ops.cast(ops.clip(cell, 0, side - 1), "int32"), known
