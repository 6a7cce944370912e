"""Bitmaps that lie in the frames of boxes, seen on a grid over the picture."""

from keras import ops


def on_grid(bitmaps, boxes, size, stride):
    """What bitmaps are at the centres of a grid's cells, by the bitmap's cell that holds the centre.

    Args:
        bitmaps: (B, N, S, S) bool over the boxes; see "masks" in kgarden/schema.py.
        boxes:   (B, N, 4) px.
        size:    (H, W) of the grid.
        stride:  px for one cell of the grid, whose cell n has its centre at (n + 0.5) * stride.
    Returns:
        (B, N, H, W) bool, False outside of the boxes.
    """
    side = bitmaps.shape[-1]
    row, row_known = _cells_at(boxes[..., 1], boxes[..., 3], size[0], stride, side)
    column, column_known = _cells_at(boxes[..., 0], boxes[..., 2], size[1], stride, side)
    bits = ops.take_along_axis(bitmaps, row[..., :, None], axis=2)
    bits = ops.take_along_axis(bits, column[..., None, :], axis=3)
    return bits & row_known[..., :, None] & column_known[..., None, :]


def _cells_at(begin, end, length, stride, side):
    """Which of a box's cells along an axis hold the grid's centres, and if one does.   (B, N, length)."""
    centre = (ops.arange(length, dtype="float32") + 0.5) * stride
    begin, end = begin[..., None], end[..., None]
    cell = ops.floor((centre - begin) * (side / ops.maximum(end - begin, 1e-6)))
    known = (centre >= begin) & (centre < end)
    return ops.cast(ops.clip(cell, 0, side - 1), "int32"), known
