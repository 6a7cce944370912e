"""A training step on made-up pictures: the recipe's, and under other settings of precision and memory."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from kgarden.bench.timing import median, peak_memory
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, SIZE_HW

SETTINGS = {  # over the recipe
    "float32": {},
    "bfloat16": {"precision": "mixed_bfloat16"},
    "remat": {"remat": ["backbone"]},
    "micro_batches": {"schedule.micro_batches": 2},
    "bfloat16_remat": {"precision": "mixed_bfloat16", "remat": ["backbone"]},
    "remat_micro_batches": {"remat": ["backbone"], "schedule.micro_batches": 2},
}
PLAIN = {"precision": "float32", "remat": [], "schedule.micro_batches": 1}
ROUNDS = 2


def made_up_batch(recipe, num_classes, batch_size, objects=8, seed=0):
    """A batch of noise with plausible boxes on the recipe's first canvas; content hardly changes times.

    Returns:
        x, y as in kgarden.structures, numpy.
    """
    from kgarden.build import canvases

    height, width = canvases(recipe)[0]
    rng = np.random.default_rng(seed)
    rows = recipe.data.max_objects
    corner = rng.uniform(0, 0.6, (batch_size, rows, 2)) * [width, height]
    side = rng.uniform(0.05, 0.4, (batch_size, rows, 2)) * [width, height]
    labels = np.where(np.arange(rows) < objects, rng.integers(0, num_classes, (batch_size, rows)), -1)
    x = {
        IMAGES: rng.integers(0, 256, (batch_size, height, width, 3), dtype="uint8"),
        SIZE_HW: np.tile(np.int32([height, width]), (batch_size, 1)),
    }
    y = {
        BOXES: np.concatenate([corner, corner + side], axis=-1).astype("float32"),
        LABELS: labels.astype("int32"),
        CROWD: np.zeros((batch_size, rows), bool),
        IMAGE_ID: np.arange(batch_size, dtype="int32"),
    }
    return x, y


def training(recipe, repeats, data):
    """Seconds of a whole step, and the largest memory of this process so far."""
    from kgarden.build import build_model, build_optimizer

    num_classes = num_classes_of(recipe, data)
    keras.utils.set_random_seed(recipe.seed)
    detector = build_model(recipe, num_classes)
    jit = keras.backend.backend() == "jax" or recipe.jit
    detector.compile(optimizer=build_optimizer(recipe), jit_compile=jit)
    if recipe.schedule.micro_batches > 1:
        detector.train_step = _in_micro_batches(detector, recipe.schedule.micro_batches)
    x, y = made_up_batch(recipe, num_classes, recipe.data.batch_size)
    before = peak_memory()
    started = time.perf_counter()
    detector.train_on_batch(x, y)
    first = time.perf_counter() - started
    seconds = median(lambda: detector.train_on_batch(x, y), repeats)
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "batch_size": recipe.data.batch_size,
        "precision": recipe.precision,
        "remat": list(recipe.remat),
        "micro_batches": recipe.schedule.micro_batches,
        "first_step_s": round(first, 2),
        "step_s": round(seconds, 4),
        "images_per_s": round(recipe.data.batch_size / seconds, 2),
        "memory_before_steps_gib": before,
        "peak_memory_gib": peak_memory(),
    }


def _in_micro_batches(detector, parts):
    if keras.backend.backend() != "tensorflow":
        raise UserError("schedule.micro_batches: needs the TensorFlow backend")
    from kgarden.training.gradient_accumulation import accumulated_train_step

    return accumulated_train_step(detector, parts)


def num_classes_of(recipe, data):
    """The recipe's, the data's, or COCO's 80."""
    if recipe.model.num_classes:
        return recipe.model.num_classes
    return len(data.categories) if data is not None else 80


# The same step under several settings.


def training_settings(recipe, repeats, data, settings=None, rounds=ROUNDS):
    """Time and memory of the recipe's step under settings of precision and memory.

    Every setting runs in a process of its own, because the largest memory is that of a process; all of them
    in turn, several rounds of it, so that a machine's moods meet all alike.

    Args:
        settings: {name: {key of the recipe: value}}, laid over PLAIN; None: SETTINGS.
        rounds:   processes of each setting.
    Returns:
        {"settings": {name: what `training` gives, with medians and "peak_memory_gib_of_rounds"}}.
    """
    settings = settings or (SETTINGS if keras.backend.backend() == "tensorflow" else _without_micro_batches())
    found = {name: [] for name in settings}
    steps = max(2, repeats // 2)
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder) / "recipe.yaml"
        classes = {"model.num_classes": num_classes_of(recipe, data)}
        base.write_text(recipe.to_yaml())
        for _ in range(rounds):
            for name, changes in settings.items():
                found[name].append(_in_a_process(base, {**PLAIN, **classes, **changes}, steps))
    table = {name: _summary(rows) for name, rows in found.items()}
    first = next(iter(table.values()))
    for row in table.values():
        row["step_over_first"] = round(row["step_s"] / first["step_s"], 2)
        row["memory_over_first"] = round(row["peak_memory_gib"] / first["peak_memory_gib"], 2)
    return {"rounds": rounds, "steps_of_a_round": steps, "settings": table}


def _without_micro_batches():
    return {name: keys for name, keys in SETTINGS.items() if "schedule.micro_batches" not in keys}


def _in_a_process(recipe, changes, repeats):
    environment = os.environ | {
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "kgarden.bench.steps", str(recipe), json.dumps(changes), str(repeats)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"bench: the process with {changes} ended with code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rows):
    """One row of several rounds: medians of times, the largest memory."""
    summary = dict(rows[0])
    for key in ("first_step_s", "step_s", "images_per_s"):
        summary[key] = round(float(np.median([row[key] for row in rows])), 4)
    summary["step_s_of_rounds"] = [row["step_s"] for row in rows]
    summary["peak_memory_gib"] = max(row["peak_memory_gib"] for row in rows)
    summary["peak_memory_gib_of_rounds"] = [row["peak_memory_gib"] for row in rows]
    return summary


if __name__ == "__main__":
    path, changes, repeats = sys.argv[1:]
    print(json.dumps(training(load_recipe(path, json.loads(changes)), int(repeats), None)))
