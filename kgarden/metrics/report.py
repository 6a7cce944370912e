"""Evaluation reports: metrics and error analysis of existing detections, and the folder that holds them.

evaluation, analysis = score_file("detections.json", "annotations.json")
write_folder("scores", evaluation, analysis)
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

from kgarden.errors import UserError
from kgarden.metrics.analysis import analyse, limits_of
from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.coco_json import read_results, read_truth
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.explain import explain_table, needs_explaining
from kgarden.metrics.figures import FIGURES, all_figures
from kgarden.metrics.open_images import OFFICIAL, Rules
from kgarden.metrics.registry import compute_metrics
from kgarden.utils.files import read_json
from kgarden.utils.output_folder import OutputFolder


def score_file(
    detections: str | os.PathLike,
    annotations: str | os.PathLike,
    metrics: Sequence[str] = ("coco",),
    iou_type: str = "bbox",
    max_detections: int = COCO_MAX_DETECTIONS,
    open_images: Rules = OFFICIAL,
) -> tuple[dict, dict]:
    """Evaluates a file of detections: metrics and error analysis.

    Args:
        detections:     path; a list in COCO results form, a data set in COCO form with scores, or what
                        `kgarden predict` writes.
        annotations:    path of the ground truth in COCO form.
        metrics:        names, see `kgarden.metrics.registry.HEADLINES`.
        iou_type:       "bbox" or "segm".
        max_detections: number of detections of a class in an image that COCO's metrics judge.
        open_images:    rules of the metric of Open Images.
    Returns:
        (evaluation, analysis): see `score`.
    Raises:
        UserError: a file cannot be used; the message names the file and the reason.
    """
    truth, results, notes = read_detections(detections, annotations)
    evaluation, analysis = score(
        truth,
        results,
        metrics=metrics,
        iou_type=iou_type,
        max_detections=max_detections,
        open_images=open_images,
    )
    names = {
        "detections_file": pathlib.Path(detections).name,
        "annotations_file": pathlib.Path(annotations).name,
    }
    return {**names, **evaluation, **({"notes": notes} if notes else {})}, analysis


def read_detections(
    detections: str | os.PathLike, annotations: str | os.PathLike
) -> tuple[dict, list[dict], list[str]]:
    """Reads a file of detections and its ground truth; see `score_file`.

    Returns:
        (truth, results, notes): ground truth in COCO form, results with its ids, remarks for the user.
    Raises:
        UserError: a file cannot be used; the message names the file and the reason.
    """
    truth, notes = _checked(annotations, read_truth)
    results, more = _checked(detections, lambda content: read_results(content, truth))
    return truth, results, notes + more


def score(
    truth: dict,
    results: list[dict],
    image_ids: Iterable | None = None,
    metrics: Sequence[str] = ("coco",),
    iou_type: str = "bbox",
    max_detections: int = COCO_MAX_DETECTIONS,
    open_images: Rules = OFFICIAL,
) -> tuple[dict, dict]:
    """Computes metrics and error analysis of detections in COCO results form.

    Returns:
        (evaluation, analysis): contents of `evaluation.json` and `analysis.json`.
    """
    table = EvaluationTable(truth, results, image_ids, max_detections=max_detections, open_images=open_images)
    evaluation = evaluate_boxes(table, metrics, iou_type)
    analysis = analyse_errors(table, iou_type)
    return evaluation | diagnosis_of(analysis), analysis


def diagnosis_of(analysis: dict) -> dict:
    """Returns what an evaluation holds of its analysis: {"errors", "thresholds"}.

    `thresholds` has the score of the best F1 over all classes and by class: {"all": {"f1", "precision",
    "recall", "score"}, "per_class": [{"id", "name", "f1", ...}, ...]}.
    """
    rows = [{"id": row["id"], "name": row["name"], **row["best_f1"]} for row in analysis["per_class"]]
    thresholds = {"all": analysis["best_f1"], "per_class": rows}
    return {"errors": analysis["errors"], "thresholds": thresholds}


def evaluate_boxes(
    table: EvaluationTable,
    metrics: Sequence[str] = ("coco",),
    iou_type: str = "bbox",
    explained: bool = True,
) -> dict:
    """Computes the metrics of an evaluation; with `explained`, diagnoses a near-zero headline metric."""
    evaluation = {"unit": "percent", "iou_type": iou_type, "max_detections": table.max_detections}
    evaluation |= compute_metrics(metrics, table, iou_type)
    if explained and needs_explaining(evaluation):
        evaluation["explanation"] = explain_table(table, evaluation["headline"])
    if limits := limits_of(table.arrays(iou_type)):
        evaluation["limits"] = limits
    return {**evaluation, "images": table.num_images, "detections": len(table.results)}


def evaluate_masks(table: EvaluationTable, metrics: Sequence[str] = ("coco",)) -> dict:
    """Computes the same metrics for the masks that a model predicts with its boxes.

    Returns:
        {"metrics", "per_class"} as in `evaluate_boxes`, or {"not_judged": reason} if the ground truth has no
        masks.
    """
    try:
        evaluation = compute_metrics(metrics, table, "segm")
    except UserError as error:
        return {"not_judged": f"in the ground truth, {error}"}
    return {key: evaluation[key] for key in ("metrics", "per_class")}


def numbers_of(evaluation: dict) -> dict:
    """Returns all metrics of an evaluation in one flat dictionary, those of masks as `masks_ap`, ..."""
    masks = evaluation.get("masks", {}).get("metrics", {})
    return evaluation["metrics"] | {f"masks_{name}": value for name, value in masks.items()}


def analyse_errors(table: EvaluationTable, iou_type: str = "bbox") -> dict:
    """Computes errors, confusions and curves; see `kgarden.metrics.analysis`."""
    return analyse(table.arrays(iou_type))


def report_folder(folder: str | os.PathLike | OutputFolder) -> OutputFolder:
    """Returns the OutputFolder for `write_folder`, checked before the evaluation.

    Raises:
        UserError: it cannot be written to, or a file that is not of an earlier report would be replaced.
    """
    folder = OutputFolder.of(folder)
    folder.check("analysis.json", "per_class.csv", *FIGURES)
    return folder


def write_folder(folder: str | os.PathLike | OutputFolder, evaluation: dict, analysis: dict) -> None:
    """Writes analysis.json, its three figures and per_class.csv, each file atomically.

    Raises:
        UserError: see `report_folder`.
    """
    folder = report_folder(folder)
    folder.write_json("analysis.json", analysis)
    table = table_by_class(evaluation, analysis)
    folder.write("per_class.csv", table.encode("utf-8", "backslashreplace"))
    for name, content in all_figures(analysis).items():
        folder.write(name, content)


def table_by_class(evaluation: dict, analysis: dict) -> str:
    """Formats the numbers of each class as CSV: AP of boxes and masks, counts, errors, best F1."""
    text = io.StringIO()
    writer = None
    masks = evaluation.get("masks", {}).get("per_class", [{}] * len(evaluation["per_class"]))
    rows = zip(evaluation["per_class"], masks, analysis["per_class"], strict=True)
    for metrics_row, masks_row, row in rows:
        of_masks = {f"masks_{key}": masks_row[key] for key in masks_row if key not in row}
        best = {"best_f1": row["best_f1"]["f1"], **row["best_f1"]}
        best.pop("f1")
        counted = {key: row[key] for key in ("detections", "right")}
        line = {**metrics_row, **of_masks, **counted, **row["errors"], **best}
        if writer is None:
            writer = csv.DictWriter(text, line.keys(), lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return text.getvalue()


def _checked(path, check):
    """The checked content of a json file; errors name the file."""
    content = read_json(path)
    try:
        return check(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
