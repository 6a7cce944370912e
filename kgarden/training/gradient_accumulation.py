"""One step on a batch that does not fit into memory: micro-batches in turn, one update.

The gradient is that of the whole batch, because every loss divides by what all micro-batches together count.
That takes a second pass forwards: first all are counted, then each is differentiated. Norms that look at the
batch see their micro-batch; all else is as if the batch had gone through at once. TensorFlow only.
"""

import keras
import tensorflow as tf

from kgarden.ops import replicas


def accumulated(detector, parts):
    """A `train_step` for the detector.

    Args:
        detector: compiled.
        parts:    micro-batches of a batch; the batch of a replica must be divisible by it.
    Returns:
        function of (x, y) -> dictionary of metrics.
    """

    def train_step(data):
        micro_batches = _split(data, parts)
        state = detector.non_trainable_weights
        before = [tf.identity(variable.value) for variable in state]
        with replicas.counting(parts) as counts:
            for part in micro_batches:
                x, y = _after(counts, part)
                counts.append([])
                detector.loss_terms(x, y, detector(x, training=True), training=True)
        totals = replicas.totals_of(counts)
        _put_back(state, before)
        step = tf.identity(detector.step.value)
        gradients = None
        for part in micro_batches:
            x, y = _after([totals, gradients], part)
            detector.step.assign(step)  # what is drawn depends on the step, which is one for all
            with replicas.counted(totals, parts):
                found = _gradients(detector, x, y)
            gradients = found if gradients is None else _sums(gradients, found)
        variables = detector.trainable_variables
        detector.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return detector.get_metrics_result()

    return train_step


def _after(done, data):
    """The same micro-batch, at hand only when `done` is computed.

    Nothing else keeps TensorFlow from working on several micro-batches at once, with the memory of all.
    """
    with tf.control_dependencies([one for one in keras.tree.flatten(done) if one is not None]):
        return keras.tree.map_structure(tf.identity, data)


def _gradients(detector, x, y):
    with tf.GradientTape() as tape:
        raw = detector(x, training=True)
        loss = detector.compute_loss(x=x, y=y, y_pred=raw, training=True)
        scaled = detector.optimizer.scale_loss(loss)
    detector._loss_tracker.update_state(loss * replicas.num_batch_parts())
    return tape.gradient(scaled, detector.trainable_variables)


def _split(data, parts):
    """[(x, y), ...] of consecutive pictures."""
    size = keras.tree.flatten(data)[0].shape[0] // parts
    slices = [slice(n * size, (n + 1) * size) for n in range(parts)]
    return [keras.tree.map_structure(lambda t, one=one: t[one], tuple(data[:2])) for one in slices]


def _sums(gradients, more):
    return [a if b is None else b if a is None else a + b for a, b in zip(gradients, more, strict=True)]


def _put_back(variables, values):
    """Statistics of norms and the step as they were: the counting walk has trained nothing."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
