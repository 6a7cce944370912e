"""Order of images and their grouping into batches of one canvas; a pure function of the seed.

The samplers are in sampling.py. Batches hold images of one canvas: an image waits until its canvas has enough
images for a batch. The order from step k on is found by counting from step 0, which takes a second for some
million images; a resumed training continues exactly where it stopped.
"""

import functools
import itertools

import numpy as np

from kgarden.data.sampling import natural

CHOICES = 4096  # choices between data sets that are drawn at once
CHOOSING = 2**31  # where the number of a data set stands in the seeds of its epochs


def endless_rows(sizes, weights, seed, streams=None):
    """Rows of the images of several data sets, one after the other, without end.

    Args:
        sizes:   images of each data set; rows count through all of them.
        weights: how often each data set is drawn from.
        seed:    int, or several.
        streams: for each data set a function of a key that gives its rows without end, of `sampling`; None:
                 every image once an epoch.
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
    share = np.asarray(weights, "float64") / np.sum(weights)
    for chunk in itertools.count():
        rng = np.random.default_rng([*key, CHOOSING, chunk])
        for number in rng.choice(len(sizes), CHOICES, p=share).tolist():
            yield next(started[number])


def batches(rows, canvas, batch_size, start_step=0, others=None, partners=0):
    """Batches of images of one canvas, without end.

    Args:
        rows:       iterator over rows.
        canvas:     (N,) int, the canvas of each row.
        batch_size: B.
        start_step: leave out so many batches.
        others:     iterator over rows: the images to mix with, taken in the order of the stream.
        partners:   K, how many of them for each image.
    Yields:
        (B, 3 + K) int64: number of the image in the stream, row, canvas, rows of its partners.
    """
    grouped = _grouped(rows, canvas.tolist(), batch_size, others=others, partners=partners)
    return itertools.islice(grouped, start_step, None)


def in_order(canvas, batch_size):
    """Every image once, those of canvas 0 first; the last batch of a canvas is filled with row -1.

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


def _grouped(rows, canvas, batch_size, others, partners):
    waiting = {number: [] for number in set(canvas)}
    for position, row in enumerate(rows):
        group = waiting[canvas[row]]
        group.append((position, row, canvas[row], *itertools.islice(others or (), partners)))
        if len(group) == batch_size:
            yield np.array(group, "int64")
            group.clear()
