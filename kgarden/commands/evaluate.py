"""Evaluation of runs: their weights on all images of their validation data."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

from kgarden.build import load_run, prepare_data
from kgarden.data.identity import changes, check_classes, source_names
from kgarden.errors import UserError
from kgarden.evaluation import batches_of
from kgarden.evaluation import evaluate as measure
from kgarden.metrics.report import report_folder
from kgarden.runs import best_weights, load_run_recipe, writer_of
from kgarden.utils.arguments import check_overrides, path_of
from kgarden.utils.files import authored, read_json, write_json, write_report
from kgarden.utils.output_folder import OutputFolder


def evaluate(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    to: str | os.PathLike | None = None,
    store: bool = False,
    on_batch: Callable[[int], None] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> dict:
    """Evaluates a run's weights on all images of its validation data, as `kgarden evaluate RUN`.

    Args:
        run:       run directory.
        data:      glob of shards to use instead of the recipe's `data.val`.
        weights:   file to use instead of the run's best weights.
        overrides: recipe settings for inference, {"evaluate.views.flip": True, ...}.
        to:        folder for evaluation.json, detections.json, error analysis and figures; None: nothing is
                   written but what `store` asks for.
        store:     write evaluation.json, detections.json and the error analysis into the run, which nothing
                   above may then change.
        on_batch:  called with the number of images processed so far.
        say:       called with a line while another process writes to the run.
    Returns:
        the evaluation, as in `evaluation.json`: {"metrics": {"ap", "ap50", ...}, "per_class": [...], ...},
        AP in percent; with "notes" if the run's data have changed since it began.
    Raises:
        UserError: not a run, or data, weights or settings that do not fit it.
    """
    run = path_of(run, "run")
    if store and (data or weights or overrides):
        raise UserError("evaluate: store is for the run as it is, without other data, weights or overrides")
    with contextlib.ExitStack() as held:
        if store:
            load_run_recipe(run)  # before a lock is written into a directory that is no run
            held.enter_context(writer_of(run, say, "wait for it to end, or use --json FILE"))
        folder = OutputFolder(run / "evaluation", owned=True) if store else None
        if to is not None:
            folder = report_folder(path_of(to, "to"))
            folder.check("evaluation.json", "detections.json")
        evaluation, results = evaluate_run(
            run, data, weights, overrides=overrides, on_batch=on_batch, folder=folder
        )
        if to is not None:
            folder.write_json("detections.json", results)
            folder.write_json("evaluation.json", authored(evaluation))
        if store:
            write_json(run / "detections.json", results)
            write_report(run / "evaluation.json", evaluation)
    return evaluation


def evaluate_run(
    run: str | os.PathLike,
    data: str | None = None,
    weights: str | os.PathLike | None = None,
    overrides: dict | None = None,
    on_batch: Callable[[int], None] | None = None,
    folder: str | os.PathLike | OutputFolder | None = None,
) -> tuple[dict, list[dict]]:
    """Computes the evaluation of a run and its detections; see `evaluate`.

    Args:
        run:       run directory.
        data:      shards to use instead of the recipe's `data.val`.
        weights:   file to use instead of the run's best weights.
        overrides: recipe settings for inference, {"model.proposer.test": 128, ...}.
        on_batch:  called with the number of images processed so far.
        folder:    for the error analysis and its figures; None: none are written.
    Returns:
        (evaluation, results), see `kgarden.evaluation.evaluate`; with "notes" if the run's data have changed
        since it began.
    """
    check_overrides(overrides)
    overrides = dict(overrides or {})
    if data is not None:
        overrides["data.val"] = os.fspath(path_of(data, "data"))
    recipe, detector, categories = load_run(run, weights, overrides)
    prepared = prepare_data(recipe, cache=pathlib.Path(run) / "data", splits=("val",))
    check_classes(categories, f"{run}/labels.json", prepared.categories, *source_names(recipe, "val"))
    notes = [] if any(key.startswith("data.val") for key in overrides) else _changed_data(run, prepared)
    evaluation, results = measure(
        detector,
        recipe,
        batches=batches_of(prepared, recipe, detector),
        categories=categories,
        annotations=prepared.annotations,
        on_batch=on_batch,
        folder=folder,
        diagnosed=True,
    )
    evaluation |= {"weights": pathlib.Path(weights or best_weights(run)).name}
    return {**evaluation, **({"notes": notes} if notes else {})}, results


def _changed_data(run, data):
    """Returns how the validation data of a run have changed since it began, a line for each difference."""
    remembered = pathlib.Path(run) / "data.json"
    return changes(read_json(remembered), data.identity()) if remembered.is_file() else []
