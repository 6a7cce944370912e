"""Loss scaling on two replicas, in a process of its own; ends with "left out on both"."""

import keras
import numpy as np
import tensorflow as tf
from support.programs.replicas import batches, two_replicas
from support.variants import CLASSES, VARIANTS

from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD, LossScaled
from kgarden.training.gradient_accumulation import accumulated_train_step


def array(variable):
    return keras.ops.convert_to_numpy(variable.value)


def number(variable):
    return float(array(variable))


def gradients_of_one_replica():
    """One that is not finite on one replica, whichever it is, moves nothing; others are summed, clipped."""
    strategy = two_replicas()
    with strategy.scope():
        weight = keras.Variable(np.zeros(3, "float32"), name="kernel")
        optimizer = LossScaled(SGD(1.0, momentum=0.0, clip_norm=1.0), initial_scale=4.0)
        optimizer.build([weight])

    @tf.function
    def step(bad):
        def apply():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(replica == bad, float("inf"), 4.0 * tf.constant([0.0, 0.0, 3.0]))
            optimizer.apply([gradient], [weight])

        strategy.run(apply)

    for bad, scale in ((1, 2.0), (0, 1.0)):
        step(tf.constant(bad))
        assert not array(weight).any() and number(optimizer.iterations) == 0, bad
        assert number(optimizer.dynamic_scale) == scale
    step(tf.constant(-1))
    np.testing.assert_allclose(array(weight), [0.0, 0.0, -1.0])  # clipped from 24 to 1
    assert number(optimizer.iterations) == 1


def whole_detector():
    """Two steps of a detector in float16 and in micro-batches, the first of which overflows."""
    with two_replicas().scope():
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("mixed_float16")
        detector = build_detector(VARIANTS["centernet2_faster"], CLASSES)
        optimizer = LossScaled(SGD(0.01, clip_norm=5.0), initial_scale=2.0**50)
        detector.compile(optimizer=optimizer, jit_compile=False)
        detector.optimizer.build(detector.trainable_variables)
        detector.train_step = accumulated_train_step(detector, 2)
    weights = [array(variable) for variable in detector.trainable_variables]
    x, y = next(batches())
    history = detector.fit(x, y, batch_size=4, verbose=0, shuffle=False).history
    assert float(detector.first_bad.result()) == 0 and np.isfinite(history["loss"][0])
    assert all(map(np.array_equal, weights, map(array, detector.trainable_variables)))
    optimizer.dynamic_scale.assign(2.0**8)
    detector.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    after = [array(variable) for variable in detector.trainable_variables]
    assert number(optimizer.iterations) == 1 and all(np.isfinite(array).all() for array in after)
    assert not all(map(np.array_equal, weights, after))


def main():
    gradients_of_one_replica()
    whole_detector()
    print("left out on both")


if __name__ == "__main__":
    main()
