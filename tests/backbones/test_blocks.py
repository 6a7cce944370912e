"""What holds for the blocks of all families: computed again they give the same, and half precision holds."""

import keras
import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients
from support.marks import slow_on_jax_but

from kgarden.backbones.dla import Tree
from kgarden.backbones.mobilenet_v2 import InvertedResidual
from kgarden.backbones.res2net import Bottle2neck
from kgarden.layers.precision import dtype_policy_scope
from kgarden.layers.remat import recomputed
from kgarden.layers.residual import Bottleneck

BLOCKS = {
    "inverted": lambda: InvertedResidual(8, 8, expansion=2, strides=1, norm="bn"),
    "inverted_5x5": lambda: InvertedResidual(
        8, 8, expansion=2, strides=1, norm="bn", padding="same", kernel_size=5
    ),
    "tree": lambda: Tree(8, 2, 2, 8, norm="bn", level_root=True),
    "res2net": lambda: Bottle2neck(8, 2, 2, norm="bn", project=True, scales=4, deform={"offset_groups": 2}),
    "excited": lambda: Bottleneck(
        8, 4, 1, norm="bn", project=False, reduction=4, deform={"modulated": False}
    ),
}


@pytest.mark.parametrize("name", slow_on_jax_but(BLOCKS, kept=["res2net"]))
def test_blocks_computed_again_give_the_same_gradients(name):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype("float32")
    block = BLOCKS[name]()
    block.build(x.shape)
    variables = block.trainable_variables
    found = []
    for apply in (lambda x: block(x, training=True), lambda x: recomputed([block], x, training=True)):
        value, gradients = value_and_gradients(lambda x, f=apply: ops.sum(f(x) ** 2), [x], variables)
        found.append([value, *gradients])
    for kept, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_on_jax_but(BLOCKS, kept=["res2net"]))
def test_blocks_in_half_precision(name):
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype("float32")
    full = BLOCKS[name]()
    full.build(x.shape)
    with dtype_policy_scope("mixed_bfloat16"):
        half = BLOCKS[name]()
    half.build(x.shape)
    for ours, theirs in zip(half.weights, full.weights, strict=True):
        ours.assign(theirs)
    expected, got = ops.convert_to_numpy(full(x)), half(x)
    assert keras.backend.standardize_dtype(got.dtype) == "bfloat16"
    got = ops.convert_to_numpy(ops.cast(got, "float32"))
    np.testing.assert_allclose(got, expected, atol=0.1 * expected.std(), rtol=0.02)
