"""Greedy matching of detections and objects as in COCO, vectorised.

In COCO, detections are processed by descending score, and each takes the unmatched object of the highest IoU.
This is equivalent to deferred acceptance (Gale-Shapley): each detection proposes to its highest-IoU object,
objects keep the highest-scoring proposer, and rejected detections propose again. This takes a few vectorised
rounds.
"""

import numpy as np


def match(pairs, rank, num_detections, num_objects, last=None):
    """Matches detections and objects greedily by score, as COCO does.

    Args:
        pairs:          Pairs that may match, of sufficient IoU and equal class.
        rank:           (N,) position of each detection by score, 0 = highest.
        num_detections: N.
        num_objects:    M.
        last:           (M,) bool, objects that a detection matches only if it can match no other; None: none.
    Returns:
        (N,) row of the object that each detection matches, -1: none.
    """
    # by detection, highest IoU first; ties go to the later object, as in pycocotools
    later = np.zeros(num_objects, bool) if last is None else last
    order = np.lexsort((-pairs.object, -pairs.iou, later[pairs.object], pairs.detection))
    rows, gt_rows = pairs.detection[order], pairs.object[order]
    next_ = np.searchsorted(rows, np.arange(num_detections), "left")  # pair of the next proposal
    end = np.searchsorted(rows, np.arange(num_detections), "right")
    holder = np.full(num_objects, -1)  # detection that each object keeps so far
    matched = np.full(num_detections, -1)
    proposing = np.flatnonzero(next_ < end)
    while len(proposing):
        proposing = proposing[np.argsort(rank[proposing], kind="stable")]
        wanted, first = np.unique(gt_rows[next_[proposing]], return_index=True)
        best = proposing[first]
        held = holder[wanted]
        accepted = (held < 0) | (rank[best] < rank[held])
        displaced = held[accepted & (held >= 0)]
        matched[displaced] = -1
        holder[wanted[accepted]] = best[accepted]
        matched[best[accepted]] = wanted[accepted]
        rejected = np.concatenate([np.setdiff1d(proposing, best[accepted], assume_unique=True), displaced])
        next_[rejected] += 1
        proposing = rejected[next_[rejected] < end[rejected]]
    return matched


def best_of(pairs, num, prefer=None):
    """Selects the pair of the largest overlap of each detection.

    Args:
        pairs:  Pairs.
        num:    N, detections.
        prefer: (M,) ties go to the object with the smaller number here, then to the earlier one.
    Returns:
        (iou, target): (N,) overlap, 0 without a pair; (N,) row of the object, -1 without a pair.
    """
    first = np.zeros(len(pairs)) if prefer is None else prefer[pairs.object]
    order = np.lexsort((pairs.object, first, -pairs.iou, pairs.detection))
    rows, at = np.unique(pairs.detection[order], return_index=True)
    iou, target = np.zeros(num), np.full(num, -1)
    iou[rows], target[rows] = pairs.iou[order][at], pairs.object[order][at]
    return iou, target


def first_claims(target, rank, claiming):
    """Selects the highest-scoring detection of those that claim the same object.

    Args:
        target:   (N,) row of the object.
        rank:     (N,) position by score.
        claiming: (N,) bool, detections with a claim.
    Returns:
        (N,) bool.
    """
    rows = np.flatnonzero(claiming)
    rows = rows[np.argsort(rank[rows], kind="stable")]
    _, first = np.unique(target[rows], return_index=True)
    chosen = np.zeros(len(target), bool)
    chosen[rows[first]] = True
    return chosen


def ranks(order):
    """Inverts an order: returns the position of each row."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank
