"""Compilation once per input shape, on either backend.

Keras relaxes the shapes of a step or a prediction to "unknown" when a second one occurs. Detectors need
static shapes: a few canvases, each traced once.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def compiled(function, jit=False):
        """Compile a graph for each set of argument shapes; `jit`: with XLA."""
        return tf.function(function, autograph=False, reduce_retracing=False, jit_compile=jit or None)

else:

    def compiled(function, jit=True):
        """The function itself: on this backend Keras' own trainer compiles for each shape."""
        return function
