"""How often images come: the references' weights, and streams that keep to them."""

import itertools

import numpy as np
import pytest
from support.golden import assert_agrees, goldens, params

from kgarden.data import sampling
from kgarden.errors import UserError

PAIRS = [(0, 5), (0, 5), (1, 5), (1, 9), (3, 9), (3, 2)]  # image 2 has nothing


def first(stream, count):
    return np.array(list(itertools.islice(stream, count)))


@pytest.mark.parametrize("g", goldens("d2_samplers"), ids=str)
def test_weights(g):
    settings = params(g)
    pairs, count = g["image_category_pairs"], settings["num_images"]
    got = {"class_aware_weight": sampling.class_aware_weights(pairs, count)}
    for threshold in settings["repeat_factor_thresholds"]:
        got[f"repeat_factor_t{threshold}"] = sampling.repeat_factors(pairs, count, threshold)
    assert_agrees(g, got)


def test_weights_by_hand():
    """Class 5 is in images 0, 1; class 9 in 1, 3; class 2 in 3 alone; four images."""
    np.testing.assert_allclose(sampling.class_aware_weights(PAIRS, 4), [0.5, 1.0, 0.0, 1.5])
    np.testing.assert_allclose(sampling.repeat_factors(PAIRS, 4, 1.0), [2**0.5, 2**0.5, 1.0, 2.0])
    np.testing.assert_allclose(sampling.repeat_factors(PAIRS, 4, 0.25), np.ones(4))


def test_no_objects_at_all():
    np.testing.assert_array_equal(sampling.repeat_factors([], 3, 0.5), np.ones(3))
    np.testing.assert_array_equal(sampling.class_aware_weights([], 3), np.zeros(3))


def test_natural_yields_every_image_once_per_epoch():
    rows = first(sampling.natural(7, (0,)), 21).reshape(3, 7)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(7), (3, 1)))
    assert not np.array_equal(rows[0], rows[1])


def test_repeated_rounds_stochastically():
    factors = np.array([1.0, 2.0, 1.25, 3.5])
    rows = first(sampling.repeated(factors, (1,)), 40_000)
    shares = np.bincount(rows, minlength=4) / 40_000
    np.testing.assert_allclose(shares, factors / factors.sum(), atol=0.004)
    epoch = first(sampling.repeated(np.array([1.0, 3.0]), (1,)), 4)
    np.testing.assert_array_equal(np.sort(epoch), [0, 1, 1, 1])


def test_drawn_follows_the_weights():
    rows = first(sampling.drawn([0.5, 0.0, 1.5], (2,)), 40_000)
    np.testing.assert_allclose(np.bincount(rows, minlength=3) / 40_000, [0.25, 0, 0.75], atol=0.01)


def test_class_aware_balances_classes():
    """Ninety images of class 0, ten of class 1."""
    pairs = [(n, int(n >= 90)) for n in range(100)]
    rows = first(sampling.drawn(sampling.class_aware_weights(pairs, 100), (3,)), 20_000)
    assert abs((rows >= 90).mean() - 0.5) < 0.02


def test_rounds_have_every_class_once():
    """Of PAIRS: class 5 is in images 0, 1; class 9 in 1, 3; class 2 in 3 alone."""
    rounds = first(sampling.class_rounds(PAIRS, (5,)), 3 * 20_000).reshape(-1, 3)
    images_of = {5: [0, 1], 9: [1, 3], 2: [3]}
    possible = {tuple(sorted((a, b, 3))) for a in images_of[5] for b in images_of[9]}
    assert {tuple(sorted(one)) for one in rounds.tolist()} == possible
    assert len({tuple(one) for one in rounds.tolist()}) > len(possible)  # in changing order
    shares = np.bincount(rounds.ravel(), minlength=4) / rounds.size
    np.testing.assert_allclose(shares, [0.5 / 3, 1 / 3, 0, 1.5 / 3], atol=0.01)
    # images of one class, and places in a round, are equally likely
    np.testing.assert_allclose((rounds == 0).mean(axis=0), [0.5 / 3] * 3, atol=0.01)


def test_rounds_balance_classes_exactly():
    """Ninety images of class 0, ten of class 1: one of each in every round."""
    pairs = [(n, int(n >= 90)) for n in range(100)] * 2  # two objects each change nothing
    rows = first(sampling.class_rounds(pairs, (3,)), 2000).reshape(-1, 2)
    assert ((rows >= 90).sum(axis=1) == 1).all()
    assert len(set(rows.ravel().tolist())) == 100
    with pytest.raises(UserError, match="there are none"):
        next(sampling.class_rounds([], (3,)))


@pytest.mark.parametrize(
    "stream",
    [
        lambda key: sampling.natural(50, key),
        lambda key: sampling.repeated(np.linspace(1, 3, 50), key),
        lambda key: sampling.drawn(np.linspace(1, 3, 50), key),
        lambda key: sampling.class_rounds([(n, n % 7) for n in range(50)], key),
    ],
)
def test_streams_are_functions_of_their_key(stream):
    np.testing.assert_array_equal(first(stream((4, 0)), 300), first(stream((4, 0)), 300))
    assert not np.array_equal(first(stream((4, 0)), 300), first(stream((4, 1)), 300))
