"""Exponential moving average (EMA) of a model's weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
from keras import ops


class ExponentialMovingAverage:
    """Exponential moving average of all weights, including the statistics of normalisation layers.

    The decay after t updates is min(decay, (1 + t) / (10 + t)), so that the untrained initial weights are
    soon forgotten. Integer variables (the step) are copied.

    Args:
        variables: of the model.
        decay:     weight of the previous average in an update.
        compiled:  compiles a function without arguments that assigns variables (`tf.function`).
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        decay: float,
        compiled: Callable = lambda function: function,
    ):
        self.variables, self.decay = list(variables), decay
        self.averages = [
            keras.Variable(ops.copy(v.value), trainable=False, dtype=v.dtype, name=f"average{n}")
            for n, v in enumerate(self.variables)
        ]
        self.updates = keras.Variable(0, trainable=False, dtype="int32", name="updates")
        self._update = compiled(self._assign)

    def update(self) -> None:
        """Updates the averages with the current weights."""
        self._update()

    def _assign(self):
        time = ops.cast(self.updates.value, "float32")
        decay = ops.minimum(self.decay, (1 + time) / (10 + time))
        for average, variable in zip(self.averages, self.variables, strict=True):
            if "float" in average.dtype:
                step_size = ops.cast(1 - decay, average.dtype)
                average.assign(average.value + step_size * (variable.value - average.value))
            else:
                average.assign(ops.copy(variable.value))  # JAX donates the buffers that a step consumed
        self.updates.assign(self.updates.value + 1)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Loads the averages into the model for the duration of the block, then restores its weights."""
        own = [ops.convert_to_numpy(variable.value) for variable in self.variables]
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(ops.copy(average.value))
        try:
            yield
        finally:
            for variable, value in zip(self.variables, own, strict=True):
                variable.assign(value)
