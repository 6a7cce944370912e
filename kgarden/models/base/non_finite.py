"""Metric that finds the first training step whose loss is not finite."""

import keras
from keras import ops

from kgarden.ops import replicas


class FirstNonFiniteStep(keras.metrics.Metric):
    """The number of the first step since the last reset whose loss was not finite on any replica; 0: none."""

    def __init__(self, name="first_bad_step"):
        super().__init__(name=name)
        self.step = self.add_variable((), "zeros", "int32", aggregation="only_first_replica", name="step")

    def update_state(self, step, loss):
        """Take in one step.

        Args:
            step: () int, counted from 1.
            loss: () float, of this replica.
        """
        bad = replicas.sum_over_replicas(1.0 - ops.cast(ops.isfinite(loss), "float32")) > 0
        is_first = ops.logical_and(bad, self.step.value == 0)
        self.step.assign(ops.where(is_first, ops.cast(step, "int32"), self.step.value))

    def result(self):
        return ops.cast(self.step.value, "float32")
