"""How long a recipe's steps take, part by part, beside a yardstick measured in the same run.

Absolute seconds belong to one machine on one day. So every report carries ratios: inference over
keras.applications' ResNet-50 trunk on the same canvas, the input pipeline over decoding alone.
"""

import os
import platform

import keras

from kgarden.bench.clock import alternate, compiled, peak_memory
from kgarden.bench.nms import without_nms
from kgarden.bench.pipeline import data_memory, data_rates, evaluation
from kgarden.bench.steps import made_up_batch, num_classes_of, training, training_settings
from kgarden.schema import BOXES, IMAGES, SIZE_HW, UserError

KINDS = ("train", "settings", "infer", "nms", "data", "memory", "eval")
REPEATS = 5


def bench(recipe, what=("train", "infer"), repeats=REPEATS, data=None, report=None):
    """Measure a recipe.

    Args:
        recipe:  kgarden.recipe.Recipe.
        what:    some of "train" (a step on made-up pictures), "settings" (the same under other settings of
                 precision and memory), "infer" (whole and by part), "nms" (PSS with and without),
                 "data" (the input pipeline over decoding alone), "memory" (of the input pipeline over 20,000
                 pictures), "eval" (COCO evaluation of made-up detections).
        repeats: timed runs of each, after one that is not counted.
        data:    kgarden.build.Data, needed for "data", "memory" and "eval".
        report:  called with one line of text as each figure arrives.
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
        "infer": _infer,
        "nms": without_nms,
        "data": data_rates,
        "memory": data_memory,
        "eval": evaluation,
    }
    found = {"recipe": recipe.name, "recipe_sha256": recipe.digest(), "machine": machine()}
    for kind in what:
        found[kind] = measures[kind](recipe, repeats, data)
        for key, value in found[kind].items():
            if report and not isinstance(value, dict):
                report(f"{kind}: {key} {value}")
    return found


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


# Inference.


def _infer(recipe, repeats, data):
    from kgarden.build import build_model

    num_classes = num_classes_of(recipe, data)
    detector = build_model(recipe, num_classes)
    x, _ = made_up_batch(recipe, num_classes, 1)
    x = {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}
    yardstick = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(*x[IMAGES].shape[1:3], 3)
    )
    pixels = keras.ops.cast(x[IMAGES], "float32")
    whole = detector.inference_model()
    calls = {"resnet50_trunk": (yardstick, pixels), "whole": (whole, x), **_parts(detector, x)}
    medians = alternate({name: compiled(*call) for name, call in calls.items()}, repeats)
    trunk, total = medians.pop("resnet50_trunk"), medians.pop("whole")
    shares = {name: {"s": round(s, 4), "share": round(s / total, 3)} for name, s in medians.items()}
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "whole_s": round(total, 4),
        "resnet50_trunk_s": round(trunk, 4),
        "trunks": round(total / trunk, 2),
        "parts": shares,
        "peak_memory_gib": peak_memory(),
    }


def _parts(detector, x):
    """Every part on the outputs of the one before it.   dict name -> (function, its arguments ...)."""
    size_hw = x[SIZE_HW]
    images = detector.pixels(x[IMAGES], size_hw)
    features = detector.backbone(images)
    pyramid = detector.neck(features)
    parts = {
        "pixels": (detector.pixels, x[IMAGES], size_hw),
        "backbone": (detector.backbone, images),
        "neck": (detector.neck, features),
    }
    if "dense_head" in detector.parts():
        raw = detector.dense_head(pyramid)
        return parts | {
            "dense_head": (detector.dense_head, pyramid),
            "candidates_and_selection": (lambda raw: detector.detect(x, raw), raw),
        }
    raw = detector.proposer(pyramid)

    def propose(raw):
        return detector.proposer.proposals(raw, size_hw, training=False)

    def refine(pyramid, proposals):
        return detector.roi_head(pyramid, proposals, size_hw)

    def select(refined, proposals):
        return detector.selection(detector.roi_head.candidates(refined, proposals, size_hw))

    proposals = propose(raw)
    return parts | {
        "proposer_head": (detector.proposer, pyramid),
        "proposals": (propose, raw),
        "roi_head": (refine, pyramid, proposals),
        "roi_align_once": (detector.roi_head.pool, pyramid, proposals[BOXES]),
        "selection": (select, refine(pyramid, proposals), proposals),
    }
