"""A keras.Model whose steps are compiled once for each canvas, with static shapes.

Keras' TensorFlow trainer takes batches inside of its graph, where a dataset of several canvases has unknown
heights and widths, and relaxes shapes at the second canvas. Here a batch is taken first and then given to a
graph made for its shape; under a `tf.distribute` strategy that graph runs the step on every replica. Nothing
else about `fit`, `predict` and callbacks changes.
"""

import keras

from kgarden.ops.gradients import without_gradients
from kgarden.ops.jit import compiled
from kgarden.ops.replicas import on_replicas


class StaticShapeModel(keras.Model):
    """Base of Detector and InferenceModel."""

    def make_train_function(self, force=False):
        if self._use_keras_functions():
            super().make_train_function(force)
        elif self.train_function is None or force:
            replicated = on_replicas(self.train_step, self.distribute_strategy)
            step = self._step = compiled(replicated, self.jit_compile)
            self.train_function = lambda iterator: step(next(iterator))

    @property
    def traces(self):
        """How often the training step was traced so far; 0 where Keras compiles it in its own way."""
        step = getattr(self, "_step", None)
        return step.experimental_get_tracing_count() if step is not None else 0

    def make_test_function(self, force=False):
        if self._use_keras_functions():
            super().make_test_function(force)
        elif self.test_function is None or force:
            step = compiled(on_replicas(self.test_step, self.distribute_strategy), self.jit_compile)
            self.test_function = lambda iterator: step(next(iterator))

    def predict_step(self, *arguments):
        with without_gradients():
            return super().predict_step(*arguments)

    def make_predict_function(self, force=False):
        if self._use_keras_functions() or self.distribute_strategy.num_replicas_in_sync > 1:
            return super().make_predict_function(force)
        if self.predict_function is None or force:
            step = compiled(self.predict_step, self.jit_compile)
            self.predict_function = lambda batches: step(batches[0])
        return self.predict_function

    def _use_keras_functions(self):
        """On JAX, eagerly, and in several steps at once."""
        return keras.backend.backend() != "tensorflow" or self.run_eagerly or self.steps_per_execution > 1

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras 3.15 stumbles over a batch of replicas; what is built already needs its optimizer alone."""
        if not self.built or keras.backend.backend() != "tensorflow":
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        elif getattr(self, "optimizer", None) is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def ready_to_predict(model):
    """The model, compiled for `predict_on_batch` on this backend."""
    # XLA on a CPU is slower than a graph for these networks, and JAX without it runs op by op.
    model.compile(jit_compile=keras.backend.backend() == "jax")
    return model
