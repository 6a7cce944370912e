"""Which detection finds which object: COCO's greedy matching, without a loop over detections.

Detections come in the order of their scores, and each takes the object it overlaps most among those that are
still free. That is what comes out, too, if all of them ask at once for the object they like best, each object
keeps the surest asker, and the rest ask for their next: a few rounds over arrays.
"""

import numpy as np


def match(pairs, rank, num_found, num_there):
    """COCO's greedy matching.

    Args:
        pairs:     Pairs that may be matched: overlap, class and flags are settled.
        rank:      (N,) place of each detection by score, 0 = surest.
        num_found: N.
        num_there: M.
    Returns:
        (N,) row of the object that each detection takes, -1: none.
    """
    # by detection, its best object first; of equal overlaps the later one, as in pycocotools
    order = np.lexsort((-pairs.there, -pairs.iou, pairs.found))
    found, there = pairs.found[order], pairs.there[order]
    next_ = np.searchsorted(found, np.arange(num_found), "left")  # the pair that each will ask for
    end = np.searchsorted(found, np.arange(num_found), "right")
    holder = np.full(num_there, -1)  # who has each object so far
    taken = np.full(num_found, -1)
    asking = np.flatnonzero(next_ < end)
    while len(asking):
        asking = asking[np.argsort(rank[asking], kind="stable")]
        wanted, first = np.unique(there[next_[asking]], return_index=True)
        surest = asking[first]
        held = holder[wanted]
        wins = (held < 0) | (rank[surest] < rank[held])
        losers = held[wins & (held >= 0)]
        taken[losers] = -1
        holder[wanted[wins]] = surest[wins]
        taken[surest[wins]] = wanted[wins]
        rejected = np.concatenate([np.setdiff1d(asking, surest[wins], assume_unique=True), losers])
        next_[rejected] += 1
        asking = rejected[next_[rejected] < end[rejected]]
    return taken


def best_of(pairs, num, prefer=None):
    """The pair of largest overlap of each detection.

    Args:
        pairs:  Pairs.
        num:    N, detections.
        prefer: (M,) among equal overlaps, objects with the smaller number here; then the earlier one.
    Returns:
        (iou, there): (N,) overlap, 0 where there is none; (N,) row of the object, -1 where there is none.
    """
    first = np.zeros(len(pairs)) if prefer is None else prefer[pairs.there]
    order = np.lexsort((pairs.there, first, -pairs.iou, pairs.found))
    rows, at = np.unique(pairs.found[order], return_index=True)
    iou, there = np.zeros(num), np.full(num, -1)
    iou[rows], there[rows] = pairs.iou[order][at], pairs.there[order][at]
    return iou, there


def first_claims(there, rank, claiming):
    """Of the detections that claim the same object the surest, each object once.

    Args:
        there:    (N,) row of the object.
        rank:     (N,) place by score.
        claiming: (N,) bool.
    Returns:
        (N,) bool.
    """
    rows = np.flatnonzero(claiming)
    rows = rows[np.argsort(rank[rows], kind="stable")]
    _, first = np.unique(there[rows], return_index=True)
    chosen = np.zeros(len(there), bool)
    chosen[rows[first]] = True
    return chosen


def ranks(order):
    """The inverse of an order: place of each row."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank
