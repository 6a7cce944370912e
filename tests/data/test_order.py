import collections
import itertools

import numpy as np
import pytest

from kgarden.data import order


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_every_epoch_is_a_different_permutation():
    rows = np.reshape(take(order.endless_rows([50], [1], seed=0), 500), (10, 50))
    for epoch in rows:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in rows}) == 10


def test_the_seed_decides():
    a, b, c = (take(order.endless_rows([50, 20], [1, 1], seed), 200) for seed in (0, 0, 1))
    assert a == b != c


def test_data_sets_are_drawn_by_weight_and_each_evenly():
    rows = take(order.endless_rows([30, 10], [1, 3], seed=0), 8000)
    counts = np.bincount(rows, minlength=40)
    assert abs(counts[30:].sum() / 8000 - 0.75) < 0.02
    for part in (counts[:30], counts[30:]):
        assert np.ptp(part) <= 1  # each its own epochs


def test_batches_hold_one_canvas_and_drop_no_image():
    canvas = np.array([0] * 30 + [1] * 5 + [2])
    rows = order.endless_rows([36], [1], seed=0)
    steps = take(order.batches(rows, canvas, 4), 900)
    for step in steps:
        assert step.shape == (4, 3) and len(set(step[:, 2])) == 1
        np.testing.assert_array_equal(step[:, 2], canvas[step[:, 1]])
    seen = collections.Counter(np.concatenate(steps)[:, 1].tolist())
    assert len(seen) == 36 and max(seen.values()) - min(seen.values()) <= 4
    positions = np.concatenate(steps)[:, 0]
    assert len(set(positions.tolist())) == len(positions)


@pytest.mark.parametrize("start", [1, 7, 100])
def test_start_step_gives_the_tail(start):
    canvas = np.array([0, 1, 0, 0, 1, 0, 2, 0, 0, 1])

    def batches(**options):
        return order.batches(order.endless_rows([7, 3], [1, 2], seed=4), canvas, 3, **options)

    whole = take(batches(), start + 20)
    np.testing.assert_array_equal(take(batches(start_step=start), 20), whole[start:])


def test_in_order_has_every_image_once():
    canvas = np.array([1, 0, 0, 1, 0, 0, 0, 1])
    steps = order.in_order(canvas, 3)
    assert steps.shape == (3, 3, 3)
    np.testing.assert_array_equal(steps[:, :, 1], [[1, 2, 4], [5, 6, -1], [0, 3, 7]])
    np.testing.assert_array_equal(steps[:, 0, 2], [0, 0, 1])
