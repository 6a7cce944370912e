"""Deformable convolution against its reference, and where the answer is known."""

import keras
import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv, deform_conv
from kgarden.layers.precision import dtype_policy_scope
from kgarden.ops.deform_conv import deformed_taps

CASES = [(golden, case) for golden in goldens("d2_deform_conv") for case in params(golden)]


@pytest.mark.parametrize("golden, case", CASES, ids=str)
def test_deformable_convolution_agrees_with_the_reference(golden, case):
    s = params(golden)[case]
    assert s["padding"] == s["dilation"] * (s["kernel"] // 2)
    named = ["input", "weight", "offset"] + ["mask"] * s["modulated"] + ["bias"] * s["bias"]

    def convolved(x, kernel, offsets, *further):
        further = dict(zip(named[3:], further, strict=True))
        settings = dict(strides=s["stride"], dilation=s["dilation"])
        y = deform_conv(x, kernel, offsets, further.get("mask"), **settings)
        return y + further["bias"] if s["bias"] else y

    arrays = [golden[f"{case}_{name}"] for name in named]
    upstream = golden[f"{case}_grad_out"]
    _, gradients = value_and_gradients(lambda *tensors: ops.sum(convolved(*tensors) * upstream), arrays)
    got = {f"{case}_out": ops.convert_to_numpy(convolved(*map(ops.convert_to_tensor, arrays)))}
    got |= {f"{case}_grad_{name}": gradient for name, gradient in zip(named, gradients, strict=True)}
    assert_agrees(golden, got, only=f"{case}_(out|grad_(?!out).*)")


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("strides, groups, norm", [(1, 1, None), (2, 2, "frozen_bn")])
def test_at_first_it_is_a_plain_convolution(modulated, strides, groups, norm):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 4)).astype("float32")
    settings = dict(groups=groups, norm=norm, use_bias=False)
    plain = Conv(6, 3, strides, **settings)
    deformable = DeformConv(6, 3, strides, modulated=modulated, offset_groups=2, **settings)
    plain.build(x.shape)
    deformable.build(x.shape)
    deformable.kernel.assign(plain.kernel)
    factor = 0.5 if modulated else 1.0  # masks are sigmoid(0)
    expected = factor * ops.convert_to_numpy(plain(x))
    np.testing.assert_allclose(ops.convert_to_numpy(deformable(x)), expected, atol=1e-5)
    assert deformable.compute_output_shape(x.shape) == expected.shape
    assert deformable.offset.filters == 2 * 9 * (3 if modulated else 2)


def test_offset_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="offset_groups is 3: 8 channels .* not divisible"):
        DeformConv(4, offset_groups=3).build((None, 4, 4, 8))


def test_positions_are_float32_under_mixed_precision():
    """Half a cell to the right at column 500: bfloat16 knows no 500.5."""
    columns = np.arange(600) % 2
    x = ops.cast(np.broadcast_to(columns, (1, 1, 600))[..., None], "bfloat16")
    taps = deformed_taps(x, np.float32([0.0, 0.5]) * np.ones((1, 1, 600, 1), "float32"), kernel_size=1)
    assert keras.backend.standardize_dtype(taps.dtype) == "bfloat16"
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(taps, "float32"))[0, 0, :-1], 0.5)
    with dtype_policy_scope("mixed_bfloat16"):
        layer = DeformConv(4)
    y = layer(ops.ones((1, 4, 4, 2)))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert layer.offset.compute_dtype == "float32"


def test_offsets_that_are_no_numbers_give_no_numbers():
    """A training that diverges is reported as such; it does not read outside of the map.

    The width is odd: times an even one, the integer that a NaN becomes would overflow to 0.
    """
    x, offsets = ops.ones((1, 4, 5, 2)), np.zeros((1, 4, 5, 18), "float32")
    offsets[0, 1, 2, 0], offsets[0, 1, 2, 2] = np.nan, 1e30
    taps = ops.convert_to_numpy(deformed_taps(x, offsets))
    expected = ops.convert_to_numpy(deformed_taps(x, np.zeros_like(offsets)))
    expected[0, 1, 2, 0], expected[0, 1, 2, 1] = np.nan, 0.0
    np.testing.assert_array_equal(taps, expected)
