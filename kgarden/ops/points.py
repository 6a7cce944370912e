"""Points: centres of the cells of a feature pyramid, as constants of static shapes."""

from typing import NamedTuple

import numpy as np
from keras import ops


class PointGrid(NamedTuple):
    """All points of a pyramid, finest level first, row-major within a level.

    Attributes:
        sizes:  list of (H_l, W_l), one for each level.
        xy:     (A, 2) int32, column and row of the point in its level.
        level:  (A,) int32, 0 = finest.
        stride: (A,) float32, stride in px of the point's level.
    """

    sizes: list
    xy: np.ndarray
    level: np.ndarray
    stride: np.ndarray

    def points(self):
        """Positions of the points, (x * stride + stride / 2, ...).   (A, 2) float32 px."""
        return np.float32(self.xy) * self.stride[:, None] + self.stride[:, None] / 2

    def counts(self):
        """Number of points of each level.   list of int."""
        return [height * width for height, width in self.sizes]


def point_grid(sizes, strides):
    """Builds the points of levels of the given sizes.

    Args:
        sizes:   list of (H_l, W_l).
        strides: list of strides in px, as long as `sizes`.
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
    )


def point_grid_of(pyramid, strides):
    """Builds the points of a pyramid's tensors, whose heights and widths must be static."""
    return point_grid([tuple(level.shape[1:3]) for level in pyramid], strides)


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
