"""Float32 arithmetic of a GPU, simulated on a CPU: TF32 products, and quotients that are not exact.

Float32 operands of products that are not marked are rounded to 10 bits of mantissa. A mark is the precision
"highest" on JAX, and float64 operands on TensorFlow.
"""

import keras

from kgarden.ops import float32

ON_JAX = keras.backend.backend() == "jax"


def divides_correctly():
    """Whether the device itself does, so that what is simulated is all the error that there is."""
    if not ON_JAX:
        return True
    import jax

    return jax.default_backend() == "cpu"


def with_tf32(monkeypatch, function, *arrays):
    """The result of a function on a device that rounds matrix products and convolutions to TF32."""
    with monkeypatch.context() as patch:
        (_round_on_jax if ON_JAX else _round_on_tensorflow)(patch)
        return run(function, *arrays)


def with_coarse_division(monkeypatch, units, function, *arrays):
    """The result of a function on a device whose quotients are `units` float32 numbers too large."""
    with monkeypatch.context() as patch:
        (_divide_on_jax if ON_JAX else _divide_on_tensorflow)(patch, units)
        return run(function, *arrays)


def run(function, *arrays):
    """The result of a function of arrays, as NumPy; traces of another arithmetic are forgotten."""
    arrays = keras.tree.map_structure(keras.ops.convert_to_tensor, arrays)
    if not ON_JAX:
        return keras.tree.map_structure(keras.ops.convert_to_numpy, function(*arrays))
    import jax

    jax.clear_caches()
    try:
        return jax.device_get(jax.jit(lambda *arrays: function(*arrays))(*arrays))
    finally:
        jax.clear_caches()


# --- JAX ----------------------------------------------------------------------------------------------------


def _round_on_jax(patch):
    import jax

    for primitive in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p):
        patch.setattr(primitive, "bind", _rounding_bind(primitive.bind))


def _rounding_bind(bind):
    import jax

    def is_highest(precision):
        return precision is not None and set(precision) == {jax.lax.Precision.HIGHEST}

    def rounded(x):
        return jax.lax.reduce_precision(x, 8, 10) if x.dtype == "float32" else x

    def call(a, b, **parameters):
        if not is_highest(parameters["precision"]):
            a, b = rounded(a), rounded(b)
        return bind(a, b, **parameters)

    return call


def _divide_on_jax(patch, units):
    import jax

    bind = jax.lax.div_p.bind

    def divide(a, b, **parameters):
        q = bind(a, b, **parameters)
        if q.dtype != "float32":
            return q
        bits = jax.lax.bitcast_convert_type(q, "int32") + units
        return jax.numpy.where((q > 0) & (q < float("inf")), jax.lax.bitcast_convert_type(bits, "float32"), q)

    patch.setattr(jax.lax.div_p, "bind", divide)


# --- TensorFlow ---------------------------------------------------------------------------------------------


def _round_on_tensorflow(patch):
    from tensorflow.python.ops import gen_linalg_ops, gen_math_ops, gen_nn_ops

    patch.setattr(float32, "_tensorflow_rounds", lambda: True)
    products = {
        gen_math_ops: ("mat_mul", "batch_mat_mul", "batch_mat_mul_v2", "batch_mat_mul_v3"),
        gen_nn_ops: ("conv2d", "depthwise_conv2d_native"),
    }
    for module, names in products.items():
        for name in names:
            patch.setattr(module, name, _with_rounded_pair(getattr(module, name)))
    of_many = gen_linalg_ops.einsum

    def einsum(inputs, *rest, **more):
        return of_many(_rounded(inputs), *rest, **more)

    patch.setattr(gen_linalg_ops, "einsum", einsum)


def _with_rounded_pair(product):
    def call(a, b, *rest, **more):
        return product(*_rounded([a, b]), *rest, **more)

    return call


def _rounded(arrays):
    """To 10 bits of mantissa, to the nearest; gradients pass."""
    import tensorflow as tf

    def nearest(x):
        x = tf.convert_to_tensor(x)
        if x.dtype != tf.float32:
            return x
        bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32) + (1 << 12), -(1 << 13))
        return x + tf.stop_gradient(tf.bitcast(bits, tf.float32) - x)

    return [nearest(x) for x in arrays]


def _divide_on_tensorflow(patch, units):
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops

    real_div = gen_math_ops.real_div

    def divide(x, y, name=None):
        q = real_div(x, y, name)
        if q.dtype != tf.float32:
            return q
        return tf.where(
            (q > 0) & (q < float("inf")), tf.bitcast(tf.bitcast(q, tf.int32) + units, tf.float32), q
        )

    patch.setattr(float32, "is_traced_for_xla", lambda: True)  # XLA is what divides like this
    patch.setattr(gen_math_ops, "real_div", divide)
