"""Non-local blocks against mmcv's, in every mode."""

import re

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.errors import UserError
from kgarden.layers.non_local import NonLocal
from kgarden.weights.state_dict import load_state_dict

# g, theta, phi and the output; where a pooling follows, the convolution is the first of two.
TABLE = [
    (r"(g|theta|phi)(?:\.0)?\.conv", r"\1"),
    (r"conv_out\.conv", r"out"),
    (r"conv_out\.bn", r"out/norm"),
]


def block_of(case, golden, name):
    mode, depth = case["mode"], golden[f"{name}/x"].shape[-1]
    assert case["residual"] and case["inter_channels"] * case["reduction"] == depth
    block = NonLocal(
        case["inter_channels"] if case["reduction"] > 1 else None,
        mode,
        scaled=case["scale_by_sqrt_inter"],
        norm="bn" if case["out_bn"] else None,
        out_bias=case["out_conv_bias"],
        subsample=case["sub_sample"],
        name="block",
    )
    assert case["divide_by_positions"] == (mode in ("dot_product", "concatenation"))
    block.build(golden[f"{name}/x"].shape)
    weights = golden.state_dict(f"{name}/param/")
    if mode == "concatenation":
        project = next(key for key in weights if key.startswith("concat_project"))
        halves = weights.pop(project).reshape(2, -1)  # of theta, of phi
        block.concatenated.assign(halves)
    load_state_dict(block, weights, TABLE, partial=mode == "concatenation")
    return block


@pytest.mark.parametrize("golden", goldens("mmdet_nonlocal2d"), ids=str)
def test_every_mode_agrees_with_the_reference(golden):
    cases = params(golden)["cases"]
    found = {
        f"{name}/y": ops.convert_to_numpy(block_of(case, golden, name)(golden[f"{name}/x"]))
        for name, case in cases.items()
    }
    assert {re.split("/", name)[0] for name in golden.outputs} == set(cases)
    assert_agrees(golden, found)


@pytest.mark.parametrize("settings", [{}, {"groups": 4}, {"mode": "dot_product", "groups": 4, "norm": "bn"}])
def test_initially_the_identity(settings):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 16)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(NonLocal(8, **settings)(x)), x)
    after = ops.convert_to_numpy(NonLocal(8, **settings, post_relu=True)(x))
    np.testing.assert_array_equal(after, np.maximum(x, 0))


def test_groups_attend_independently():
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 8)).astype("float32")
    block = NonLocal(8, "embedded_gaussian", groups=2)
    block.build(x.shape)
    identity = np.eye(8, dtype="float32")[None, None]
    for conv in (block.theta, block.phi, block.g, block.out):
        conv.kernel.assign(identity)
    cells = x.reshape(4, 2, 4).astype("float64")
    for group in range(2):
        part = cells[:, group]
        weights = np.exp(part @ part.T)
        expected = part + weights / weights.sum(axis=1, keepdims=True) @ part
        found = ops.convert_to_numpy(block(x)).reshape(4, 2, 4)[:, group]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_invalid_settings_raise():
    with pytest.raises(UserError, match="one of gaussian"):
        NonLocal(8, "softmax")
    with pytest.raises(UserError, match="8 channels are not divisible by 3 groups"):
        NonLocal(8, groups=3).build((1, 2, 2, 16))
