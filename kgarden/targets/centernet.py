"""CenterNet assigner: positives at object centres, heatmaps and box regression targets.

Zhou, Koltun, Krähenbühl 2021, arXiv:2103.07461, section 5 and the authors' release: overlapping
size ranges (an object may be assigned to two levels), one positive cell per level of an object, a
Gaussian heatmap around it that down-weights negatives, box regression from the 3x3 cells around the
centre. Letters: B images, M objects, L levels, A cells of all levels, C classes.
"""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather

FAR = 1e8  # larger than any squared distance in px
SIZE_RANGES = ((0, 80), (64, 160), (128, 320), (256, 640), (512, 10_000_000))  # px of half a diagonal


class CenterTargets(NamedTuple):
    """Targets of a batch.

    Attributes:
        positive:       (B, N) int32, rows of the positive cells; repeats count twice.
        positive_label: (B, N) int32, their classes.
        positive_valid: (B, N) bool, False on padding.
        heat:           (B, A, 1) or (B, A, C) in [0, 1]; 1 on a centre, on every level.
        ltrb:           (B, A, 4) distances to the sides of the cell's object in strides, else 0.
        ltrb_valid:     (B, A) bool, cells that regress a box.
    """

    positive: object
    positive_label: object
    positive_valid: object
    heat: object
    ltrb: object
    ltrb_valid: object


def half_diagonal(width_height):
    """Object size for level assignment, sqrt(w^2 + h^2) / 2.   (..., 2) px -> (...,) px."""
    return ops.sqrt(ops.sum(ops.square(width_height), axis=-1)) / 2


def levels_of(gt_boxes, size_ranges):
    """Levels that an object is assigned to, ranges inclusive.   (B, M, 4) -> (B, M, L) bool."""
    size = half_diagonal(gt_boxes[..., 2:] - gt_boxes[..., :2])[..., None]
    ranges = ops.array(size_ranges, "float32")
    return (size >= ranges[:, 0]) & (size <= ranges[:, 1])


def center_cells(gt_boxes, cells):
    """Column and row of every object's centre cell on every level, trunc(centre / stride).

    Args:
        gt_boxes: (B, M, 4).
        cells:    kgarden.ops.points.PointGrid.
    Returns:
        (B, M, L, 2) int32.
    """
    strides = ops.array(level_strides(cells), "float32")
    centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    return ops.cast(centers[..., None, :] / strides[:, None], "int32")


def level_strides(cells):
    """The stride of every level.   list of L floats."""
    first = _first_rows(cells)
    return [float(cells.stride[row]) for row in first]


def _first_rows(cells):
    starts, total = [], 0
    for count in cells.counts():
        starts.append(total)
        total += count
    return starts


def rows_of(cell_xy, cells):
    """Row among the A cells.   (..., L, 2) columns and rows -> (..., L) int32.

    As in the reference, borders are not checked: a centre on the right edge of an unpadded map falls
    into the next row of cells. The row is only clamped to the level's last cell.
    """
    widths = ops.array([width for _, width in cells.sizes], "int32")
    last = ops.array(cells.counts(), "int32") - 1
    inside = ops.clip(cell_xy[..., 1] * widths + cell_xy[..., 0], 0, last)
    return inside + ops.array(_first_rows(cells), "int32")


def center_targets(
    gt_boxes,
    gt_labels,
    gt_valid,
    cells,
    size_ranges=SIZE_RANGES,
    num_classes=None,
    min_overlap=0.8,
    min_radius=4.0,
):
    """Computes positives, heatmaps and box regression targets of a batch.

    Args:
        gt_boxes:    (B, M, 4) xyxy px, padded.
        gt_labels:   (B, M) int32.
        gt_valid:    (B, M) bool.
        cells:       kgarden.ops.points.PointGrid of the pyramid.
        size_ranges: (L, 2) px of half a diagonal.
        num_classes: C for one heatmap per class, None for a class-agnostic one.
        min_overlap: minimum IoU of a box whose corners move by the Gaussian's radius.
        min_radius:  px of the network input, on every level.
    Returns:
        CenterTargets with N = M * L positives, object-major, level inner.
    """
    center_xy = center_cells(gt_boxes, cells)  # (B, M, L, 2)
    members = levels_of(gt_boxes, size_ranges) & gt_valid[..., None]  # (B, M, L)
    num_objects, num_levels = members.shape[1:]
    positives = num_objects * num_levels

    ltrb, offset_cells = _distances(gt_boxes, center_xy, cells)
    nearness = _weighted_distance(
        gt_boxes, offset_cells, cells, min_overlap=min_overlap, min_radius=min_radius
    )
    nearness = ops.where(gt_valid[:, None], nearness, FAR)  # (B, A, M)

    box_cells = _regresses(ltrb, offset_cells, cells, size_ranges) & gt_valid[:, None]
    nearest = ops.argmin(ops.where(box_cells, nearness, FAR), axis=-1)  # (B, A)
    chosen = gather(ltrb, nearest, batch_dims=2)
    ltrb_valid = ops.any(box_cells, axis=-1)
    return CenterTargets(
        positive=ops.reshape(rows_of(center_xy, cells), (-1, positives)),
        positive_label=ops.reshape(
            ops.broadcast_to(gt_labels[..., None], ops.shape(members)), (-1, positives)
        ),
        positive_valid=ops.reshape(members, (-1, positives)),
        heat=_heat(nearness, gt_labels, gt_valid, num_classes),
        ltrb=ops.where(ltrb_valid[..., None], chosen / cells.stride[:, None], 0.0),
        ltrb_valid=ltrb_valid,
    )


