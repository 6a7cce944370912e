"""A keras.Model whose steps are compiled once for each canvas, with static shapes.

Keras' TensorFlow trainer takes batches inside of its graph, where a dataset of several canvases has unknown
heights and widths, and relaxes shapes at the second canvas. Here a batch is taken first and then given to a
graph made for its shape. Nothing else about `fit`, `predict` and callbacks changes.
"""

import keras

from kgarden.ops.compiled import compiled
from kgarden.ops.replicas import num_replicas


class PerCanvas(keras.Model):
    """Base of Detector and InferenceModel."""

    def make_train_function(self, force=False):
        if self._keras_knows_better():
            super().make_train_function(force)
        elif self.train_function is None or force:
            step = compiled(self.train_step, self.jit_compile)
            self.train_function = lambda iterator: step(next(iterator))

    def make_predict_function(self, force=False):
        if self._keras_knows_better():
            return super().make_predict_function(force)
        if self.predict_function is None or force:
            step = compiled(self.predict_step, self.jit_compile)
            self.predict_function = lambda batches: step(batches[0])
        return self.predict_function

    def _keras_knows_better(self):
        """On JAX, eagerly, in several steps at once, and where several replicas share a batch."""
        on_jax = keras.backend.backend() != "tensorflow"
        return on_jax or self.run_eagerly or self.steps_per_execution > 1 or num_replicas() > 1
