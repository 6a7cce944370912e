"""Exponential moving average (EMA) of a model's weights."""

import contextlib

import keras
from keras import ops


class Averages:
    """Exponential moving average of all weights, statistics of norms included.

    The decay grows as min(decay, (1 + t) / (10 + t)) over the updates t, so that the first weights, which
    know nothing, are soon forgotten. Whole numbers (the step) are copied.

    Args:
        variables: of the model.
        decay:     how much of the average stays in an update.
        compiled:  turns a function of no arguments that assigns variables into a fast one (`tf.function`).
    """

    def __init__(self, variables, decay, compiled=lambda function: function):
        self.variables, self.decay = list(variables), decay
        self.averages = [
            keras.Variable(ops.copy(v.value), trainable=False, dtype=v.dtype, name=f"average{n}")
            for n, v in enumerate(self.variables)
        ]
        self.updates = keras.Variable(0, trainable=False, dtype="int32", name="updates")
        self._update = compiled(self._assign)

    def update(self):
        """Take in the present weights."""
        self._update()

    def _assign(self):
        time = ops.cast(self.updates.value, "float32")
        decay = ops.minimum(self.decay, (1 + time) / (10 + time))
        for average, variable in zip(self.averages, self.variables, strict=True):
            if "float" in average.dtype:
                share = ops.cast(1 - decay, average.dtype)
                average.assign(average.value + share * (variable.value - average.value))
            else:
                average.assign(ops.copy(variable.value))  # JAX reuses the memory of what a step consumed
        self.updates.assign(self.updates.value + 1)

    @contextlib.contextmanager
    def in_place(self):
        """The model holds the averages inside this context, and its own weights again afterwards."""
        own = [ops.convert_to_numpy(variable.value) for variable in self.variables]
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(ops.copy(average.value))
        try:
            yield
        finally:
            for variable, value in zip(self.variables, own, strict=True):
                variable.assign(value)
