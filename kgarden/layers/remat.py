"""Rematerialisation (activation checkpointing): recompute activations in the backward pass.

Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174. A layer that supports it has an attribute `remat`, False by
default, and calls the layers to rematerialise through `recomputed`.
"""

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.layers.norm import BatchNorm


def recomputed(layers, x, training=False, **how):
    """Applies layers in sequence; the backward pass recomputes all activations between x and the output.

    The layers run as a pure function of their weights, so that batch norm statistics are assigned once,
    outside of it. (`keras.RematScope` of Keras 3.15 leaks them on JAX, and does not take `training=` in
    TensorFlow graphs.)

    Args:
        layers:   list of built layers with one input and one output.
        x:        tensor.
        training: as for any layer. Without it, or without trainable weights, nothing is stored anyway.
        how:      further arguments of every layer, constants of the derivative.
    Returns:
        the last layer's output.
    """
    if not training or not any(layer.trainable_variables for layer in layers):
        return _through(layers, x, training, how)
    variables = [variable for layer in layers for variable in layer.variables]
    statistics = _statistics(layers)

    def function(x, *values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            y = _through(layers, x, training, how)
        return (y, *map(scope.get_current_value, statistics))

    y, *updated = keras.remat(function)(x, *(ops.convert_to_tensor(variable.value) for variable in variables))
    for variable, value in zip(statistics, updated, strict=True):
        variable.assign(ops.stop_gradient(value))
    return y


def _through(layers, x, training, how):
    for layer in layers:
        x = layer(x, training=training, **how)
    return x


def _statistics(layers):
    """The variables that a training call of the layers assigns."""
    parts = [part for layer in layers for part in layer._flatten_layers()]
    norms = [part for part in parts if isinstance(part, BatchNorm) and part.uses_batch(training=True)]
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def rematerialise(detector, names):
    """Enables rematerialisation in the named parts of a detector.

    Args:
        detector: with `parts()`.
        names:    of parts, as in `detector.parts()`.
    Raises:
        UserError: a part that does not exist or does not support it.
    """
    parts = {
        name: [layer for layer in part._flatten_layers() if hasattr(layer, "remat")]
        for name, part in detector.parts().items()
    }
    supported = [name for name, layers in parts.items() if layers]
    for name in names:
        if name not in supported:
            raise UserError(f"remat: {name!r} is not supported; use one of: {', '.join(supported) or 'none'}")
        for layer in parts[name]:
            layer.remat = True
