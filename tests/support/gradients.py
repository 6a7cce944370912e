"""Values and gradients of plain functions on either backend."""

import keras
import numpy as np


def value_and_gradients(function, arguments, variables=(), optimized=False):
    """A scalar function's value and its gradients.

    Args:
        function:  float32 arrays -> scalar.
        arguments: list of arrays.
        variables: Keras variables that the function reads as well.
        optimized: see `support.jit.fast`.
    Returns:
        value, list of arrays: gradients of the arguments, then of the variables.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(np.asarray(argument, "float32")) for argument in arguments]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        sources = tensors + [variable.value for variable in variables]
        gradients = tape.gradient(value, sources, unconnected_gradients="zero")
        return value.numpy(), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]

    import jax
    from support.jit import fast

    def stateless(values, variable_values):
        mapping = list(zip(variables, variable_values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*values)

    values = [np.asarray(argument, "float32") for argument in arguments]
    at = [variable.value for variable in variables]
    whole = fast(jax.value_and_grad(stateless, argnums=(0, 1)), optimized=optimized)
    value, (of_values, of_variables) = whole(values, at)
    return np.asarray(value), [np.asarray(gradient) for gradient in [*of_values, *of_variables]]
