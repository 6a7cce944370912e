"""Float32 arithmetic that every device keeps: matrix products without TF32, and correctly rounded quotients.

GPUs from Ampere on run float32 matrix products and convolutions as TF32 unless told otherwise: operands are
rounded to 10 bits of mantissa, half a px at 1000 px. XLA divides on them with an error of up to two units in
the last place, so that an IoU of exactly 0.7 may lie above or below a threshold of 0.7. Networks bear both;
coordinates, interpolation weights, masks and decisions by IoU use the functions here.
"""

import os

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.ops.jit import is_traced_for_xla

HEAD = -(1 << 12)  # bit mask of a float32: sign, exponent and 12 of its 24 significant bits
_found = []  # JAX's or TensorFlow's setting before `allow_tf32(False)`


def matmul(a, b):
    """Matrix product in true float32 on every device, gradients included; 16-bit operands stay as they are.

    On JAX the product carries the precision "highest". TensorFlow has no such mark: where a GPU would round
    to TF32, the product is computed in float64.

    Args:
        a, b: as for `keras.ops.matmul`.
    """
    if keras.backend.result_type(a.dtype, b.dtype) != "float32":
        return ops.matmul(a, b)
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            return ops.matmul(a, b)
    if _tensorflow_rounds():
        return ops.cast(ops.matmul(ops.cast(a, "float64"), ops.cast(b, "float64")), "float32")
    return ops.matmul(a, b)


def _tensorflow_rounds():
    """Whether TensorFlow runs float32 products as TF32 on this machine: it has a GPU, and TF32 is allowed."""
    import tensorflow as tf

    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    return allowed and bool(tf.config.list_physical_devices("GPU"))


def quotient(a, b):
    """a / b, correctly rounded on every device, so that comparisons with thresholds and ties are the same.

    The device's quotient moves to a neighbouring float32 where that one is nearer to a / b, which is decided
    exactly: no product below has more than 24 significant bits. Two moves make up for an error of two units
    in the last place. TensorFlow outside XLA divides correctly on all devices.

    Args:
        a, b: float32, not negative, broadcast against each other.
    Returns:
        float32; differentiable; NaN for 0 / 0, as everywhere.
    """
    q = a / b
    if not is_traced_for_xla():
        return q
    exact = [ops.stop_gradient(x) for x in (q, a, b)]
    nearest = _one_nearer(_one_nearer(*exact), *exact[1:])
    moves = (exact[0] > 0) & (exact[0] < float("inf"))  # neither 0 nor NaN
    return q + ops.where(moves, nearest - exact[0], 0.0)


def _one_nearer(q, a, b):
    """Moves a quotient to the next float32, up or down, if that is nearer to a / b."""
    bits = ops.view(q, "int32")
    above, below = ops.view(bits + 1, "float32"), ops.view(bits - 1, "float32")
    twice = 2.0 * _remainder(q, a, b)
    q_or_above = ops.where(twice > (above - q) * b, above, q)
    return ops.where(twice < (below - q) * b, below, q_or_above)


def _remainder(q, a, b):
    """a - q * b without rounding, for q within a few units in the last place of a / b."""
    (q_head, q_tail), (b_head, b_tail) = _halves(q), _halves(b)
    return a - q_head * b_head - q_head * b_tail - q_tail * b_head - q_tail * b_tail


def _halves(x):
    """Two numbers of 12 significant bits with the sum x."""
    head = ops.view(ops.bitwise_and(ops.view(x, "int32"), HEAD), "float32")
    return head, x - head


def allow_tf32(allowed):
    """Allows or forbids TF32 in all float32 products and convolutions of this process.

    Call it before anything is compiled. Allowing it again restores what was found.

    Args:
        allowed: bool.
    Raises:
        UserError: the driver is told to use TF32 in any case.
    """
    if not allowed and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        raise UserError("allow_tf32: false has no effect under NVIDIA_TF32_OVERRIDE=1; unset that variable")
    before, change = _setting_of_backend()
    if not allowed:
        _found[:] = _found or [before]
        change("highest" if keras.backend.backend() == "jax" else False)
    elif _found:
        change(_found.pop())


def _setting_of_backend():
    """The process's setting, and a function that changes it."""
    if keras.backend.backend() == "jax":
        import jax

        before = jax.config.jax_default_matmul_precision
        return before, lambda value: jax.config.update("jax_default_matmul_precision", value)
    import tensorflow as tf

    of_process = tf.config.experimental
    return of_process.tensor_float_32_execution_enabled(), of_process.enable_tensor_float_32_execution
