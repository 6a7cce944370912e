"""Streaming statistics of boxes (binned moments, Pearson's r), and cosine similarities between RoI bins.

Sums are float64 on the host; cosines are computed on the device of the maps.
"""

import numpy as np
from keras import ops

from kgarden.ops.float32 import matmul

BINS = 20


def bin_of(iou, bins: int = BINS) -> np.ndarray:
    """Returns the index of each IoU among `bins` equal intervals of [0, 1]; 1 is in the last.   int64

    Computed in float32, so that an IoU that equals a bin limit up to float64 rounding is in the upper bin.
    """
    iou = np.asarray(iou, "float32")
    return np.minimum(np.floor(np.float32(bins) * iou), bins - 1).astype("int64")


class BinnedMoments:
    """Streaming count, mean and population standard deviation of a value in each bin of IoU."""

    def __init__(self):
        self.count, self.total, self.squares = np.zeros(BINS, "int64"), np.zeros(BINS), np.zeros(BINS)

    def add(self, bins, values):
        """Adds values (N,) with their bins (N,) of `bin_of`."""
        values = np.asarray(values, "float64")
        self.count += np.bincount(bins, minlength=BINS)
        self.total += np.bincount(bins, values, BINS)
        self.squares += np.bincount(bins, values**2, BINS)

    def mean(self):
        """(BINS,) float64, NaN for empty bins."""
        return np.divide(self.total, self.count, out=np.full(BINS, np.nan), where=self.count > 0)

    def std(self):
        """(BINS,) float64, NaN for empty bins."""
        mean_square = np.divide(self.squares, self.count, out=np.full(BINS, np.nan), where=self.count > 0)
        return np.sqrt(np.maximum(mean_square - self.mean() ** 2, 0.0))


class Pearson:
    """Streaming Pearson correlation of two values."""

    def __init__(self):
        self.count, self.sums, self.products = 0, np.zeros(2), np.zeros(3)

    def add(self, x, y):
        """Adds pairs of x (N,) and y (N,)."""
        x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
        self.count += len(x)
        self.sums += x.sum(), y.sum()
        self.products += x @ x, x @ y, y @ y

    @property
    def r(self):
        """In [-1, 1]; NaN if one of the two is constant."""
        if self.count < 2:
            return np.nan
        xx, xy, yy = self.products - np.outer(self.sums, self.sums)[np.triu_indices(2)] / self.count
        if xx <= 1e-12 * self.products[0] or yy <= 1e-12 * self.products[2]:  # constant up to rounding
            return np.nan
        return float(np.clip(xy / np.sqrt(xx * yy), -1.0, 1.0))


def cosines_of_cells(maps):
    """Computes the cosine similarity of all pairs of cells of a map.   arXiv:1904.06493, section 3.4.

    Args:
        maps: (N, S, S, D).
    Returns:
        (N, S * S, S * S) float32, cosine of the cells' vectors; 0 for a zero vector.
    """
    cells = ops.reshape(ops.cast(maps, "float32"), (-1, maps.shape[1] * maps.shape[2], maps.shape[3]))
    length = ops.sqrt(ops.sum(cells * cells, axis=-1, keepdims=True))
    unit = cells / ops.where(length > 0, length, 1.0)
    return matmul(unit, ops.transpose(unit, (0, 2, 1)))


def by_distance(cosines, side):
    """Computes the mean cosine of the pairs of cells at each distance.

    Args:
        cosines: (S * S, S * S).
        side:    S.
    Returns:
        (distances, means, pairs): (K,) each, distances in cells, ascending from 0; number of unordered pairs.
    """
    row, column = np.divmod(np.arange(side * side), side)
    squared = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    upper = np.triu_indices(side * side)
    distances, index = np.unique(squared[upper], return_inverse=True)
    pairs = np.bincount(index)
    return np.sqrt(distances), np.bincount(index, np.asarray(cosines, "float64")[upper]) / pairs, pairs


def off_diagonal(cosines):
    """Computes the mean over all pairs of different cells.   float"""
    count = len(cosines)
    return float((np.sum(cosines, dtype="float64") - np.trace(cosines)) / (count * (count - 1)))


def tiled(cosines, side):
    """Arranges the S x S map of each cell at the cell's position.   (S², S²) -> (S², S²).   Fig. 4"""
    return np.asarray(cosines).reshape((side,) * 4).transpose(0, 2, 1, 3).reshape(side**2, side**2)