def _distances(gt_boxes, center_xy, cells):
    """px to the four sides (B, A, M, 4), and whole cells to the centre cell (B, A, M, 2)."""
    points = ops.array(cells.points())[:, None]  # (A, 1, 2)
    boxes = gt_boxes[:, None]  # (B, 1, M, 4)
    ltrb = ops.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)
    of_level = ops.take(center_xy, ops.array(cells.level), axis=2)  # (B, M, A, 2)
    return ltrb, ops.array(cells.xy)[:, None] - ops.transpose(of_level, (0, 2, 1, 3))


def _weighted_distance(gt_boxes, offset_cells, cells, min_overlap, min_radius):
    """d^2 / radius^2, zero on the centre cell.   (B, A, M)."""
    delta = (1 - min_overlap) / (1 + min_overlap)
    radius2 = ops.maximum(2 * delta**2 * box_ops.area(gt_boxes), min_radius**2)  # (B, M)
    centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    distance2 = ops.sum(ops.square(ops.array(cells.points())[:, None] - centers[:, None]), axis=-1)
    at_center = ops.all(offset_cells == 0, axis=-1)
    return ops.where(at_center, 0.0, distance2) / radius2[:, None]


def _regresses(ltrb, offset_cells, cells, size_ranges):
    """Mask of the 3x3 cells around the centre, strictly inside the box, on its levels.   (B, A, M)."""
    near = ops.all(ops.abs(offset_cells) <= 1, axis=-1)
    inside = ops.min(ltrb, axis=-1) > 0
    size = half_diagonal(ltrb[..., :2] + ltrb[..., 2:])
    ranges = ops.take(ops.array(size_ranges, "float32"), ops.array(cells.level), axis=0)[:, None]
    return near & inside & (size >= ranges[..., 0]) & (size <= ranges[..., 1])


def _heat(nearness, gt_labels, gt_valid, num_classes):
    """max over objects of exp(-d^2 / radius^2); below 1e-4 it is 0.   (B, A, 1 or C)."""
    if num_classes is None:
        heat = ops.exp(-ops.min(nearness, axis=-1, keepdims=True))
    else:
        batch, cells, objects = ops.shape(nearness)
        image = ops.arange(batch, dtype="int32")[:, None] * num_classes
        segment = ops.where(gt_valid, image + gt_labels, batch * num_classes)  # padding: an extra segment
        rows = ops.reshape(ops.transpose(ops.exp(-nearness), (0, 2, 1)), (batch * objects, cells))
        heat = ops.segment_max(rows, ops.reshape(segment, (-1,)), num_segments=batch * num_classes + 1)
        heat = ops.reshape(ops.maximum(heat[:-1], 0.0), (batch, num_classes, cells))
        heat = ops.transpose(heat, (0, 2, 1))
    return ops.where(heat < 1e-4, 0.0, heat)


def more_positives(
    targets, ltrb_loss, gt_boxes, gt_labels, gt_valid, cells, size_ranges=SIZE_RANGES, threshold=0.2, top_k=9
):
    """Extra positives from the current predictions: cells that already regress an object well.

    Section 5, "3x3 extra positives"; the release uses it in its one-stage models only.

    Args:
        targets:   CenterTargets of the same batch; heatmap and box targets are kept.
        ltrb_loss: function (B, N, 4) target ltrb in strides, (B, N) rows -> (B, N) loss of the predictions.
        threshold, top_k: a candidate's loss must lie strictly below min(threshold, k-th smallest loss
                   of its object).
    Returns:
        CenterTargets with N = M * L * 9 positives: object, level, neighbour (row-major).
    """
    center_xy = center_cells(gt_boxes, cells)
    around = ops.array([[dx, dy] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], "int32")
    cell_xy = center_xy[..., None, :] + around  # (B, M, L, 9, 2)
    sizes = ops.array([(width, height) for height, width in cells.sizes], "int32")[:, None]
    on_map = ops.all((cell_xy >= 0) & (cell_xy < sizes), axis=-1)

    strides = ops.array(level_strides(cells), "float32")[:, None, None]
    points = ops.cast(cell_xy, "float32") * strides + strides / 2
    boxes = gt_boxes[:, :, None, None]
    ltrb = ops.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1) / strides
    inside = ops.min(ltrb, axis=-1) >= 0

    row = ops.swapaxes(rows_of(ops.swapaxes(cell_xy, 2, 3), cells), 2, 3)  # (B, M, L, 9)
    shape = ops.shape(row)
    objects = shape[1] * shape[2] * shape[3]
    loss = ltrb_loss(ops.reshape(ltrb, (-1, objects, 4)), ops.reshape(row, (-1, objects)))
    loss = ops.where(on_map & inside, ops.reshape(loss, shape), float("inf"))
    is_center = ops.all(around == 0, axis=-1) & levels_of(gt_boxes, size_ranges)[..., None]
    loss = ops.where(is_center & on_map & inside, 0.0, loss)

    flat = ops.reshape(loss, (shape[0], shape[1], shape[2] * shape[3]))
    kth = -ops.top_k(-flat, min(top_k, flat.shape[-1]))[0][..., -1:]
    chosen = (flat < ops.minimum(kth, threshold)) & gt_valid[..., None]
    return targets._replace(
        positive=ops.reshape(row, (-1, objects)),
        positive_label=ops.reshape(ops.broadcast_to(gt_labels[..., None], ops.shape(flat)), (-1, objects)),
        positive_valid=ops.reshape(chosen, (-1, objects)),
    )
