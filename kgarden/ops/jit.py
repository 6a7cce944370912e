"""Compilation once per input shape, on either backend.

Keras relaxes the shapes of a step or a prediction to "unknown" when a second one occurs. Detectors need
static shapes: a few canvases, each traced once.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    def is_traced_for_xla():
        """Whether XLA will compile what is called now."""
        return not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())

    def compiled(function, jit=False):
        """Compile a graph for each set of argument shapes; `jit`: with XLA."""
        return tf.function(function, autograph=False, reduce_retracing=False, jit_compile=jit or None)

else:

    def is_traced_for_xla():
        """On this backend XLA compiles everything."""
        return True

    def compiled(function, jit=True):
        """The function itself: on this backend Keras' own trainer compiles for each shape."""
        return function
