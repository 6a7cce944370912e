"""Maps read between their cells, against loops over cells."""

import numpy as np
import pytest
from keras import ops
from support import reference_loops as loops
from support.gradients import value_and_gradients
from support.marks import slow_on_jax

from kgarden.ops.bilinear import aligned_bilinear, sigmoid_over_boxes


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(3, 5), (1, 4)])
def test_upsampling_agrees_with_loops(factor, size):
    x = np.random.default_rng(factor).normal(size=(2, *size, 3)).astype("float32")
    got = ops.convert_to_numpy(aligned_bilinear(ops.convert_to_tensor(x), factor))
    for image in range(2):
        for depth in range(3):
            want = loops.upsampled(x[image, ..., depth].astype("float64"), factor)
            np.testing.assert_allclose(got[image, ..., depth], want, atol=1e-5)


def test_upsampling_keeps_cells_and_linear_ramps():
    x = np.broadcast_to(np.arange(6.0)[:, None], (6, 4)).astype("float32")[None, ..., None]
    got = ops.convert_to_numpy(aligned_bilinear(x, 4))[0, :, 0, 0]
    np.testing.assert_allclose(got[2::4], np.arange(6))
    np.testing.assert_allclose(np.diff(got[2:-2]), 0.25)


@pytest.mark.parametrize("factor, stride", [(1, 8), (2, 8), (4, 8), (4, 4)])
def test_sampling_over_boxes_agrees_with_loops(factor, stride):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 3, 5, 7)).astype("float32")
    wide, high = 7 * stride, 5 * stride
    boxes = np.float32(
        [
            [[0, 0, wide, high], [3.3, 2.7, 11.1, 9.4], [5, 5, 5.01, 5.01]],
            [[wide - 4, high - 9, wide, high], [0, 0, 0, 0], [2, 0, 30, 1]],
        ]
    )
    got = sigmoid_over_boxes(logits, boxes, stride, factor, side=9)
    want = loops.sigmoid_over_boxes(logits, boxes, stride, factor, side=9)
    np.testing.assert_allclose(ops.convert_to_numpy(got), want, atol=2e-5)


@slow_on_jax
def test_gradients_of_upsampling():
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(1, 3, 4, 2)), rng.normal(size=(1, 12, 16, 2)).astype("float32")
    gradient = value_and_gradients(lambda x: ops.sum(aligned_bilinear(x, 4) * weight), [x])[1][0]
    for where in [(0, 0, 0, 0), (0, 1, 2, 1), (0, 2, 3, 0)]:
        one = np.zeros_like(x)
        one[where] = 1.0
        want = sum((loops.upsampled(one[0, ..., d], 4) * weight[0, ..., d]).sum() for d in range(2))
        np.testing.assert_allclose(gradient[where], want, rtol=1e-5)
