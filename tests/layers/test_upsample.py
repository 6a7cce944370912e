"""Up-sampling by transposed convolution against its definition."""

import numpy as np
import pytest
from keras import ops

from kgarden.layers.upsample import DepthwiseUpsample


@pytest.mark.parametrize("factor", [2, 4])
def test_transposed_convolution_of_single_channels(factor):
    """Every input cell adds its multiple of the kernel at its place, and half a stride is cut off around."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    layer = DepthwiseUpsample(factor)
    layer.build(x.shape)
    kernel = rng.normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    whole = np.zeros((2, 4 * factor, 5 * factor, 5))
    for row, column in np.ndindex(3, 4):
        window = (slice(None), *(slice(f * factor, (f + 2) * factor) for f in (row, column)))
        whole[window] += x[:, row, column, None, None] * kernel[:, :, 0]
    half = factor // 2
    expected = whole[:, half : half + 3 * factor, half : half + 4 * factor]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == expected.shape


@pytest.mark.parametrize("factor", [2, 4])
def test_at_first_it_is_bilinear(factor):
    """A plane stays a plane, sampled at the centres of the cells; the edge fades out."""
    layer = DepthwiseUpsample(factor)
    plane = np.arange(5.0)[:, None] + 10 * np.arange(6.0)
    y = ops.convert_to_numpy(layer(plane[None, :, :, None].astype("float32")))[0, :, :, 0]
    row, column = ((np.arange(n * factor) + 0.5) / factor - 0.5 for n in (5, 6))
    inner = (slice(factor, -factor),) * 2
    np.testing.assert_allclose(y[inner], (row[:, None] + 10 * column)[inner], rtol=1e-5)
