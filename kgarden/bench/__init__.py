"""How long a recipe's steps take, part by part, beside a yardstick measured in the same run.

Absolute seconds belong to one machine on one day. So every report carries ratios: inference over
keras.applications' ResNet-50 trunk on the same canvas, the input pipeline over decoding alone.
"""

import os
import platform

import keras

from kgarden.bench.inference import inference
from kgarden.bench.input_pipeline import data_memory, data_rates, evaluation
from kgarden.bench.pss_nms import without_nms
from kgarden.bench.roi_heads import heads_over_base
from kgarden.bench.steps import training, training_settings
from kgarden.errors import UserError

KINDS = ("train", "settings", "infer", "nms", "heads", "data", "memory", "eval")
REPEATS = 5


def bench(recipe, what=("train", "infer"), repeats=REPEATS, data=None, report=None):
    """Measure a recipe.

    Args:
        recipe:  kgarden.config.loading.Recipe.
        what:    some of "train" (a step on made-up images), "settings" (the same under other settings of
                 precision and memory), "infer" (whole and by part), "nms" (PSS with and without), "heads"
                 (Double-Head R-CNN over a single fc-head), "data" (the input pipeline over decoding alone),
                 "memory" (of the input pipeline over 20,000 images), "eval" (COCO evaluation of made-up
                 detections).
        repeats: timed runs of each, after one that is not counted.
        data:    kgarden.build.Data, needed for "data", "memory" and "eval".
        report:  called with one line of text for each figure, when all of a kind are there.
    Returns:
        {"machine": {...}, "train": {...}, ...}: medians in seconds, ratios, peak memory in GiB.
    Raises:
        UserError: an unknown kind, or one that needs TensorFlow or data where there is none.
    """
    unknown = [kind for kind in what if kind not in KINDS]
    if unknown:
        raise UserError(f"bench: {unknown[0]!r} cannot be measured; one of {', '.join(KINDS)}")
    measures = {
        "train": training,
        "settings": training_settings,
        "infer": inference,
        "nms": without_nms,
        "heads": heads_over_base,
        "data": data_rates,
        "memory": data_memory,
        "eval": evaluation,
    }
    found = {"recipe": recipe.name, "recipe_sha256": recipe.digest(), "machine": machine()}
    for kind in what:
        found[kind] = measures[kind](recipe, repeats, data)
        for line in _lines(found[kind]) if report else ():
            report(f"{kind}: {line}")
    return found


def _lines(tree, prefix=""):
    """A line for each figure, as `parts.neck.s 0.16`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} {value}"


def machine():
    """What the figures were measured on."""
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
