import numpy as np
import pytest
from keras import ops
from scipy import stats
from support.jit import jitted

from kgarden.ops.random import hash_uniform


def draw(seed, step, ids, n):
    return ops.convert_to_numpy(hash_uniform(seed, step, ops.convert_to_tensor(np.asarray(ids, "int32")), n))


def reference(seed, step, image_id, j):
    """The same hash in Python integers, written from the definition of lowbias32."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    key = mix(mix(mix((seed + 0x9E3779B9) % 2**32) ^ step) ^ (image_id % 2**32))
    return (mix(key ^ mix((j + 0x9E3779B9) % 2**32)) >> 8) / 2**24


def test_every_backend_computes_the_same_hash():
    got = draw(7, 123456, [0, 1, 2_000_000_000, -3], 5)
    expected = [[reference(7, 123456, i, j) for j in range(5)] for i in (0, 1, 2_000_000_000, -3)]
    np.testing.assert_array_equal(got, np.float32(expected))


def test_seed_and_step_may_be_tensors():
    a = hash_uniform(ops.convert_to_tensor(3), ops.convert_to_tensor(4), ops.convert_to_tensor([5]), 6)
    np.testing.assert_array_equal(ops.convert_to_numpy(a), draw(3, 4, [5], 6))


@pytest.mark.parametrize("varied", ["n", "image_id", "step", "seed"])
def test_uniform_along_each_coordinate(varied):
    many = 20_000
    if varied == "n":
        x = draw(1, 2, [3], many)[0]
    elif varied == "image_id":
        x = draw(1, 2, np.arange(many), 1)[:, 0]
    else:
        seed_and_step = {"step": lambda i: (1, i), "seed": lambda i: (i, 2)}[varied]
        one = jitted(lambda i: hash_uniform(*seed_and_step(i), ops.convert_to_tensor([3]), 1))
        x = np.array([one(np.int32(i)) for i in range(1000)])[:, 0, 0]
    assert (x >= 0).all() and (x < 1).all()
    deviation = np.sqrt(1 / 12 / len(x))
    assert abs(x.mean() - 0.5) < 4 * deviation
    counts, _ = np.histogram(x, 20, (0, 1))
    assert stats.chisquare(counts).pvalue > 1e-4
    lag = np.corrcoef(x[:-1], x[1:])[0, 1]
    assert abs(lag) < 4 / np.sqrt(len(x))


def test_streams_are_independent():
    n = 20_000
    streams = [
        draw(0, 0, [0], n),
        draw(0, 0, [1], n),
        draw(0, 1, [0], n),
        draw(1, 0, [0], n),
        draw(0, 0, [2], n),
    ]
    correlation = np.corrcoef(np.concatenate(streams))
    assert np.abs(correlation - np.eye(len(streams))).max() < 4 / np.sqrt(n)
    joint, _, _ = np.histogram2d(streams[0][0], streams[1][0], bins=10)
    assert stats.chisquare(joint.ravel()).pvalue > 1e-4


def test_numbers_of_an_image_do_not_depend_on_its_batch():
    together = draw(5, 6, [10, 11, 12], 4)
    np.testing.assert_array_equal(together[1:2], draw(5, 6, [11], 4))
    np.testing.assert_array_equal(together[:, :2], draw(5, 6, [10, 11, 12], 2))
