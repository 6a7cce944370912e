"""ATSS assigner: adaptive training sample selection.

Zhang et al. 2020, arXiv:1912.02424, Algorithm 1: the nearest anchors of every level are candidates, and the
mean and standard deviation of their IoUs give the object's IoU threshold. Letters: B images, M objects
(padded), A anchors.
"""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather
from kgarden.targets.assign_result import BACKGROUND, IGNORED, either

INSIDE = 0.01  # px, minimum distance of an anchor's centre from the sides of its object
TINY = 1e-12  # stored instead of an IoU of 0, which means "no candidate"


class AtssCandidates(NamedTuple):
    """Result of Algorithm 1 before conflicts between objects are resolved.

    Attributes:
        possible:  (B, M, A) bool.
        overlap:   (B, M, A) IoU where possible, else 0.
        threshold: (B, M) mean + standard deviation of the candidates' IoUs.
    """

    possible: object
    overlap: object
    threshold: object


def atss_candidates(anchors, counts, gt_boxes, gt_valid, top_k=9, ignored=None, inside=None):
    """Computes the positive anchors of each object, which may overlap.

    Args:
        anchors:  (A, 4) xyxy px, a constant; all levels, finest first.
        counts:   anchors per level; a level with fewer than `top_k` contributes all.
        gt_boxes: (B, M, 4).
        gt_valid: (B, M) bool.
        top_k:    candidates of an object per level, by distance of the centres.
        ignored:  (B, A) bool, ignored anchors; they are candidates only if there are no others, with an
                  IoU of -1.
        inside:   (B, A) bool, anchors that take part; None: all do. A level with fewer than `top_k` of them
                  contributes those.
    Returns:
        AtssCandidates.
    """
    out = either(ignored, None if inside is None else ~inside)
    rows = _nearest(anchors, counts, gt_boxes, top_k=top_k, ignored=out)  # (B, M, K)
    candidates = ops.take(ops.array(anchors), rows, axis=0)
    iou = box_ops.iou(gt_boxes[:, :, None], candidates)[:, :, 0]
    if ignored is not None:
        iou = ops.where(gather(ignored, rows), -1.0, iou)

    real = None if inside is None else gather(inside, rows)
    threshold = _mean_and_deviation(iou, real)
    ltrb = box_ops.to_ltrb(box_ops.centers(candidates), gt_boxes[:, :, None])
    good = (iou >= threshold) & (ops.min(ltrb, axis=-1) > INSIDE) & gt_valid[..., None]
    good = good if real is None else good & real
    overlap = _spread(ops.where(good, ops.maximum(iou, TINY), 0.0), rows, len(anchors))
    return AtssCandidates(overlap > 0, overlap, threshold[..., 0])


def assign_anchors(candidates, ignored=None):
    """Assigns to each anchor the object of highest IoU; ties go to the lowest row.

    Args:
        candidates: AtssCandidates.
        ignored:    as in `atss_candidates`.
    Returns:
        (B, A) int32, see kgarden/targets/assign_result.py.
    """
    best = ops.cast(ops.argmax(candidates.overlap, axis=1), "int32")
    matched = ops.where(ops.any(candidates.possible, axis=1), best, BACKGROUND)
    return matched if ignored is None else ops.where(ignored, IGNORED, matched)


def _nearest(anchors, counts, gt_boxes, top_k, ignored):
    """Rows of the anchors of each level whose centres are nearest to an object's.   (B, M, K) int32."""
    x, y = box_ops.centers(anchors).T
    center = box_ops.centers(gt_boxes)
    distance = ops.square(x - center[..., :1]) + ops.square(y - center[..., 1:])  # (B, M, A)
    if ignored is not None:
        distance = ops.where(ignored[:, None], float("inf"), distance)
    rows, start = [], 0
    for count in counts:
        nearest = ops.top_k(-distance[..., start : start + count], min(top_k, count))[1]
        rows.append(ops.cast(nearest, "int32") + start)
        start += count
    return ops.concatenate(rows, axis=-1)


def _mean_and_deviation(iou, real):
    """Mean and sample deviation of the IoUs of candidates, added.   (B, M, K) -> (B, M, 1).

    Args:
        real: (B, M, K) bool, candidates that count; None: all.
    """
    if real is None:
        mean = ops.mean(iou, axis=-1, keepdims=True)
        variance = ops.sum(ops.square(iou - mean), axis=-1, keepdims=True) / max(iou.shape[-1] - 1, 1)
        return mean + ops.sqrt(variance)
    count = ops.sum(ops.cast(real, "float32"), axis=-1, keepdims=True)
    mean = ops.sum(ops.where(real, iou, 0.0), axis=-1, keepdims=True) / ops.maximum(count, 1.0)
    squares = ops.where(real, ops.square(iou - mean), 0.0)
    return mean + ops.sqrt(ops.sum(squares, axis=-1, keepdims=True) / ops.maximum(count - 1, 1.0))


def _spread(values, rows, width):
    """Scatters values (B, M, K) to their rows, 0 elsewhere.   (B, M, A)."""
    batch, objects, count = ops.shape(rows)
    first = ops.arange(batch * objects, dtype="int32") * width
    index = ops.reshape(rows, (-1, count)) + first[:, None]
    flat = ops.scatter(ops.reshape(index, (-1, 1)), ops.reshape(values, (-1,)), (batch * objects * width,))
    return ops.reshape(flat, (batch, objects, width))
