"""Evaluation of runs: their weights on all images of their validation data."""

import os
import pathlib
from collections.abc import Callable

from kgarden.build import load_run, prepare_data
from kgarden.data.identity import changes, check_classes, source_names
from kgarden.evaluation import batches_of, evaluate
from kgarden.runs import best_weights
from kgarden.utils.files import read_json
from kgarden.utils.output_folder import OutputFolder


def evaluate_run(
    run: str | os.PathLike,
    data: str | None = None,
    weights: str | os.PathLike | None = None,
    overrides: dict | None = None,
    on_batch: Callable[[int], None] | None = None,
    folder: str | os.PathLike | OutputFolder | None = None,
) -> tuple[dict, list[dict]]:
    """Evaluates a run's weights on all images of its validation data.

    Args:
        run:       run directory.
        data:      shards to use instead of the recipe's `data.val`.
        weights:   file to use instead of the run's best weights.
        overrides: recipe settings for inference, {"model.proposer.test": 128, ...}.
        on_batch:  called with the number of images processed so far.
        folder:    for the error analysis and its figures; None: no analysis.
    Returns:
        (evaluation, results), see `evaluate`; with "notes" if the run's data have changed since it began.
    """
    overrides = {**(overrides or {}), **({"data.val": data} if data else {})}
    recipe, detector, categories = load_run(run, weights, overrides)
    prepared = prepare_data(recipe, cache=pathlib.Path(run) / "data", splits=("val",))
    check_classes(categories, f"{run}/labels.json", prepared.categories, *source_names(recipe, "val"))
    notes = [] if any(key.startswith("data.val") for key in overrides) else _changed_data(run, prepared)
    evaluation, results = evaluate(
        detector,
        recipe,
        batches=batches_of(prepared, recipe, detector),
        categories=categories,
        annotations=prepared.annotations,
        on_batch=on_batch,
        folder=folder,
    )
    evaluation |= {"weights": pathlib.Path(weights or best_weights(run)).name}
    return {**evaluation, **({"notes": notes} if notes else {})}, results


def _changed_data(run, data):
    """Returns how the validation data of a run have changed since it began, a line for each difference."""
    remembered = pathlib.Path(run) / "data.json"
    return changes(read_json(remembered), data.identity()) if remembered.is_file() else []
