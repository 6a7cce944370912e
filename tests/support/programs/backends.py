"""The same training on whichever backend runs this: `python -m support.programs.backends FOLDER VARIANT...`.

For each variant: five steps from the weights in FOLDER/start (the first to come puts them there), with a
checkpoint after the second, and, where the other backend has left its checkpoint, the last three from that
one again. What came out: FOLDER/<variant>.<backend>.npz, FOLDER/<variant>.from_<other>_on_<backend>.npz.
"""

import pathlib
import sys

import keras
import numpy as np
from keras import ops
from support.variants import CLASSES, VARIANTS, batch

from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD
from kgarden.optimizers.schedules import learning_rate
from kgarden.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from kgarden.training.weight_averaging import ExponentialMovingAverage

STEPS, BETWEEN = 5, 2
BACKEND = keras.backend.backend()
OTHER = {"tensorflow": "jax", "jax": "tensorflow"}[BACKEND]


def batches():
    """Pictures with crowds, with one object and with none."""
    for step in range(STEPS):
        x, y = batch(seed=step, images=4, objects=5)
        y["crowd"][0, 0] = True
        y["labels"][1, 1:] = -1
        y["labels"][2 + step % 2] = -1
        yield x, y


class Training:
    """A detector, its optimizer and its averages, from one step to another."""

    def __init__(self, variant):
        keras.utils.set_random_seed(0)
        self.detector = build_detector(VARIANTS[variant], CLASSES)
        rate = learning_rate(0.01, STEPS, cosine=True, warmup=(3, 0.1))  # the step matters
        self.detector.compile(optimizer=SGD(rate, weight_decay=1e-4), jit_compile=BACKEND == "jax")
        self.detector.optimizer.build(self.detector.trainable_variables)
        self.averages = ExponentialMovingAverage(self.detector.weights, decay=0.9)

    def save(self, folder):
        save_checkpoint(
            folder,
            self.detector,
            self.detector.optimizer,
            ema=self.averages,
            state={"step": self.step()},
        )

    def load(self, folder):
        """From a checkpoint, and from nothing that was there before."""
        for variable in self.variables():
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        state = load_checkpoint(folder, self.detector, self.detector.optimizer, self.averages)
        assert state["step"] == self.step()

    def step(self):
        return int(self.detector.step)

    def variables(self):
        averages = [*self.averages.averages, self.averages.updates]
        return [*self.detector.weights, *self.detector.optimizer.variables, *averages]

    def run(self, until=STEPS):
        """{"terms/<step>/<name>": value} of the steps from here on."""
        terms = {}
        for step, (x, y) in enumerate(batches()):
            if self.step() <= step < until:
                self.detector.reset_metrics()
                logs = self.detector.train_on_batch(x, y, return_dict=True)
                self.averages.update()
                terms |= {f"terms/{step}/{name}": np.float64(value) for name, value in logs.items()}
        return terms

    def arrays(self):
        """{"<number>/<path>": value} of everything that a checkpoint holds."""
        return {
            f"{number:04d}/{variable.path}": ops.convert_to_numpy(variable.value)
            for number, variable in enumerate(self.variables())
        }


def main(folder, variants):
    for variant in variants:
        training = Training(variant)
        start, between = (folder / name / variant for name in ("start", BACKEND))
        if not has_checkpoint(start):
            training.save(start)
            np.savez(folder / f"{variant}.start.npz", **training.arrays())
        if not has_checkpoint(between):
            training.load(start)
            terms = training.run(until=BETWEEN)
            training.save(between)
            terms |= training.run()
            np.savez(folder / f"{variant}.{BACKEND}.npz", **terms, **training.arrays())
        if has_checkpoint(folder / OTHER / variant):
            training.load(folder / OTHER / variant)
            terms = training.run()
            np.savez(folder / f"{variant}.from_{OTHER}_on_{BACKEND}.npz", **terms, **training.arrays())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
