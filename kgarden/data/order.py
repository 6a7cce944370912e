"""Order of images and their grouping into batches of one canvas; a pure function of the seed.

The samplers are in sampling.py. A batch holds images of one canvas: an image waits until there are enough
images of its canvas. A resumed training replays the order from step 0, which takes a second for some million
images, and continues exactly where it stopped.
"""

import functools
import itertools

import numpy as np

from kgarden.data.sampling import natural

CHOICES = 4096  # choices between data sets per call of the generator
CHOOSING = 2**31  # in seeds, at the position of the data set's number: the choice between data sets


def endless_rows(sizes, weights, seed, streams=None):
    """Endless stream of rows, drawn from several data sets.

    Args:
        sizes:   images of each data set; rows count through all of them.
        weights: relative sampling frequency of each data set.
        seed:    int, or several.
        streams: for each data set a function of a key -> endless rows, of `sampling`; None: every image once
                 per epoch.
    """
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    streams = streams or [functools.partial(natural, size) for size in sizes]
    key = tuple(np.atleast_1d(seed).tolist())
    started = [
        map(start.__add__, stream((*key, number)))
        for number, (stream, start) in enumerate(zip(streams, first.tolist(), strict=True))
    ]
    if len(started) == 1:
        yield from started[0]
    probability = np.asarray(weights, "float64") / np.sum(weights)
    for chunk in itertools.count():
        rng = np.random.default_rng([*key, CHOOSING, chunk])
        for number in rng.choice(len(sizes), CHOICES, p=probability).tolist():
            yield next(started[number])


def batches(rows, canvas, batch_size, start_step=0, others=None, partners=0):
    """Endless batches of images of one canvas.

    Args:
        rows:       iterator over rows.
        canvas:     (N,) int, the canvas of each row.
        batch_size: B.
        start_step: number of batches to skip.
        others:     iterator over rows: partner images for mixing, consumed in stream order.
        partners:   K, number of partners per image.
    Yields:
        (B, 3 + K) int64: position in the stream, row, canvas, rows of the partners.
    """
    grouped = _grouped(rows, canvas.tolist(), batch_size, others=others, partners=partners)
    return itertools.islice(grouped, start_step, None)


def in_order(canvas, batch_size):
    """Every image once, ordered by canvas; the last batch of a canvas is padded with row -1.

    Args:
        canvas:     (N,) int, the canvas of each row.
        batch_size: B.
    Returns:
        (S, B, 3) int64: row or -1, row or -1, canvas.
    """
    steps = []
    for number in np.unique(canvas):
        rows = np.flatnonzero(canvas == number)
        rows = np.concatenate([rows, np.full(-len(rows) % batch_size, -1)]).reshape(-1, batch_size)
        steps.append(np.stack([rows, rows, np.full_like(rows, number)], axis=-1))
    return np.concatenate(steps).astype("int64")


def _grouped(rows, canvas, batch_size, others, partners):
    waiting = {number: [] for number in set(canvas)}
    for position, row in enumerate(rows):
        group = waiting[canvas[row]]
        group.append((position, row, canvas[row], *itertools.islice(others or (), partners)))
        if len(group) == batch_size:
            yield np.array(group, "int64")
            group.clear()
