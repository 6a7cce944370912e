"""Anchors: template boxes of fixed sizes at every cell of a feature pyramid, as constants.

Ren et al. 2015, arXiv:1506.01497, section 3.1.1; nine per point: Lin et al. 2017, arXiv:1708.02002,
section 4. Computed once for the static shapes of the levels.
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from kgarden.ops.points import whole_steps

FORMS = ("plain", "torchvision", "mmdetection_1", "mmdetection_1_edges", "maskrcnn_benchmark")


class Anchors(NamedTuple):
    """All anchors of a pyramid: finest level first, row-major points, anchors of a point contiguous.

    Attributes:
        boxes:  (A, 4) float32 xyxy, px of the network input.
        stride: (A,) float32, stride in px of the anchor's level.
        levels: list of (H_l, W_l, anchors per point).
    """

    boxes: np.ndarray
    stride: np.ndarray
    levels: list

    def counts(self):
        """Number of anchors of each level.   list of int."""
        return [int(np.prod(level)) for level in self.levels]

    def points(self):
        """Centres.   (A, 2) float32 px."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def cells(self):
        """Top left corners of the anchors' cells.   (A, 2) float32 px."""
        cells = [
            np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
            .reshape(-1, 2)
            .repeat(of_cell, 0)
            for height, width, of_cell in self.levels
        ]
        return np.concatenate(cells).astype("float32") * self.stride[:, None]

    def inside(self, size_hw, divisor):
        """Masks the anchors whose cells begin inside of their image, padded to a multiple of `divisor`.

        What a batch adds to that, because another image is larger, is outside (mmdetection's `valid_flags`).

        Args:
            size_hw: (B, 2) int32 px, of the images.
            divisor: px.
        Returns:
            (B, A) bool.
        """
        padded = ops.cast(-(-ops.cast(size_hw, "int32") // divisor) * divisor, "float32")
        x, y = self.cells().T
        return (y < padded[:, :1]) & (x < padded[:, 1:])


def templates(sizes, ratios, size_major=False, form="plain", base=None):
    """Builds the anchors of a point at (0, 0).

    Args:
        sizes:      sides of the square anchors, px; other ratios keep the area.
        ratios:     height over width.
        size_major: order by size, then ratio (detectron2), instead of by ratio, then size (mmdetection).
        form:       "plain" corners; "torchvision": sizes are cut off to whole px, corners rounded; or the
                    "+1" conventions, where a box from 0 to 15 is 16 px wide, centred at (base - 1) / 2:
                    "mmdetection_1" with rounded corners, "mmdetection_1_edges" the same boxes from edge to
                    edge, 0 to 16; "maskrcnn_benchmark" with the sides of a one-cell anchor rounded and then
                    scaled.
        base:       side of the cell in px, for the "+1" conventions.
    Returns:
        (sizes * ratios, 4) float64.
    """
    sizes, ratios = np.float64(sizes), np.float64(ratios)
    if form == "torchvision":
        sizes = np.floor(sizes)
    root = np.sqrt(ratios)
    height, width = np.outer(root, sizes), np.outer(1 / root, sizes)  # (ratios, sizes)
    if form == "maskrcnn_benchmark":
        of_cell = np.round(np.sqrt(base * base / ratios))
        width, height = np.outer(of_cell, sizes / base), np.outer(np.round(of_cell * ratios), sizes / base)
    if size_major:
        height, width = height.T, width.T
    half = np.stack([width, height], axis=-1).reshape(-1, 2) / 2
    if form in ("plain", "torchvision"):
        corners = np.concatenate([-half, half], axis=1)
        return corners if form == "plain" else np.round(corners)
    center = 0.5 * (base - 1)
    corners = np.concatenate([center - (half - 0.5), center + (half - 0.5)], axis=1)
    if form == "maskrcnn_benchmark":
        return corners
    return np.round(corners) + (np.array([0, 0, 1, 1]) if form == "mmdetection_1_edges" else 0)


def anchor_grid(level_sizes, strides, sizes, ratios=(1.0,), offset=0.0, size_major=False, form="plain"):
    """Builds the anchors of a whole pyramid.

    Args:
        level_sizes: list of (H_l, W_l).
        strides:     of each level, px.
        sizes:       one list of sides in px for each level.
        ratios, size_major: see `templates`.
        offset:      position of anchors in a cell: 0 its top left corner (detectron2, mmdetection),
                     0.5 its centre.
        form:        see `templates`; of "torchvision" anchors lie as far apart as `whole_steps` says.
    Returns:
        Anchors.
    """
    boxes, levels = [], []
    steps = whole_steps(level_sizes, strides) if form == "torchvision" else strides
    for (height, width), stride, step, of_level in zip(level_sizes, strides, steps, sizes, strict=True):
        cell = templates(of_level, ratios, size_major, form=form, base=stride)
        shift = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + offset
        shift = np.tile(shift.reshape(-1, 1, 2) * step, 2)  # (H * W, 1, 4)
        boxes.append((shift + cell).reshape(-1, 4))
        levels.append((height, width, len(cell)))
    counts = [len(of_level) for of_level in boxes]
    return Anchors(np.concatenate(boxes).astype("float32"), np.repeat(np.float32(strides), counts), levels)
