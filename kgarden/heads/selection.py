"""Selection of detections or proposals: thresholds, top-k per level, NMS, soft-NMS, 3x3 peaks or none.

Top-k per level, suppression of duplicates (or none), top-k overall. Everything is padded to a fixed
length and has `valid` and `source`.
"""

import math
from dataclasses import dataclass

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather
from kgarden.ops.nms import nms
from kgarden.ops.soft_nms import soft_nms
from kgarden.structures import BOXES, LABELS, SCORES, SOURCE, VALID

GROUP = "group"
METHODS = ("nms", "soft_nms", "peaks", "none")


@dataclass(frozen=True)
class Selection:
    """Selects detections or proposals from candidates.

    Attributes:
        score_threshold: candidates must score strictly above it; compared with
                         candidates["threshold_scores"] if a head gives them.
        per_level:       number of (box, class) pairs kept per level, best first; None: all.
        at_most_cells:   and no more than the level has cells, or anchors (cvpods).
        method:          "nms": greedy, suppresses an IoU strictly above `iou`;
                         "soft_nms": decays the scores of such boxes, see `soft`, `sigma`, `min_score` and
                         kgarden/ops/soft_nms.py;
                         "peaks": 3x3 maxima of the score map of each level; "none": top-k alone.
        iou:             NMS threshold.
        class_wise:      boxes of different classes never suppress each other.
        level_wise:      boxes of different levels never suppress each other.
        soft:            "linear" or "gaussian".
        sigma:           of "gaussian".
        min_score:       boxes with a score below it after soft-NMS are dropped.
        total:           length of the result.
        pool:            maximum number of pairs before suppression, best first, over all levels.
        shared_by:       so many consecutive images of a batch keep `total` rows together, the best of all, as
                         the images of one device do in maskrcnn-benchmark's training; 1: each has its own.
    """

    score_threshold: float = 0.05
    per_level: int | None = 1000
    at_most_cells: bool = False
    method: str = "nms"
    iou: float = 0.6
    class_wise: bool = True
    level_wise: bool = False
    soft: str = "linear"
    sigma: float = 0.5
    min_score: float = 0.001
    total: int = 100
    pool: int = 10_000
    shared_by: int = 1

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"selection.method {self.method!r}: one of {', '.join(METHODS)}")
        if self.soft not in ("linear", "gaussian"):
            raise UserError(f"selection.soft {self.soft!r}: one of linear, gaussian")
        if self.shared_by < 1:
            raise UserError(f"selection.shared_by {self.shared_by}: 1 or more")

    def __call__(self, candidates):
        """Selects detections or proposals.

        Args:
            candidates: see `pick`.
        Returns:
            detections as in kgarden.structures, K = `total`; invalid rows hold zeros and label -1.
        """
        found = self.suppress(self.pick(candidates))
        return found if self.shared_by == 1 else _cleared(found, _best_of_images(found, self.shared_by))

    def pick(self, candidates):
        """Selects (box, class) pairs by threshold and top-k per level, before suppression.

        Args:
            candidates: {"boxes": (B, A, 4), or class-specific (B, A, C, 4),
                         "scores": (B, A, C)} and, optionally,
                         "threshold_scores" (B, A, C): compared with the threshold instead of the score,
                         "ranking_scores" (B, A, C): used for the top-k of a level instead of the score,
                         "valid" (B, A, C) bool,
                         "keep_after_topk" (B, A) bool: False counts towards the per-level top-k and is
                         removed afterwards,
                         "levels": list of (H_l, W_l), or (H_l, W_l, boxes of a cell), A in all; without
                         it, one level.
        Returns:
            {"boxes": (B, N, 4), "scores": (B, N), "labels": (B, N), "source": (B, N)}; rejected pairs have a
            score below 0. With class-wise or level-wise suppression also "group" (B, N) int32: boxes of
            different groups never suppress each other.
        """
        scores = rank = self._gated(candidates)
        # No level has more of the best `pool` pairs: sorting all, 300,000 of 1,203 classes, is slow.
        most = self.pool
        if candidates.get("ranking_scores") is not None:  # another order than that of the pool
            rank, most = ops.where(scores > 0, candidates["ranking_scores"], -1.0), math.inf
        pairs = self._best_of_levels(rank, candidates.get("levels"), most)
        if pairs.shape[1] > self.pool:
            pairs = gather(pairs, ops.top_k(_at(scores, pairs), self.pool)[1])
        picked = _picked(candidates[BOXES], scores, pairs)
        if candidates.get("keep_after_topk") is not None:
            keep = gather(candidates["keep_after_topk"], picked[SOURCE])
            picked[SCORES] = ops.where(keep, picked[SCORES], -1.0)
        group = self._groups(picked, scores.shape[-1], candidates.get("levels"))
        return picked if group is None else {**picked, GROUP: group}

    def suppress(self, picked):
        """Suppresses duplicates and keeps the `total` best pairs.

        Args:
            picked: from `pick`, or several concatenated; truncated to the best `pool`.
        Returns:
            detections, see `__call__`.
        """
        if picked[SCORES].shape[1] > self.pool:
            best = ops.top_k(picked[SCORES], self.pool)[1]
            picked = {key: gather(value, best) for key, value in picked.items()}
        total = min(self.total, picked[SCORES].shape[1])
        boxes, scores, groups = picked[BOXES], picked[SCORES], picked.get(GROUP)
        valid = scores > 0
        if self.method == "nms":
            rows, valid = nms(boxes, scores, valid, iou_threshold=self.iou, max_output=total, labels=groups)
        elif self.method == "soft_nms":
            options = dict(kind=self.soft, iou_threshold=self.iou, sigma=self.sigma, min_score=self.min_score)
            rows, decayed, valid = soft_nms(boxes, scores, valid, total, labels=groups, **options)
            return _padded(picked, rows, valid, total=self.total, scores=decayed)
        else:
            rows = ops.top_k(scores, total)[1]
            valid = gather(valid, rows)
        return _padded(picked, rows, valid, self.total)

    def _gated(self, candidates):
        """Scores (B, A, C), -1 for rejected candidates."""
        scores = ops.cast(candidates[SCORES], "float32")
        keep = candidates.get("threshold_scores", scores) > self.score_threshold
        if candidates.get(VALID) is not None:
            keep = keep & candidates[VALID]
        if self.method == "peaks":
            keep = keep & _is_peak(scores, candidates["levels"])
        return ops.where(keep, scores, -1.0)

    def _best_of_levels(self, scores, levels, limit):
        """Flat indices (row * C + class) of the top-k pairs of each level, at most `limit`.   (B, N) int."""
        classes = scores.shape[-1]
        counts = [scores.shape[1]] if levels is None else [math.prod(level) for level in levels]
        pairs, start = [], 0
        for count in counts:
            of_level = ops.reshape(scores[:, start : start + count], (-1, count * classes))
            most = min(self.per_level or count * classes, count if self.at_most_cells else count * classes)
            best = ops.top_k(of_level, min(most, limit))[1]
            pairs.append(ops.cast(best, "int32") + start * classes)
            start += count
        return ops.concatenate(pairs, axis=1)

    def _groups(self, picked, classes, levels):
        """Boxes of different groups never suppress each other.   (B, N) int32, or None: one group."""
        labels = picked[LABELS] if self.class_wise else None
        if not self.level_wise or levels is None:
            return labels
        starts = np.cumsum([math.prod(level) for level in levels])[:-1].astype("int32")
        level = ops.sum(ops.cast(picked[SOURCE][..., None] >= starts, "int32"), axis=-1)
        return level if labels is None else level * classes + labels


