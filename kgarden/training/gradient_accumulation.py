"""Gradient accumulation: several micro-batches, one update. TensorFlow only.

The gradient is that of the whole batch, because every loss divides by normalisers that are summed over all
micro-batches. That requires two forward passes: the first collects the normalisers, the second computes the
gradients. Batch normalisation sees one micro-batch at a time; everything else is as with the whole batch.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from kgarden.ops import replicas


def accumulated_train_step(detector: keras.Model, micro_batches: int) -> Callable:
    """Returns a `train_step` for the detector that accumulates gradients.

    Args:
        detector:      compiled.
        micro_batches: number of micro-batches; the batch of each replica must be divisible by it.
    Returns:
        function of (x, y) -> dictionary of metrics.
    """

    def train_step(data):
        batches = _split(data, micro_batches)
        state = detector.non_trainable_weights
        before = [tf.identity(variable.value) for variable in state]
        with replicas.counting(micro_batches) as counts:
            for batch in batches:
                x, y = _after(counts, batch)
                counts.append([])
                detector.loss_terms(x, y, detector(x, training=True), training=True)
        totals = replicas.totals_of(counts)
        _restore(state, before)
        step = tf.identity(detector.step.value)
        gradients = None
        for batch in batches:
            x, y = _after([totals, gradients], batch)
            detector.step.assign(step)  # random choices depend on the step, which all micro-batches share
            with replicas.counted(totals, micro_batches):
                new = _gradients(detector, x, y)
            gradients = new if gradients is None else _sums(gradients, new)
        variables = detector.trainable_variables
        detector.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return detector.get_metrics_result()

    return train_step


def _after(tensors, data):
    """Returns the micro-batch with a control dependency on `tensors`.

    Without it TensorFlow may compute several micro-batches concurrently, with the memory of all of them.
    """
    with tf.control_dependencies([one for one in keras.tree.flatten(tensors) if one is not None]):
        return keras.tree.map_structure(tf.identity, data)


def _gradients(detector, x, y):
    with tf.GradientTape() as tape:
        raw = detector(x, training=True)
        loss = detector.compute_loss(x=x, y=y, y_pred=raw, training=True)
        scaled = detector.optimizer.scale_loss(loss)
    detector._loss_tracker.update_state(loss * replicas.num_batch_parts())
    return tape.gradient(scaled, detector.trainable_variables)


def _split(data, micro_batches):
    """Returns [(x, y), ...] of consecutive images."""
    size = keras.tree.flatten(data)[0].shape[0] // micro_batches
    slices = [slice(n * size, (n + 1) * size) for n in range(micro_batches)]
    return [keras.tree.map_structure(lambda t, one=one: t[one], tuple(data[:2])) for one in slices]


def _sums(gradients, more):
    return [a if b is None else b if a is None else a + b for a, b in zip(gradients, more, strict=True)]


def _restore(variables, values):
    """Restores the statistics of normalisation layers and the step after the first pass."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
