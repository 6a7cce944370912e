"""Training-step benchmark on synthetic images, with several settings of precision and memory."""

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
from kgarden.config.recipe import Recipe
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


def synthetic_batch(
    recipe: Recipe, num_classes: int, batch_size: int, objects: int = 8, seed: int = 0
) -> tuple[dict, dict]:
    """Creates a batch of noise images with plausible boxes on the recipe's first canvas.

    The content hardly affects run times.

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


def training(recipe: Recipe, repeats: int, data) -> dict:
    """Times a training step and reports the largest memory of this process so far."""
    from kgarden.build import build_model, build_optimizer

    num_classes = num_classes_of(recipe, data)
    keras.utils.set_random_seed(recipe.seed)
    detector = build_model(recipe, num_classes)
    if subsets := getattr(getattr(detector, "roi_head", None), "federated", None):
        subsets.image_counts = np.ones(num_classes)  # as many objects of each class as of any other
    jit = keras.backend.backend() == "jax" or recipe.jit
    detector.compile(optimizer=build_optimizer(recipe), jit_compile=jit)
    if recipe.schedule.micro_batches > 1:
        detector.train_step = _in_micro_batches(detector, recipe.schedule.micro_batches)
    x, y = synthetic_batch(recipe, num_classes, recipe.data.batch_size)
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


def _in_micro_batches(detector, micro_batches):
    if keras.backend.backend() != "tensorflow":
        raise UserError("schedule.micro_batches: needs the TensorFlow backend")
    from kgarden.training.gradient_accumulation import accumulated_train_step

    return accumulated_train_step(detector, micro_batches)


def num_classes_of(recipe: Recipe, data) -> int:
    """Returns the number of classes of the recipe, of the data, or COCO's 80."""
    if recipe.model.num_classes:
        return recipe.model.num_classes
    return len(data.categories) if data is not None else 80


# The same step with several settings.


def training_settings(
    recipe: Recipe, repeats: int, data, settings: dict | None = None, rounds: int = ROUNDS
) -> dict:
    """Measures time and memory of the recipe's step with several settings of precision and memory.

    Every setting runs in a process of its own, because peak memory is a property of a process. The processes
    are interleaved, so that background load affects all settings equally.

    Args:
        settings: {name: {key of the recipe: value}}, in addition to PLAIN; None: SETTINGS.
        rounds:   number of processes for each setting.
    Returns:
        {"settings": {name: result of `training`, with medians and "peak_memory_gib_of_rounds"}}.
    """
    settings = settings or (SETTINGS if keras.backend.backend() == "tensorflow" else _without_micro_batches())
    results = {name: [] for name in settings}
    steps = max(2, repeats // 2)
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder) / "recipe.yaml"
        classes = {"model.num_classes": num_classes_of(recipe, data)}
        base.write_text(recipe.to_yaml())
        for _ in range(rounds):
            for name, changes in settings.items():
                results[name].append(_in_a_process(base, {**PLAIN, **classes, **changes}, steps))
    table = {name: _summary(rows) for name, rows in results.items()}
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
        raise UserError(f"bench: the process with {changes} failed with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rows):
    """Merges the rows of several rounds: medians of times, the largest memory."""
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
