"""Rematerialisation (activation checkpointing): recompute activations in the backward pass.

Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174. A layer that offers it has an attribute `remat`, False at
first, and sends what is to be forgotten through `recomputed`.
"""

import keras
from keras import ops

from kgarden.layers.norm import BatchNorm


def recomputed(layers, x, training=False):
    """x through the layers in turn, keeping x and their weights for the way back and nothing in between.

    The layers run as a function of their weights, so that statistics of batch norms are assigned once,
    outside of it.
    (`keras.RematScope` of Keras 3.15 leaks them from its function on JAX, and takes no `training=` in the
    graphs of TensorFlow.)

    Args:
        layers:   list of built layers of one tensor each.
        x:        tensor.
        training: as for any layer. Without it, and where nothing is trained, nothing is kept anyway.
    Returns:
        the last layer's output.
    """
    if not training or not any(layer.trainable_variables for layer in layers):
        return _through(layers, x, training)
    variables = [variable for layer in layers for variable in layer.variables]
    statistics = _statistics(layers)

    def function(x, *values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            y = _through(layers, x, training)
        return (y, *map(scope.get_current_value, statistics))

    y, *seen = keras.remat(function)(x, *(ops.convert_to_tensor(variable.value) for variable in variables))
    for variable, value in zip(statistics, seen, strict=True):
        variable.assign(ops.stop_gradient(value))
    return y


def _through(layers, x, training):
    for layer in layers:
        x = layer(x, training=training)
    return x


def _statistics(layers):
    """The variables that a training call of the layers assigns."""
    parts = [part for layer in layers for part in layer._flatten_layers()]
    norms = [part for part in parts if isinstance(part, BatchNorm) and part.uses_batch(training=True)]
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
