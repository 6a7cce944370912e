"""Train a small detector in a process of its own, and be killed at a chosen moment.

    python -m support.programs.resume DATA RUN [MOMENT NUMBER]

MODEL in the environment names a variant; by default one that is traced quickly and remembers a mean of
earlier steps. MOMENT is one of MOMENTS; the process ends by SIGKILL when it comes for the NUMBER-th time.
"""

import itertools
import os
import pathlib
import signal
import sys

import numpy as np
from support.variants import VARIANTS

from kgarden.commands.train import train
from kgarden.config.loading import load_recipe
from kgarden.metrics import report
from kgarden.training import checkpoint, trainer
from kgarden.training.reporter import Reporter

STEPS = 12
OVERRIDES = {
    "deterministic": True,
    "model": VARIANTS["retinanet"],
    "data.short_side_px": [64, 80, 96],
    "data.long_side_px": 128,
    "data.canvases": [[96, 128]],
    "data.batch_size": 4,
    "data.cache": "none",
    "schedule.optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "clip_norm": 5.0},
    "schedule.base_lr": 0.01,
    "schedule.warmup": {"steps": 4, "factor": 0.1},
    "schedule.steps": STEPS,
    "schedule.checkpoint_every": 2,
    "schedule.ema": {"decay": 0.9},
    "evaluate.every": 5,
    "evaluate.pictures": 0,
}


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(file, **arrays):
    """What is on disk when a process dies while it writes a checkpoint."""
    file.write(b"PK\x03\x04" + bytes(1000))
    file.flush()
    die()


MOMENTS = {
    "after a step": (trainer.Trainer, "on_train_batch_end", die),
    "while a checkpoint is written": (np, "savez", half_a_file),
    "before a checkpoint takes its place": (checkpoint.os, "fsync", die),
    "before an evaluation": (trainer, "evaluate", die),
    "before the best weights": (trainer, "save_weights", die),
}


def arm(moment, number):
    """The number-th call of what belongs to the moment kills the process; earlier ones do their work."""
    home, name, last = MOMENTS[moment]
    real, calls = getattr(home, name), itertools.count(1)

    def counted(*args, **kwargs):
        return (last if next(calls) == number else real)(*args, **kwargs)

    setattr(home, name, counted)


def main(data, run, moment=None, number=1):
    shards = {"data.train": f"{data}/train", "data.val": f"{data}/val"}
    model = {"model": VARIANTS[os.environ.get("MODEL", "retinanet")]}
    recipe = load_recipe("quickstart", {**OVERRIDES, **shards, **model})
    if moment:
        arm(moment, int(number))
    report.all_figures = lambda analysis: {}
    train(recipe, pathlib.Path(run), reporter=Reporter())


if __name__ == "__main__":
    main(*sys.argv[1:])
