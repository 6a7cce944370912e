"""Which picture comes when: a function of the seed alone, computed on the host before anything is read.

Every epoch of a data set is one permutation of all its pictures. Batches hold pictures of one canvas: a
picture waits until enough others of its canvas have come. The order from step k on is found by counting
from step 0, which takes a second for some million pictures; so training goes on exactly where it stopped.
"""

import itertools

import numpy as np

CHOICES = 4096  # choices between data sets that are drawn at once
CHOOSING = 2**31  # where the number of a data set stands in the seeds of its epochs


def endless_rows(sizes, weights, seed):
    """Rows of the pictures of several data sets, one after the other, without end.

    Args:
        sizes:   pictures of each data set; rows count through all of them.
        weights: how often each data set is drawn from.
        seed:    int.
    """
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    streams = [
        _epochs(size, start, (seed, number))
        for number, (size, start) in enumerate(zip(sizes, first, strict=True))
    ]
    if len(streams) == 1:
        yield from streams[0]
    share = np.asarray(weights, "float64") / np.sum(weights)
    for chunk in itertools.count():
        rng = np.random.default_rng([seed, CHOOSING, chunk])
        for number in rng.choice(len(sizes), CHOICES, p=share).tolist():
            yield next(streams[number])


def batches(rows, canvas, batch_size, start_step=0):
    """Batches of pictures of one canvas, without end.

    Args:
        rows:       iterator over rows.
        canvas:     (N,) int, the canvas of each row.
        batch_size: B.
        start_step: leave out so many batches.
    Yields:
        (B, 3) int64: number of the picture in the stream, row, canvas.
    """
    return itertools.islice(_grouped(rows, canvas.tolist(), batch_size), start_step, None)


def in_order(canvas, batch_size):
    """Every picture once, those of canvas 0 first; the last batch of a canvas is filled with row -1.

    Args:
        canvas:     (N,) int, the canvas of each row.
        batch_size: B.
    Returns:
        (S, B, 3) int64: number, row or -1, canvas.
    """
    steps = []
    for number in np.unique(canvas):
        rows = np.flatnonzero(canvas == number)
        rows = np.concatenate([rows, np.full(-len(rows) % batch_size, -1)]).reshape(-1, batch_size)
        steps.append(np.stack([rows, rows, np.full_like(rows, number)], axis=-1))
    return np.concatenate(steps).astype("int64")


def _epochs(size, start, key):
    for epoch in itertools.count():
        yield from (np.random.default_rng([*key, epoch]).permutation(size) + start).tolist()


def _grouped(rows, canvas, batch_size):
    waiting = {number: [] for number in set(canvas)}
    for position, row in enumerate(rows):
        group = waiting[canvas[row]]
        group.append((position, row, canvas[row]))
        if len(group) == batch_size:
            yield np.array(group, "int64")
            group.clear()
