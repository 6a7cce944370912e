"""Points: centres of the cells of a feature pyramid, as constants of static shapes."""

from typing import NamedTuple

import numpy as np
from keras import ops

FORMS = ("plain", "torchvision")


class PointGrid(NamedTuple):
    """All points of a pyramid, finest level first, row-major within a level.

    Attributes:
        sizes:  list of (H_l, W_l), one for each level.
        xy:     (A, 2) int32, column and row of the point in its level.
        level:  (A,) int32, 0 = finest.
        stride: (A,) float32, stride in px of the point's level.
        steps:  (A, 2) float32 px, between neighbours along x and y, for points at the top left corners of
                their cells; None: the stride, for points in the middle.
    """

    sizes: list
    xy: np.ndarray
    level: np.ndarray
    stride: np.ndarray
    steps: np.ndarray | None = None

    def points(self):
        """Positions of the points, (x * stride + stride / 2, ...).   (A, 2) float32 px."""
        if self.steps is not None:
            return np.float32(self.xy) * self.steps
        return np.float32(self.xy) * self.stride[:, None] + self.stride[:, None] / 2

    def counts(self):
        """Number of points of each level.   list of int."""
        return [height * width for height, width in self.sizes]


def whole_steps(sizes, strides):
    """Distances of neighbouring points in torchvision: the canvas over the number of cells, in whole px.

    Above a level with an odd number of cells, which half as many and a half follow, they are less than the
    stride.

    Args:
        sizes:   list of (H_l, W_l).
        strides: list of strides in px; the first level's cells fill the canvas.
    Returns:
        list of (x, y) px, one for each level.
    """
    height, width = (side * strides[0] for side in sizes[0])
    return [(width // columns, height // rows) for rows, columns in sizes]


def point_grid(sizes, strides, form="plain"):
    """Builds the points of levels of the given sizes.

    Args:
        sizes:   list of (H_l, W_l).
        strides: list of strides in px, as long as `sizes`.
        form:    "plain": centres of the cells; "torchvision": their top left corners, as far apart as
                 `whole_steps` says.
    Returns:
        PointGrid.
    """
    rows = [np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1).reshape(-1, 2) for h, w in sizes]
    counts = [len(row) for row in rows]
    return PointGrid(
        sizes=[tuple(size) for size in sizes],
        xy=np.concatenate(rows).astype("int32"),
        level=np.repeat(np.arange(len(counts), dtype="int32"), counts),
        stride=np.repeat(np.float32(strides), counts),
        steps=None if form == "plain" else np.repeat(np.float32(whole_steps(sizes, strides)), counts, axis=0),
    )


def point_grid_of(pyramid, strides, form="plain"):
    """Builds the points of a pyramid's tensors, whose heights and widths must be static; see `point_grid`."""
    return point_grid([tuple(level.shape[1:3]) for level in pyramid], strides, form)


def flatten(maps, depth=None):
    """Flattens maps of levels to rows of points or anchors, finest level first.

    Args:
        maps:  list of (B, H_l, W_l, K * depth).
        depth: numbers per row; None: all channels, one row per point.
    Returns:
        (B, A, depth), A = sum(H_l * W_l * K).
    """
    rows = []
    for level in maps:
        height, width, channels = level.shape[1:]
        size = depth or channels
        rows.append(ops.reshape(level, (-1, height * width * (channels // size), size)))
    return ops.concatenate(rows, axis=1)
