"""One replica against two in a process of its own.

    python -m support.programs.replicas "VARIANT [MORE]" ...

MORE, of the two replicas: `micro` lets each take its share in two micro-batches, `remat` has backbones
compute again what they did not keep. Prints, for some steps on batches of two canvases, the largest
difference of any weight over the largest step that this weight's tensor took, that of any loss term, and the
share of tensors that moved.
"""

import functools
import sys

import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from support.variants import CLASSES, VARIANTS, batch  # noqa: E402
from support.weights_close import beyond_rounding  # noqa: E402

from kgarden.models import build_detector  # noqa: E402
from kgarden.optimizers.optimizers import SGD  # noqa: E402
from kgarden.training.gradient_accumulation import accumulated_train_step  # noqa: E402

CANVASES = [(64, 96), (96, 64), (64, 96)]


def settings_of(variant, norm="sync_bn"):
    """The variant with a norm whose statistics are those of the whole batch."""
    settings = VARIANTS[variant]
    return {**settings, "backbone": {**settings["backbone"], "norm": norm}}


def batches(canvases=CANVASES):
    for step, (height, width) in enumerate(canvases):
        x, y = batch(seed=step, images=4, height=height, width=width)
        y["labels"][2 + step % 2] = -1  # a picture without objects, on the second replica
        y["labels"][0, 1:] = -1  # and replicas with different numbers of them
        yield x, y


def trained(variant, strategy, norm="sync_bn", more=(), callbacks=(), canvases=CANVASES, eager=False):
    """(weights before, weights after, terms) of some steps; callbacks are made in the strategy's scope."""
    x, y = next(batches())
    signature = tf.nest.map_structure(
        lambda a: tf.TensorSpec((4, None, None, 3) if a.shape[-1] == 3 else a.shape, a.dtype), (x, y)
    )
    dataset = tf.data.Dataset.from_generator(lambda: batches(canvases), output_signature=signature)
    with strategy.scope():
        keras.utils.set_random_seed(0)
        detector = build_detector(settings_of(variant, norm), CLASSES)
        detector.backbone.remat = "remat" in more
        clip_norm = 1.0 if variant == "centernet2" else None  # it would hide a gradient of another length
        optimizer = SGD(0.01, clip_norm=clip_norm, weight_decay=1e-4)
        detector.compile(optimizer=optimizer, jit_compile=False, run_eagerly=eager)
        if "micro" in more:
            detector.train_step = accumulated_train_step(detector, 2)
        callbacks = [make(detector) for make in callbacks]
    before = values(detector)
    settings = dict(epochs=1, steps_per_epoch=len(canvases), verbose=0, shuffle=False, callbacks=callbacks)
    history = detector.fit(dataset, **settings).history
    terms = {name: value[0] for name, value in history.items()}
    terms["gradient_norm"] = float(keras.ops.convert_to_numpy(detector.optimizer.gradient_norm.value))
    return before, values(detector), terms


def values(detector):
    return [keras.ops.convert_to_numpy(variable.value).astype("float64") for variable in detector.weights]


@functools.cache
def two_replicas():
    """One for the process: collectives of a second one would meet those of the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def compare(variant, *more):
    # A norm that looks at the batch looks at its micro-batch: a frozen one there.
    norm = "frozen_bn" if "micro" in more else "sync_bn"
    canvases = CANVASES[::2] if "micro" in more else CANVASES  # one canvas: their graphs are large
    shared = dict(norm=norm, canvases=canvases)
    # Three steps take less time without a graph than one takes to be traced.
    before, one, terms_of_one = trained(variant, tf.distribute.get_strategy(), **shared, eager=True)
    again, two, terms_of_two = trained(variant, two_replicas(), more=more, **shared)
    assert all(map(np.array_equal, before, again))
    moved = [max(np.abs(b - a).max(), 1e-4) for a, b in zip(before, one, strict=True)]
    apart = [beyond_rounding(a, b) / m for a, b, m in zip(one, two, moved, strict=True)]
    # Refined boxes lie so near that their loss is 1e-3, of corners that are rounded to 1e-7 of 100 px.
    terms = [abs(terms_of_two[name] - value) / (abs(value) + 0.05) for name, value in terms_of_one.items()]
    print(
        max(apart), max(terms), np.mean([not np.array_equal(a, b) for a, b in zip(before, one, strict=True)])
    )


def main(*cases):
    for case in cases:
        compare(*case.split())


if __name__ == "__main__":
    main(*sys.argv[1:])
