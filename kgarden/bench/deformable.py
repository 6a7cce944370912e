"""Benchmark of deformable convolution relative to the plain one, forwards and with gradients, in one run."""

import keras
import numpy as np
from keras import ops

from kgarden.bench.timing import compiled, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv
from kgarden.layers.initializers import normal

STRIDE, CHANNELS = 16, 256  # res4 of a ResNet-50, or a tower on P4


def deformable_over_plain(recipe: Recipe, repeats: int, data) -> dict:
    """Times a 3x3 convolution of 256 channels, plain and deformable, at stride 16 of the first canvas.

    The deformable one predicts its own offsets and masks (v2) from random weights: its taps lie apart.

    Returns:
        {"map": [B, H, W, D], "forward": {"plain_s", "deformable_s", "over_plain": quartiles of the rounds'
        ratios}, "forward_and_gradients": the same}.
    """
    from kgarden.build import canvases

    height, width = canvases(recipe)[0]
    shape = (recipe.data.batch_size, height // STRIDE, width // STRIDE, CHANNELS)
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape).astype("float32"))
    layers = {
        "plain": Conv(CHANNELS, 3, use_bias=False),
        "deformable": DeformConv(CHANNELS, 3, use_bias=False, offset_initializer=normal(0.02)),
    }
    for layer in layers.values():
        layer.build(shape)
    return {
        "map": list(shape),
        "forward": _ratio({name: compiled(layer, x) for name, layer in layers.items()}, repeats),
        "forward_and_gradients": _ratio(
            {name: compiled(_gradients(layer), x) for name, layer in layers.items()}, repeats
        ),
    }


def _ratio(functions, repeats):
    seconds = rounds(functions, repeats)
    medians = {f"{name}_s": round(float(np.median(times)), 4) for name, times in seconds.items()}
    return {**medians, "over_plain": quartiles(seconds["deformable"] / seconds["plain"])}


def _gradients(layer):
    """A function of x with the gradients of mean(layer(x) ** 2), of x and of the layer's weights."""
    weights = layer.trainable_variables
    if keras.backend.backend() == "jax":
        import jax

        def loss(x, values):
            with keras.StatelessScope(list(zip(weights, values, strict=True))):
                return ops.mean(ops.square(layer(x)))

        return lambda x: jax.grad(loss, argnums=(0, 1))(x, [weight.value for weight in weights])
    import tensorflow as tf

    def gradients(x):
        sources = [x, *(weight.value for weight in weights)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = ops.mean(ops.square(layer(x)))
        return tape.gradient(loss, sources)

    return gradients
