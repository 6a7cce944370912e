"""One device against eight on JAX, in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python -m support.programs.data_parallel VARIANT CANVASES

Prints, for three steps on batches of one or two canvases, the largest difference of any weight over the
largest step that this weight's tensor took, of any loss term, the share of tensors that moved, and on how
many devices the weights lay.
"""

import contextlib
import sys

import keras
import numpy as np
from support import host_initializers
from support.variants import CLASSES, VARIANTS, batch
from support.weights_close import beyond_rounding

from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD
from kgarden.training.jax_data_parallel import data_parallel

CANVASES = [(64, 96), (96, 64)]
DEVICES, STEPS = 8, 3


def batches(canvases):
    """Pictures, and so devices, with different numbers of objects, and some with none."""
    for step in range(STEPS):
        height, width = CANVASES[step % canvases]
        x, y = batch(seed=step, images=DEVICES, height=height, width=width)
        y["labels"][2 + step] = -1
        y["labels"][0, 1:] = -1
        y["crowd"][4, 0] = True
        yield x, y


class Spread(keras.callbacks.Callback):
    """On how many devices the state lies while it is trained."""

    def on_train_batch_end(self, batch, logs=None):
        state = self.model._jax_state["trainable_variables"]
        self.devices = {len(value.sharding.device_set) for value in state}


def trained(variant, canvases, scope):
    """(weights before, weights after, terms, devices that hold the weights) of three steps."""
    with scope:
        keras.utils.set_random_seed(0)
        detector = build_detector(VARIANTS[variant], CLASSES)
        detector.compile(optimizer=SGD(0.01, weight_decay=1e-4, clip_norm=None), jit_compile=True)
        before, spread = values(detector), Spread()
        fit = {"steps_per_epoch": STEPS, "verbose": 0, "shuffle": False, "callbacks": [spread]}
        history = detector.fit(batches(canvases), **fit)
    terms = {name: value[0] for name, value in history.history.items()}
    return before, values(detector), terms, spread.devices


def values(detector):
    return [keras.ops.convert_to_numpy(variable.value).astype("float64") for variable in detector.weights]


def main(variant, canvases):
    host_initializers.install()
    before, one, terms_of_one, _ = trained(variant, canvases, contextlib.nullcontext())
    again, many, terms_of_many, devices = trained(variant, canvases, data_parallel(DEVICES, DEVICES).scope())
    assert all(map(np.array_equal, before, again))
    moved = [max(np.abs(b - a).max(), 1e-4) for a, b in zip(before, one, strict=True)]
    apart = [beyond_rounding(a, b) / m for a, b, m in zip(one, many, moved, strict=True)]
    terms = [abs(terms_of_many[name] - value) / max(abs(value), 1e-3) for name, value in terms_of_one.items()]
    changed = np.mean([not np.array_equal(a, b) for a, b in zip(before, one, strict=True)])
    print(max(apart), max(terms), changed, *devices)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
