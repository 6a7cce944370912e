"""Global sums for loss normalisers, over replicas and micro-batches.

A loss divides by the number of objects of the whole batch. Replicas of a `tf.distribute` strategy all-reduce
their counts; on JAX a distributed batch is one array, so that a plain sum is global. Micro-batches run
sequentially and therefore take two passes: `counting` collects the counts of each, `counted` substitutes the
sums. With one replica and one micro-batch these are no-ops.
"""

import contextlib
import threading

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def num_replicas():
        """Number of replicas of this step's batch: 1 outside a replica context."""
        return tf.distribute.get_strategy().num_replicas_in_sync if tf.distribute.has_strategy() else 1

    def sum_over_replicas(x):
        """Sum of a tensor over all replicas, equal on each; `x` itself for a single replica.

        Args:
            x: float tensor of any shape; the same shape on every replica.
        """
        context = tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
        if context is None or context.num_replicas_in_sync == 1:
            return x
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))  # an argument has no device

    def on_replicas(step, strategy):
        """Turn a replica's step into a step of a distributed batch that returns means over the replicas.

        Args:
            step:     function of a batch -> dictionary of scalars.
            strategy: tf.distribute.Strategy.
        """
        if strategy.num_replicas_in_sync == 1:
            return step

        def averaged(batch):
            context, mean = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.MEAN
            return context.all_reduce(mean, keras.tree.map_structure(tf.identity, step(batch)))

        def all_steps(batch):
            values = strategy.run(averaged, args=(batch,))
            return {name: strategy.experimental_local_results(value)[0] for name, value in values.items()}

        return all_steps

else:

    def num_replicas():
        """Number of replicas of this step's batch: always 1 on this backend."""
        return 1

    def sum_over_replicas(x):
        """Sum of a tensor over all replicas: `x` itself on this backend."""
        return x

    def on_replicas(step, strategy):
        """The step itself on this backend."""
        return step


class _Pass(threading.local):
    """State of the pass over micro-batches while a step is traced; None outside of one.

    Thread-local: each replica is traced in its own thread, and they alternate at every all-reduce.
    """

    parts = 1
    collected = None  # first pass: one list of counts for each micro-batch
    totals = None  # second pass: the sums
    position = 0


_pass = _Pass()


def num_batch_parts():
    """Number of parts, replicas x micro-batches, into which the batch is split."""
    return num_replicas() * _pass.parts


def sum_over_batch(count):
    """Sum of a count over all parts of the batch.

    Args:
        count: () float32, of this part.
    """
    if _pass.totals is not None:
        _pass.position += 1
        return _pass.totals[_pass.position - 1]
    if _pass.collected is not None:
        _pass.collected[-1].append(count)
        return count
    return sum_over_replicas(count)


@contextlib.contextmanager
def counting(parts):
    """The first pass: every micro-batch begins with `counts.append([])`; yields the list of lists."""
    _pass.parts, _pass.collected = parts, []
    try:
        yield _pass.collected
    finally:
        _pass.parts, _pass.collected = 1, None


def totals_of(counts):
    """Sums over micro-batches and replicas of the counts of `counting`, in the order of the loss."""
    return [sum_over_replicas(ops.sum(ops.stack(column))) for column in zip(*counts, strict=True)]


@contextlib.contextmanager
def counted(totals, parts):
    """One micro-batch of the second pass.

    Args:
        totals: from `totals_of`.
        parts:  number of micro-batches.
    """
    _pass.parts, _pass.totals, _pass.position = parts, totals, 0
    try:
        yield
    finally:
        _pass.parts, _pass.totals = 1, None


def global_mean(total, count, floor=1.0):
    """Sum of this part of the batch over the global count, scaled so that the mean over parts is exact.

    Args:
        total: () sum of losses on this part: of a replica, or of a micro-batch on one.
        count: () its normaliser on this part.
        floor: smallest divisor.
    Returns:
        () float32, total / max(global count, floor) * parts.
    """
    count = sum_over_batch(ops.cast(count, "float32"))
    return total / ops.maximum(count, floor) * num_batch_parts()
