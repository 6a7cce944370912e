"""Sums over the replicas of a `tf.distribute` strategy; without one, and on other backends, nothing to do.

Losses divide by global normalisers (the objects of the whole batch, not of one replica's part). On JAX a
distributed batch is one array, so a plain sum is global already.
"""

import keras

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
