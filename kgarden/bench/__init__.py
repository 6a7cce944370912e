"""Benchmarks of a recipe: time and memory of training, inference and input pipeline, with a reference.

Absolute times depend on the machine. Every report therefore has ratios to a reference that is measured in the
same run: inference over keras.applications' ResNet-50 trunk on the same canvas, the input pipeline over
decoding alone.
"""

import os
import platform
from collections.abc import Callable, Sequence

import keras

from kgarden.bench.cascade_stages import stages_over_base
from kgarden.bench.deformable import deformable_over_plain
from kgarden.bench.inference import inference
from kgarden.bench.input_pipeline import data_memory, data_rates, evaluation
from kgarden.bench.pss_nms import without_nms
from kgarden.bench.roi_heads import heads_over_base
from kgarden.bench.roi_pooling import pooling_over_roi_align
from kgarden.bench.steps import training, training_settings
from kgarden.bench.tsd_inference import tsd_over_base
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError

KINDS = ("train", "settings", "infer", "nms", "heads", "stages", "deform", "pool", "tsd")
KINDS += ("data", "memory", "eval")
REPEATS = 5


def bench(
    recipe: Recipe,
    what: Sequence[str] = ("train", "infer"),
    repeats: int = REPEATS,
    data=None,
    report: Callable[[str], object] | None = None,
) -> dict:
    """Runs benchmarks of a recipe.

    Args:
        recipe:  Recipe.
        what:    some of "train" (a training step on synthetic images), "settings" (the same with other
                 settings of precision and memory), "infer" (the whole model and its parts), "nms" (PSS with
                 and without NMS), "heads" (Double-Head R-CNN over a single fc-head), "stages" (those of a
                 cascade), "deform" (deformable convolution over the plain one), "pool" (deformable RoI
                 pooling over RoIAlign), "tsd" (inference of TSD over Faster R-CNN), "data" (the input
                 pipeline over decoding alone), "memory" (of the input pipeline over 20,000 images), "eval"
                 (COCO evaluation of the ground truth as detections).
        repeats: timed runs of each, after a warm-up run.
        data:    kgarden.build.Data, needed for "data", "memory" and "eval".
        report:  called with a line of text for each number after each benchmark.
    Returns:
        {"machine": {...}, "train": {...}, ...}: medians in seconds, ratios, peak memory in GiB.
    Raises:
        UserError: the benchmark is unknown, or needs TensorFlow or data that are missing.
    """
    unknown = [kind for kind in what if kind not in KINDS]
    if unknown:
        raise UserError(f"bench --what {unknown[0]} is not supported; use some of {', '.join(KINDS)}")
    benchmarks = {
        "train": training,
        "settings": training_settings,
        "infer": inference,
        "nms": without_nms,
        "heads": heads_over_base,
        "stages": stages_over_base,
        "deform": deformable_over_plain,
        "pool": pooling_over_roi_align,
        "tsd": tsd_over_base,
        "data": data_rates,
        "memory": data_memory,
        "eval": evaluation,
    }
    results = {"recipe": recipe.name, "recipe_sha256": recipe.digest(), "machine": machine()}
    for kind in what:
        results[kind] = benchmarks[kind](recipe, repeats, data)
        for line in _lines(results[kind]) if report else ():
            report(f"{kind}: {line}")
    return results


def _lines(tree, prefix=""):
    """A line for each number, such as `parts.neck.s 0.16`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} {value}"


def machine() -> dict:
    """Describes the hardware and software of the measurement."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": _devices(),
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def _devices():
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    import tensorflow as tf

    return [device.device_type for device in tf.config.list_physical_devices()]