def clipped(found, size_hw):
    """Detections whose boxes are clipped to their images; those left without area are no longer valid.

    Args:
        found:   detections as in kgarden.structures.
        size_hw: (B, 2) int32 px.
    """
    boxes = box_ops.clip(found[BOXES], size_hw)
    return {**found, BOXES: boxes, VALID: found[VALID] & (box_ops.area(boxes) > 0)}


def _at(scores, pairs):
    flat = ops.reshape(scores, (-1, scores.shape[1] * scores.shape[2]))
    return gather(flat, pairs)


def _picked(boxes, scores, pairs):
    """The (box, class) pairs at flat indices (B, N), as rows."""
    classes = scores.shape[-1]
    source = pairs // classes
    if len(boxes.shape) == 4:
        flat = ops.reshape(boxes, (-1, boxes.shape[1] * classes, 4))
        chosen = gather(flat, pairs)
    else:
        chosen = gather(boxes, source)
    return {
        BOXES: chosen,
        SCORES: _at(scores, pairs),
        LABELS: ops.cast(pairs % classes, "int32"),
        SOURCE: ops.cast(source, "int32"),
    }


def _padded(picked, rows, valid, total, scores=None):
    """Rows of `picked`, cleared where invalid, padded to `total`; `scores` (B, rows) replace theirs."""
    missing = total - rows.shape[1]
    rows = ops.pad(rows, ((0, 0), (0, missing)))
    valid = ops.pad(valid, ((0, 0), (0, missing)), constant_values=False)
    boxes = gather(picked[BOXES], rows)
    flat = {key: gather(picked[key], rows) for key in (SCORES, LABELS, SOURCE)}
    if scores is not None:
        flat[SCORES] = ops.pad(scores, ((0, 0), (0, missing)))
    return _cleared({BOXES: boxes, **flat}, valid)


def _cleared(rows, valid):
    """Rows with `valid` (B, K), cleared where they are not."""
    return {
        BOXES: ops.where(valid[..., None], rows[BOXES], 0.0),
        SCORES: ops.where(valid, rows[SCORES], 0.0),
        LABELS: ops.where(valid, rows[LABELS], -1),
        SOURCE: ops.where(valid, rows[SOURCE], -1),
        VALID: valid,
    }


def _best_of_images(found, images):
    """Rows that are among the K best of so many consecutive images.   (B, K) bool."""
    batch, rows = ops.shape(found[SCORES])
    scores = ops.where(found[VALID], found[SCORES], -1.0)
    scores = ops.pad(scores, ((0, -batch % images), (0, 0)), constant_values=-1.0)  # a last, smaller group
    groups = ops.reshape(scores, (-1, images * rows))
    rank = ops.argsort(ops.argsort(-groups))  # of each row in its group, 0 the best
    return ops.reshape(rank < rows, (-1, rows))[:batch] & found[VALID]


def _is_peak(scores, levels):
    """Whether a score is the maximum of its 3x3 neighbourhood on its level.   (B, A, C) bool.

    Zhou, Wang, Krähenbühl 2019, arXiv:1904.07850, section 4.
    """
    if any(math.prod(level[2:]) > 1 for level in levels):
        raise UserError("selection.method 'peaks' needs a head with one box for each cell; use 'nms'")
    classes, peaks, start = scores.shape[-1], [], 0
    for height, width, *_ in levels:
        of_level = scores[:, start : start + height * width]
        grid = ops.reshape(of_level, (-1, height, width, classes))
        highest = ops.max_pool(grid, 3, strides=1, padding="same")
        peaks.append(ops.reshape(grid == highest, (-1, height * width, classes)))
        start += height * width
    return ops.concatenate(peaks, axis=1)
