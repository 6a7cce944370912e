"""Into how many parts a batch is dealt, and counts over all of them: replicas, and micro-batches in turn.

A loss divides by the objects of the whole batch. Replicas sum their counts as they go. Micro-batches come in
turn, so they are walked through twice: `counting` collects what each counts, `counted` answers with the sums.
"""

import contextlib
import threading

from keras import ops

from kgarden.ops import replicas


class _Walk(threading.local):
    """State of the walk through micro-batches while a step is traced; None outside of one.

    Each replica is traced in a thread of its own, and they take turns wherever one sums over all.
    """

    parts = 1
    collected = None  # first walk: one list of counts for each micro-batch
    totals = None  # second walk: the sums
    place = 0


_walk = _Walk()


def num_shares():
    """Parts of the batch that one call of the loss sees one of."""
    return replicas.num_replicas() * _walk.parts


def sum_over_shares(count):
    """The sum of a count over all parts of the batch.

    Args:
        count: () float32, of this part.
    """
    if _walk.totals is not None:
        _walk.place += 1
        return _walk.totals[_walk.place - 1]
    if _walk.collected is not None:
        _walk.collected[-1].append(count)
        return count
    return replicas.sum_over_replicas(count)


@contextlib.contextmanager
def counting(parts):
    """The first walk: every micro-batch begins with `counts.append([])`; yields the list of lists."""
    _walk.parts, _walk.collected = parts, []
    try:
        yield _walk.collected
    finally:
        _walk.parts, _walk.collected = 1, None


def totals_of(counts):
    """What `counting` has collected -> sums over all micro-batches and replicas, in the order of the loss."""
    return [replicas.sum_over_replicas(ops.sum(ops.stack(column))) for column in zip(*counts, strict=True)]


@contextlib.contextmanager
def counted(totals, parts):
    """One micro-batch of the second walk.

    Args:
        totals: of `totals_of`.
        parts:  number of micro-batches.
    """
    _walk.parts, _walk.totals, _walk.place = parts, totals, 0
    try:
        yield
    finally:
        _walk.parts, _walk.totals = 1, None
