"""Double-Head R-CNN's convolutional head: features that are computed again instead of kept."""

import numpy as np
import pytest

from kgarden.heads.conv_head import ConvHead
from kgarden.layers.conv import Conv


@pytest.mark.tensorflow
def test_remat_changes_neither_gradients_nor_statistics(monkeypatch):
    """With padding rows, which batch statistics leave out, and a non-local block; convolutions run twice."""
    import tensorflow as tf

    head = ConvHead(blocks=3, width=32, middle=8)
    head.build((None, None, 7, 7, 16))
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 5, 7, 7, 16)).astype("float32"))
    valid = tf.constant(np.arange(5) < [[3], [4]])
    start = [variable.numpy() for variable in head.variables]
    convolve, runs = Conv.call, {False: 0, True: 0}

    def counted(conv, *arguments, **settings):
        runs[head.remat] += 1
        return convolve(conv, *arguments, **settings)

    monkeypatch.setattr(Conv, "call", counted)

    def arrays(remat):
        for variable, value in zip(head.variables, start, strict=True):
            variable.assign(value)
        head.remat = remat
        with tf.GradientTape() as tape:
            tape.watch(x)
            pooled = tf.square(head(x, training=True, valid=valid))
            total = tf.reduce_sum(pooled * tf.cast(valid, "float32")[..., None])
        sources = [x, *(variable.value for variable in head.trainable_variables)]
        found = [total, *tape.gradient(total, sources)]
        return [one.numpy() for one in found] + [one.numpy() for one in head.non_trainable_variables]

    kept, again = arrays(False), arrays(True)
    assert runs[True] == 2 * runs[False] > 0
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    still = [np.array_equal(one, two.numpy()) for one, two in zip(start, head.variables, strict=True)]
    assert not all(still)  # the statistics moved
