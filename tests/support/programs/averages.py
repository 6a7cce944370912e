"""Averages of weights on two replicas in a process of its own: `python -m support.programs.averages NORM`.

They are compared with what is computed by hand from the weights of each step, and, where the norm sees the
whole batch (sync_bn), with one replica's. Ends with "averages agree".
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from support.programs.replicas import trained, two_replicas
from support.weights_close import beyond_rounding

from kgarden.ops.jit import compiled
from kgarden.training.weight_averaging import ExponentialMovingAverage

DECAY = 0.7


class Watch(keras.callbacks.Callback):
    """Averages as a training keeps them, and beside them what every replica held after each step."""

    def __init__(self, detector):
        super().__init__()
        self.detector, self.averages = detector, ExponentialMovingAverage(detector.weights, DECAY, compiled)
        self.seen = [self.held()]

    def held(self):
        """[weights of one replica, ...]."""
        local = [copies(variable) for variable in self.detector.weights]
        return [[array.astype("float64") for array in replica] for replica in zip(*local, strict=True)]

    def on_train_batch_end(self, batch, logs=None):
        self.averages.update()
        self.seen.append(self.held())

    def by_hand(self):
        expected = [array.copy() for array in self.seen[0][0]]
        for time, replicas in enumerate(self.seen[1:]):
            decay = min(DECAY, (1 + time) / (10 + time))
            expected = [
                decay * old + (1 - decay) * new for old, new in zip(expected, replicas[0], strict=True)
            ]
        return expected

    def check(self, replicas):
        floats = ["float" in variable.dtype for variable in self.detector.weights]
        assert all(len(held) == replicas for held in self.seen)
        for held in self.seen:  # replicas hold the same, statistics of norms included
            for other in held[1:]:
                assert all(map(np.array_equal, held[0], other))
        found = [copies(average) for average in self.averages.averages]
        for expected, local, is_float in zip(self.by_hand(), found, floats, strict=True):
            for array in local if is_float else ():
                np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
        own = self.held()
        with self.averages.in_place():
            for held, local in zip(zip(*self.held(), strict=True), found, strict=True):
                assert all(map(np.array_equal, held, local))
        for before, after in zip(own, self.held(), strict=True):
            assert all(map(np.array_equal, before, after))
        return [local[0].astype("float64") for local in found]


def copies(variable):
    """The variable's value on every replica."""
    local = tf.distribute.get_strategy().experimental_local_results(variable.value)
    values = getattr(variable.value, "values", local)
    return [np.asarray(value) for value in values]


def averaged(strategy, norm):
    """(names, weights before, averages) of three steps."""
    watches = []

    def watch(detector):
        watches.append(Watch(detector))
        return watches[0]

    before, _, _ = trained("two_stage", strategy, norm, callbacks=[watch])
    averages = watches[0].check(strategy.num_replicas_in_sync)
    return [variable.path for variable in watches[0].detector.weights], before, averages


def main(norm):
    names, before, two = averaged(two_replicas(), norm)
    statistics = [number for number, name in enumerate(names) if "/moving_" in name]
    assert len(statistics) >= 40
    assert all(not np.array_equal(before[number], two[number]) for number in statistics)
    if norm == "sync_bn":
        _, _, one = averaged(tf.distribute.get_strategy(), norm)
        for name, old, a, b in zip(names, before, one, two, strict=True):
            assert beyond_rounding(a, b) <= 1e-3 * max(np.abs(a - old).max(), 1e-4), name
    print("averages agree")


if __name__ == "__main__":
    main(sys.argv[1])
