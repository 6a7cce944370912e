"""Functions compiled once for each input shape, on either backend.

Keras relaxes shapes to "unknown" at the second one that a step or a prediction sees. Detectors need static
shapes: a few canvases, each traced once.
"""

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def compiled(function, jit=False):
        """A graph of the function for each set of argument shapes; `jit`: with XLA."""
        return tf.function(function, autograph=False, reduce_retracing=False, jit_compile=jit or None)

else:

    def compiled(function, jit=True):
        """The function as it is: on this backend Keras' own trainer compiles for each shape."""
        return function
