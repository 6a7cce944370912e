"""TSD benchmark: inference relative to its baseline with two fully connected layers, interleaved in one run.

Song et al. 2020, arXiv:2003.07540, Table 5: about 10 % more time than Faster R-CNN on a V100.
"""

import numpy as np
from keras import ops

from kgarden.bench.roi_pooling import spread_boxes
from kgarden.bench.steps import num_classes_of, synthetic_batch
from kgarden.bench.timing import compiled, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.structures import BOXES, IMAGES, SCORES, SIZE_HW, VALID

BASE, TSD = "2fc", "tsd"
OF_BOTH_HEADS = ("width", "num_fcs", "class_agnostic")


def tsd_over_base(recipe: Recipe, repeats: int, data) -> dict:
    """Times the RoI head of TSD and the whole detector relative to Faster R-CNN with the same other parts.

    Both heads get the same features and as many boxes as a detector has proposals, their sides spread evenly
    over octaves; they end at boxes and class scores, before NMS. Both detectors have the same random weights
    up to the proposals, which therefore are the same. All classes have equal scores, below the threshold, so
    that the final selection has little to do in either.

    Returns:
        {"canvas": [H, W], "proposals": P, "head": {"2fc_s", "tsd_s", "over_2fc": quartiles of the rounds'
        ratios}, "whole": the same}.
    Raises:
        UserError: the recipe's model is not TSD.
    """
    from kgarden.build import build_model

    if recipe.model.name != "tsd":
        raise UserError(f"bench --what tsd: {recipe.name} is not a tsd recipe; use one")
    num_classes = num_classes_of(recipe, data)
    detectors = {BASE: build_model(base_of(recipe), num_classes), TSD: build_model(recipe, num_classes)}
    for part in ("backbone", "neck", "proposer"):
        getattr(detectors[TSD], part).set_weights(getattr(detectors[BASE], part).get_weights())
    for last in (detectors[BASE].roi_head.box_head.classes, detectors[TSD].roi_head.classifier.output_layer):
        last.kernel.assign(ops.zeros_like(last.kernel))
    x, _ = synthetic_batch(recipe, num_classes, 1)
    x = {key: ops.convert_to_tensor(value) for key, value in x.items()}
    count = detectors[BASE].proposer.test.total
    inputs = _pyramid(detectors[BASE], x), _proposals(x, count), x[SIZE_HW]
    heads = {name: compiled(_head(detector), *inputs) for name, detector in detectors.items()}
    whole = {name: compiled(detector.inference_model(), x) for name, detector in detectors.items()}
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "proposals": count,
        "head": _ratio(heads, repeats),
        "whole": _ratio(whole, repeats),
    }


def base_of(recipe: Recipe) -> Recipe:
    """Returns the recipe with Faster R-CNN in place of TSD, row table1.baseline of the recipe tsd."""
    model = recipe.model.model_dump()
    shared = {
        key: value for key, value in (model.pop("roi_head", None) or {}).items() if key in OF_BOTH_HEADS
    }
    model.pop("configuration", None)
    model = {"convention": "mmdetection_1", **model, "name": "faster_rcnn", "roi_head": shared}
    return recipe.model_copy(update={"model": type(recipe.model).model_validate(model)})


def _pyramid(detector, x):
    """Features like those of the detector's neck, random."""
    rng = np.random.default_rng(0)
    height, width = x[IMAGES].shape[1:3]
    neck = detector.neck
    sizes = [(1, -(-height // stride), -(-width // stride), neck.channels) for stride in neck.strides]
    return [ops.convert_to_tensor(rng.normal(size=size).astype("float32")) for size in sizes]


def _proposals(x, count):
    boxes = spread_boxes(np.random.default_rng(0), x[IMAGES].shape[1:3], count)
    proposals = {BOXES: boxes, SCORES: np.ones((1, count), "float32"), VALID: np.ones((1, count), bool)}
    return {key: ops.convert_to_tensor(value) for key, value in proposals.items()}


def _head(detector):
    head = detector.roi_head

    def candidates(pyramid, proposals, size_hw):
        return head.candidates(head(pyramid, proposals, size_hw), proposals, size_hw)

    return candidates


def _ratio(functions, repeats):
    seconds = rounds(functions, repeats)
    medians = {f"{name}_s": round(float(np.median(times)), 4) for name, times in seconds.items()}
    return {**medians, f"over_{BASE}": quartiles(seconds[TSD] / seconds[BASE])}
