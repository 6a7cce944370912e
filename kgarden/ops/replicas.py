"""Global sums for loss normalisers, over replicas and micro-batches.

A loss divides by the objects of the whole batch. Replicas of a `tf.distribute` strategy sum their counts as
they go; on JAX a distributed batch is one array, so a plain sum is global already. Micro-batches are computed
in turn, so they are walked through twice: `counting` collects what each counts, `counted` answers with the
sums. Without replicas and micro-batches there is nothing to do.
"""

import contextlib
import threading

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def num_replicas():
        """How many replicas share the batch of this step: 1 outside a replica context."""
        return tf.distribute.get_strategy().num_replicas_in_sync if tf.distribute.has_strategy() else 1

    def sum_over_replicas(x):
        """The sum of a tensor over all replicas, the same on each; `x` itself where there is only one.

        Args:
            x: float tensor of any shape; the same shape on every replica.
        """
        context = tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
        if context is None or context.num_replicas_in_sync == 1:
            return x
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))  # an argument has no device yet

    def on_replicas(step, strategy):
        """The step of one replica -> a step of a whole distributed batch: runs on each, gives the means.

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
        """How many replicas share the batch of this step: always 1 on this backend."""
        return 1

    def sum_over_replicas(x):
        """The sum of a tensor over all replicas: `x` itself on this backend."""
        return x

    def on_replicas(step, strategy):
        """The step itself on this backend."""
        return step


class _Walk(threading.local):
    """State of the walk through micro-batches while a step is traced; None outside of one.

    Each replica is traced in a thread of its own, and they take turns wherever one sums over all.
    """

    parts = 1
    collected = None  # first walk: one list of counts for each micro-batch
    totals = None  # second walk: the sums
    place = 0


_walk = _Walk()


def num_batch_parts():
    """Parts of the batch that one call of the loss sees one of."""
    return num_replicas() * _walk.parts


def sum_over_batch(count):
    """The sum of a count over all parts of the batch.

    Args:
        count: () float32, of this part.
    """
    if _walk.totals is not None:
        _walk.place += 1
        return _walk.totals[_walk.place - 1]
    if _walk.collected is not None:
        _walk.collected[-1].append(count)
        return count
    return sum_over_replicas(count)


@contextlib.contextmanager
def counting(parts):
    """The first walk: every micro-batch begins with `counts.append([])`; yields the list of lists."""
    _walk.parts, _walk.collected = parts, []
    try:
        yield _walk.collected
    finally:
        _walk.parts, _walk.collected = 1, None


def totals_of(counts):
    """What `counting` has collected -> sums over all micro-batches and replicas, in the order of the loss."""
    return [sum_over_replicas(ops.sum(ops.stack(column))) for column in zip(*counts, strict=True)]


@contextlib.contextmanager
def counted(totals, parts):
    """One micro-batch of the second walk.

    Args:
        totals: of `totals_of`.
        parts:  number of micro-batches.
    """
    _walk.parts, _walk.totals, _walk.place = parts, totals, 0
    try:
        yield
    finally:
        _walk.parts, _walk.totals = 1, None


def global_mean(total, count, floor=1.0):
    """A sum of this part of the batch over a count of the whole, scaled so that the mean over parts is right.

    Args:
        total: () sum of losses on this part: of a replica, or of a micro-batch on one.
        count: () what it is to be divided by, on this part.
        floor: the least that is divided by.
    Returns:
        () float32, total / max(global count, floor) * parts.
    """
    count = sum_over_batch(ops.cast(count, "float32"))
    return total / ops.maximum(count, floor) * num_batch_parts()
