"""Double-Head benchmark: run times relative to the single fc-head of its baseline, interleaved in one run.

Wu et al. 2020, arXiv:1904.06493, report no run times.
"""

import keras
import numpy as np

from kgarden.bench.inference import parts_of
from kgarden.bench.steps import num_classes_of, synthetic_batch
from kgarden.bench.timing import compiled, interleaved_medians, peak_memory, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.structures import IMAGES

BASE = "single_fc"
CONFIGURATIONS = (BASE, "double_head", "double_head_ext")


def heads_over_base(recipe: Recipe, repeats: int, data) -> dict:
    """Times inference, whole and by part, and a training step, relative to those of a single fc-head.

    The detectors have random weights: the number of proposals is realistic, but no class score exceeds the
    threshold, so that the final selection has little to do in all of them.

    Returns:
        {"canvas", "proposals": number per image, "infer": {configuration: {"s", "over_base": quartiles of
        the rounds' ratios, "parts": {name: s}}}, "train": {"batch_size", configuration: {"s" of a step,
        "over_base"}}, "peak_memory_gib"}.
    Raises:
        UserError: the recipe's model is not Double-Head R-CNN.
    """
    from kgarden.build import build_model

    if recipe.model.name != "double_head":
        raise UserError(f"bench --what heads: {recipe.name} is not a double_head recipe; use one")
    num_classes = num_classes_of(recipe, data)
    detectors = {name: build_model(_configured(recipe, name), num_classes) for name in CONFIGURATIONS}
    x, _ = synthetic_batch(recipe, num_classes, 1)
    x = {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}
    whole = {name: compiled(detector.inference_model(), x) for name, detector in detectors.items()}
    seconds = rounds(whole, repeats)
    steps = rounds(
        {name: _step(recipe, detector, num_classes) for name, detector in detectors.items()}, repeats
    )
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "proposals": detectors[BASE].proposer.test.total,
        "infer": {
            name: {**_over_base(seconds, name), "parts": _seconds_of_parts(detector, x, repeats)}
            for name, detector in detectors.items()
        },
        "train": {"batch_size": recipe.data.batch_size, **{name: _over_base(steps, name) for name in steps}},
        "peak_memory_gib": peak_memory(),
    }


def _over_base(seconds, name):
    median = round(float(np.median(seconds[name])), 4)
    return {"s": median, "over_base": quartiles(seconds[name] / seconds[BASE])}


def _seconds_of_parts(detector, x, repeats):
    calls = {part: compiled(*call) for part, call in parts_of(detector, x).items()}
    return {part: round(s, 4) for part, s in interleaved_medians(calls, repeats).items()}


def _step(recipe, detector, num_classes):
    """A training step on synthetic images."""
    from kgarden.build import build_optimizer

    jit = keras.backend.backend() == "jax" or recipe.jit
    detector.compile(optimizer=build_optimizer(recipe), jit_compile=jit)
    x, y = synthetic_batch(recipe, num_classes, recipe.data.batch_size)
    return lambda: detector.train_on_batch(x, y)


def _configured(recipe, name):
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"configuration": name})})
