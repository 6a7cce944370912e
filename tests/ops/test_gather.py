import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.ops.gather import gather

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "array, rows, batch_dims",
    [
        ((2, 5), (2, 3), 1),
        ((2, 5, 4), (2, 7), 1),
        ((2, 5, 4, 3), (2,), 1),  # one row for each image
        ((2, 5), (2, 3, 2), 1),
        ((2, 3, 5, 4), (2, 3), 2),
        ((5, 4), (2, 3), 0),
    ],
)
def test_rows_are_those_of_numpy(array, rows, batch_dims):
    values, chosen = RNG.normal(size=array).astype("float32"), RNG.integers(0, 5, rows).astype("int32")
    expected = values[(*np.indices(rows)[:batch_dims], chosen)]
    np.testing.assert_array_equal(ops.convert_to_numpy(gather(values, chosen, batch_dims)), expected)


def test_gradients_of_a_row_taken_twice_are_added():
    rows = np.int32([[1, 1], [0, 2]])
    factors = np.float32([[2, 3], [5, 7]])[..., None]
    _, [gradient] = value_and_gradients(
        lambda array: ops.sum(gather(array, rows) * factors), [np.zeros((2, 3, 2))]
    )
    np.testing.assert_array_equal(gradient[..., 0], [[0, 5, 0], [5, 0, 7]])
