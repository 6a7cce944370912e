"""How long a training waits for its data."""

import time

import numpy as np
import tensorflow as tf


class Clock:
    """Seconds that the training step waited for its batches."""

    def __init__(self):
        self.seconds = self.asked_at = 0.0

    def asked(self):
        """A batch is asked for."""
        self.asked_at = time.perf_counter()
        return np.int64(0)

    def came(self):
        """It has come."""
        self.seconds += time.perf_counter() - self.asked_at
        return np.int64(0)

    def taken(self):
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def timed(dataset, clock):
    """The same batches; the clock counts how long each was waited for.

    `zip` asks its parts in turn: the first part notes when a batch was asked for, the map when it had come.
    """
    asked = tf.data.Dataset.counter().map(lambda _: tf.numpy_function(clock.asked, [], tf.int64))

    def note(_, batch):
        with tf.control_dependencies([tf.numpy_function(clock.came, [], tf.int64)]):
            return tf.nest.map_structure(tf.identity, batch)

    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # would ask ahead of the training step
    return tf.data.Dataset.zip(asked, dataset).map(note).with_options(options)
