"""Functions compiled by XLA: on either backend, or on JAX alone, where operations one by one take longest."""

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


# The suite compiles quickly and runs slowly. Programs that pool RoIs run longer than they compile.
OPTIMIZED = {"xla_backend_optimization_level": 1}


def fast(function, static=(), optimized=False):
    """The function as it is on TensorFlow, compiled as a whole on JAX; arguments and results are arrays.

    Args:
        static:    names of arguments that are none.
        optimized: for programs that run longer than they compile.
    """
    if keras.backend.backend() != "jax":
        return function
    import jax

    options = OPTIMIZED if optimized else None
    return jax.jit(function, static_argnames=static, compiler_options=options)
