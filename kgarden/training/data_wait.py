"""Time that training steps wait for their batches."""

import time

import numpy as np
import tensorflow as tf


class DataWait:
    """Accumulates the seconds between the request for a batch and its arrival."""

    def __init__(self):
        self.seconds = self.started_at = 0.0

    def start(self) -> np.int64:
        """Marks the request for a batch."""
        self.started_at = time.perf_counter()
        return np.int64(0)

    def stop(self) -> np.int64:
        """Marks the arrival of the batch."""
        self.seconds += time.perf_counter() - self.started_at
        return np.int64(0)

    def take(self) -> float:
        """Returns the seconds since the last call, and resets them."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def measure_wait(dataset: tf.data.Dataset, wait: DataWait) -> tf.data.Dataset:
    """Returns the same batches; `wait` accumulates how long each was waited for.

    `zip` pulls its inputs in order: the first input marks the request for a batch, the map its arrival.
    """

    @tf.autograph.experimental.do_not_convert
    def mark_request(_):
        return tf.numpy_function(wait.start, [], tf.int64)

    @tf.autograph.experimental.do_not_convert
    def mark_arrival(_, batch):
        with tf.control_dependencies([tf.numpy_function(wait.stop, [], tf.int64)]):
            return tf.nest.map_structure(tf.identity, batch)

    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # would request batches ahead of the step
    requests = tf.data.Dataset.counter().map(mark_request)
    return tf.data.Dataset.zip(requests, dataset).map(mark_arrival).with_options(options)
