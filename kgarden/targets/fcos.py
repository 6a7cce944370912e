"""FCOS assigner: points inside objects by size range, and centre-ness targets.

Tian et al. 2019, arXiv:1904.01355, sections 3.1 to 3.3; centre sampling: Tian et al. 2020,
arXiv:2006.09214, section 3.2. Letters: B images, M objects (padded), A points of all levels.
"""

import numpy as np
from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.targets.assign_result import smallest

FAR = 1e8  # px: "infinity" of the last level
SIZE_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, FAR))  # px of the farthest side


def near_center(grid, gt_boxes, gt_valid, radius=None, centers=None):
    """Masks the points strictly inside a box and, with a radius, strictly within it of the centre.

    Args:
        grid:     kgarden.ops.points.PointGrid of the pyramid.
        gt_boxes: (B, M, 4) xyxy px.
        gt_valid: (B, M) bool.
        radius:   strides of the point's level, in x and in y; None: anywhere in the box.
        centers:  (B, M, 2) xy px; None: those of the boxes.
    Returns:
        (B, M, A) bool.
    """
    nearest, _ = _nearest_and_farthest(grid, gt_boxes)
    inside = (nearest > 0) & gt_valid[..., None]
    if radius is None:
        return inside
    points = grid.points()
    middle = (box_ops.centers(gt_boxes) if centers is None else centers)[..., None]  # (B, M, 2, 1)
    off_center = ops.maximum(
        ops.abs(points[:, 0] - middle[..., 0, :]), ops.abs(points[:, 1] - middle[..., 1, :])
    )
    return inside & (off_center < radius * grid.stride)


def possible_points(grid, gt_boxes, gt_valid, size_ranges=SIZE_RANGES, radius=1.5, centers=None):
    """Masks the candidate points of each object: near its centre, on a level for its size.

    Args:
        grid, gt_boxes, gt_valid, radius, centers: see `near_center`.
        size_ranges: (L, 2) px, smallest and largest distance to the farthest side, both included.
    Returns:
        (B, M, A) bool; a point may be a candidate of several objects.
    """
    _, farthest = _nearest_and_farthest(grid, gt_boxes)
    ranges = np.float32(size_ranges)[grid.level]
    in_range = (farthest >= ranges[:, 0]) & (farthest <= ranges[:, 1])
    return near_center(grid, gt_boxes, gt_valid, radius=radius, centers=centers) & in_range


def assign_points(possible, gt_boxes):
    """Assigns to each point its candidate object of smallest area.

    Args:
        possible: (B, M, A) bool of `possible_points`.
        gt_boxes: (B, M, 4).
    Returns:
        (B, A) int32, see kgarden/targets/assign_result.py.
    """
    return smallest(possible, box_ops.area(gt_boxes)[..., None])


def centerness(ltrb):
    """Computes centre-ness: 1 at the centre of a box, 0 at its sides.   (..., 4) -> (...,).   Eq. 3.

    0 for points outside the box.
    """
    near = ops.minimum(ltrb[..., :2], ltrb[..., 2:])
    far = ops.maximum(ltrb[..., :2], ltrb[..., 2:])
    inside = ops.all(near > 0, axis=-1)
    ratio = ops.where(inside[..., None], near, 0.0) / ops.where(inside[..., None], far, 1.0)
    return ops.sqrt(ratio[..., 0] * ratio[..., 1])


def _nearest_and_farthest(grid, gt_boxes):
    """Distances of every point to the nearest and the farthest side of every box, px.   (B, M, A) each."""
    x, y = grid.points().T
    x1, y1, x2, y2 = (gt_boxes[..., side, None] for side in range(4))
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
    nearest = ops.minimum(ops.minimum(left, right), ops.minimum(top, bottom))
    farthest = ops.maximum(ops.maximum(left, right), ops.maximum(top, bottom))
    return nearest, farthest
