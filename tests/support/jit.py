"""Functions compiled by XLA on either backend: for tests that call the same loop many times."""

import functools

import keras


@functools.cache
def jitted(function):
    """The function through XLA; the same object for the same function, so that it is compiled once."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    from kgarden.ops.jit import compiled

    return compiled(function, jit=True)


@functools.cache
def traced(function):
    """The function as a graph on TensorFlow, where loops take long without; on JAX as it is."""
    if keras.backend.backend() == "jax":
        return function
    from kgarden.ops.jit import compiled

    return compiled(function, jit=False)
