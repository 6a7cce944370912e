"""What two heads cost: Double-Head R-CNN beside the single fc-head that it starts from, in turn in one run.

Wu et al. 2020, arXiv:1904.06493, tell no run times.
"""

import keras
import numpy as np

from kgarden.bench.inference import parts_of
from kgarden.bench.steps import made_up_batch, num_classes_of
from kgarden.bench.timing import alternate, compiled, peak_memory, quartiles, rounds
from kgarden.errors import UserError
from kgarden.structures import IMAGES

BASE = "single_fc"
CONFIGURATIONS = (BASE, "double_head", "double_head_ext")


def heads_over_base(recipe, repeats, data):
    """Seconds of detecting, whole and by part, and of a training step, over those of a single fc-head.

    The detectors have random weights: as many proposals as ever, but no class score above the threshold, so
    that the selection has little to do, for all of them alike.

    Returns:
        {"canvas", "proposals": that the heads read, "infer": {configuration: {"s", "over_base": quartiles of
        the rounds' ratios, "parts": {name: s}}}, "train": {"batch_size", configuration: {"s" of a step,
        "over_base"}}, "peak_memory_gib"}.
    Raises:
        UserError: the recipe's model is not Double-Head R-CNN.
    """
    from kgarden.build import build_model

    if recipe.model.name != "double_head":
        raise UserError(f"bench --what heads: {recipe.name} is no recipe of double_head")
    num_classes = num_classes_of(recipe, data)
    detectors = {name: build_model(_configured(recipe, name), num_classes) for name in CONFIGURATIONS}
    x, _ = made_up_batch(recipe, num_classes, 1)
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
    return {part: round(s, 4) for part, s in alternate(calls, repeats).items()}


def _step(recipe, detector, num_classes):
    """A training step on made-up images."""
    from kgarden.build import build_optimizer

    jit = keras.backend.backend() == "jax" or recipe.jit
    detector.compile(optimizer=build_optimizer(recipe), jit_compile=jit)
    x, y = made_up_batch(recipe, num_classes, recipe.data.batch_size)
    return lambda: detector.train_on_batch(x, y)


def _configured(recipe, name):
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"configuration": name})})
