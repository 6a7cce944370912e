"""Remarks on the data of a recipe before its first step: what is implausible, and what its limits cut."""

import os
import pathlib

from kgarden import build
from kgarden.config.recipe import Recipe
from kgarden.models.base.detector import Detector
from tfrecords.data_statistics import facts_in
from tfrecords.plausibility import Limits, findings
from tfrecords.schema import DataError


def data_remarks(data: build.Data, recipe: Recipe, detector: Detector) -> list[str]:
    """Judges the training and the validation data of a recipe.

    Args:
        data:     kgarden.build.Data.
        recipe:   gives sizes and limits.
        detector: gives limits and strides.
    Returns:
        [sentence, ...], each once.
    """
    sizes = recipe.data.short_side_px, recipe.data.long_side_px
    train, test = _limits(recipe, detector, *sizes), build.test_sizes(recipe)
    limits = {"data.train": train, "data.val": train._replace(**{key: test[key] for key in SIDES})}
    remarks = {}
    for name, datasets in (("data.train", data.train), ("data.val", data.val)):
        for path in dict.fromkeys(path for dataset in datasets for path in dataset.annotations):
            for sentence in _sentences(path, limits[name]):
                remarks.setdefault(sentence, name)
    return [f"{name}: {sentence}" for sentence, name in remarks.items()]


SIDES = ("short_side_px", "long_side_px")


def _limits(recipe, detector, short_sides, long_side_px):
    """Limits of a recipe; `data.max_objects` has a warning of its own, with what is dropped."""
    proposer = getattr(detector, "proposer", None)
    selections = [getattr(proposer, name, None) for name in ("train", "test")]
    totals = [total for one in selections if (total := getattr(one, "total", None))]
    return Limits(
        max_objects=None,
        detections=detector.selection.total,
        judged=recipe.evaluate.max_detections,
        proposals=min(totals, default=None),
        short_side_px=max(short_sides),
        long_side_px=long_side_px,
        stride=min(getattr(getattr(detector, "neck", None), "strides", ()), default=None),
    )


def _sentences(annotations: str | os.PathLike, limits):
    """Findings on the data set that annotations.json belongs to."""
    try:
        facts = facts_in(pathlib.Path(annotations).parent)
    except DataError as error:
        return [f"its plausibility is not known: {error}"]
    return [finding.sentence for finding in findings(facts, limits)]
