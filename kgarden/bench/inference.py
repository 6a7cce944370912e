"""Inference benchmark: time of a detector and its parts on one image."""

import keras

from kgarden.bench.steps import num_classes_of, synthetic_batch
from kgarden.bench.timing import compiled, interleaved_medians, peak_memory
from kgarden.config.recipe import Recipe
from kgarden.models.double_head import DoubleHead
from kgarden.structures import BOXES, IMAGES, SIZE_HW


def inference(recipe: Recipe, repeats: int, data) -> dict:
    """Times inference on one image, whole and by part, and relative to a ResNet-50 trunk in the same run.

    Returns:
        {"canvas", "whole_s", "resnet50_trunk_s", "trunks": their ratio, "parts": {name: {"s", "share"}},
        "peak_memory_gib"}. Parts are compiled separately, so that their shares need not add up to 1.
    """
    from kgarden.build import build_model

    num_classes = num_classes_of(recipe, data)
    detector = build_model(recipe, num_classes)
    x, _ = synthetic_batch(recipe, num_classes, 1)
    x = {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}
    trunk = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(*x[IMAGES].shape[1:3], 3)
    )
    pixels = keras.ops.cast(x[IMAGES], "float32")
    whole = detector.inference_model()
    calls = {"resnet50_trunk": (trunk, pixels), "whole": (whole, x), **parts_of(detector, x)}
    medians = interleaved_medians({name: compiled(*call) for name, call in calls.items()}, repeats)
    trunk_s, total = medians.pop("resnet50_trunk"), medians.pop("whole")
    shares = {name: {"s": round(s, 4), "share": round(s / total, 3)} for name, s in medians.items()}
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "whole_s": round(total, 4),
        "resnet50_trunk_s": round(trunk_s, 4),
        "trunks": round(total / trunk_s, 2),
        "parts": shares,
        "peak_memory_gib": peak_memory(),
    }


def parts_of(detector: keras.Model, x: dict) -> dict[str, tuple]:
    """Returns every part with its inputs from the preceding part.   {name: (function, its arguments ...)}"""
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
        **_parts_of_roi_head(detector.roi_head, pyramid, proposals[BOXES]),
        "selection": (select, refine(pyramid, proposals), proposals),
    }


def _parts_of_roi_head(head, pyramid, boxes):
    """RoIAlign and, for a Double-Head, its branches."""
    if not isinstance(head, DoubleHead):
        return {"roi_align_once": (head.pool, pyramid, boxes)} if hasattr(head, "pool") else {}
    pools = {pool.settings["enlarged"]: pool for pool in head.pools}
    features = {scale: pool(pyramid, boxes) for scale, pool in pools.items()}
    aligned = {f"roi_align_x{scale:g}": (pool, pyramid, boxes) for scale, pool in pools.items()}
    return aligned | {
        f"{name}_head": (branch, features[head.scale_of[name]]) for name, branch in head.branches.items()
    }
