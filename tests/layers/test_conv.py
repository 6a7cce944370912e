"""Convolutions whose answer is known."""

import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.layers.conv import Conv


@pytest.mark.parametrize("channels", [8, 32])  # fewer and more than NARROW
def test_strided_1x1_convolution_is_a_product_at_every_second_cell(channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 7, 6, channels)).astype("float32")
    layer = Conv(5, 1, strides=2, use_bias=False)
    layer.build(x.shape)
    kernel = ops.convert_to_numpy(layer.kernel)[0, 0]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), x[:, ::2, ::2] @ kernel, atol=1e-5)
    _, (gradient,) = value_and_gradients(lambda x: ops.sum(layer(x)), [x])
    expected = np.zeros_like(x)
    expected[:, ::2, ::2] = kernel.sum(axis=1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 32])
def test_strided_1x1_convolution_of_single_channels_scales_every_second_cell(channels):
    x = np.random.default_rng(0).normal(size=(1, 7, 6, channels)).astype("float32")
    layer = Conv(channels, 1, strides=2, groups=channels, use_bias=False)
    layer.build(x.shape)
    expected = x[:, ::2, ::2] * ops.convert_to_numpy(layer.kernel)[0, 0, 0]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, atol=1e-5)
