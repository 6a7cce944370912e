"""Random initial values drawn by NumPy: on JAX each shape of a weight is a program to compile for 0.2 s."""

import types

import numpy as np


def install():
    """Has Keras's random initialisers draw with NumPy, on JAX and outside of traced functions."""
    from keras.src.initializers import random_initializers

    ours = {"normal": normal, "truncated_normal": truncated_normal, "uniform": uniform}
    random_initializers.random = types.SimpleNamespace(**vars(random_initializers.random) | ours)


def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
    """Replaces `keras.random.normal`."""
    return _drawn(seed, dtype, lambda rng: mean + stddev * rng.standard_normal(shape, "float32"))


def truncated_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
    """Replaces `keras.random.truncated_normal`: what lies beyond two deviations is drawn again."""

    def draw(rng):
        values = rng.standard_normal(shape, "float32")
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(outside.sum(), "float32")
        return mean + stddev * values

    return _drawn(seed, dtype, draw)


def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
    """Replaces `keras.random.uniform`."""
    return _drawn(seed, dtype, lambda rng: minval + (maxval - minval) * rng.random(shape, "float32"))


def _drawn(seed, dtype, draw):
    import jax
    from keras.src.backend.jax.random import jax_draw_seed

    if not isinstance(seed, int):  # a seed generator
        seed = np.asarray(jax_draw_seed(seed))
    values = draw(np.random.default_rng(seed))
    return jax.device_put(values.astype(dtype or "float32"))
