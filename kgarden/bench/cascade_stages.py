"""Cascade benchmark: run times of every stage, and of FSCascade relative to Cascade R-CNN, in one run.

Li et al. 2019 (FSCascade), arXiv:1907.11914, report no run times.
"""

import numpy as np
from keras import ops

from kgarden.bench.steps import num_classes_of, synthetic_batch
from kgarden.bench.timing import compiled, peak_memory, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.models.fscascade import CONFIGURATIONS
from kgarden.structures import IMAGES, SIZE_HW


def stages_over_base(recipe: Recipe, repeats: int, data) -> dict:
    """Times inference of a cascade up to each stage, and whole; all configurations of an FSCascade recipe.

    All RoI heads read the same pyramid and the same proposals. The detectors have random weights, so that the
    final selection has little to do.

    Returns:
        {"canvas", "proposals": number per image, "heads": {configuration: {"s" of all stages, "stages":
        {"stage 1": {"s", "over_base"}, ...}}}, "whole": {configuration: {"s" of a detector on an image}},
        "peak_memory_gib"}; with several configurations each "s" has "over_base", the quartiles of the rounds'
        ratios to the first one, Cascade R-CNN. A stage is the difference to the stages before it.
    Raises:
        UserError: the recipe's model has no cascade.
    """
    from kgarden.build import build_model

    num_classes = num_classes_of(recipe, data)
    detectors = {name: build_model(one, num_classes) for name, one in _compared(recipe).items()}
    base = next(iter(detectors))
    head = getattr(detectors[base], "roi_head", None)
    if not hasattr(head, "of_stage"):
        raise UserError(f"bench --what stages: {recipe.name} has no cascade; use cascade_rcnn or fscascade")
    x, _ = synthetic_batch(recipe, num_classes, 1)
    x = {key: ops.convert_to_tensor(value) for key, value in x.items()}
    raw = detectors[base](x)
    proposals = detectors[base].proposer.proposals(raw["proposer"], x[SIZE_HW], training=False)
    inputs = (raw["pyramid"], proposals, x[SIZE_HW])
    calls = {
        (name, stage): (_up_to(one.roi_head, stage), *inputs)
        for stage in range(1, len(head.ious) + 1)
        for name, one in detectors.items()
    }
    calls |= {(name, "whole"): (one.inference_model(), x) for name, one in detectors.items()}
    seconds = rounds({key: compiled(*call) for key, call in calls.items()}, repeats)
    before = {name: np.zeros(repeats) for name in detectors}
    alone = {
        (name, stage): seconds[name, stage] - seconds.get((name, stage - 1), before[name])
        for name, stage in seconds
        if stage != "whole"
    }
    last = len(head.ious)
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "proposals": detectors[base].proposer.test.total,
        "heads": {
            name: {
                **_over_base(seconds, name, last, base),
                "stages": {f"stage {n}": _over_base(alone, name, n, base) for n in range(1, last + 1)},
            }
            for name in detectors
        },
        "whole": {name: _over_base(seconds, name, "whole", base) for name in detectors},
        "peak_memory_gib": peak_memory(),
    }


def _compared(recipe):
    """{configuration: Recipe}, Cascade R-CNN first; other cascades alone."""
    if recipe.model.name != "fscascade":
        return {recipe.model.name: recipe}
    return {name: _configured(recipe, name) for name in CONFIGURATIONS}


def _configured(recipe, name):
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"configuration": name})})


def _up_to(head, stage):
    """The RoI head with the stages up to one of them."""

    def run(pyramid, proposals, size_hw):
        head.test_stage = stage
        try:
            return head(pyramid, proposals, size_hw)["stages"][-1]
        finally:
            head.test_stage = None

    return run


def _over_base(seconds, name, what, base):
    """Median, and the quartiles of the ratio to the base, of what there are several of."""
    found = {"s": round(float(np.median(seconds[name, what])), 4)}
    if len({one for one, _ in seconds}) > 1:
        found["over_base"] = quartiles(seconds[name, what] / seconds[base, what])
    return found
