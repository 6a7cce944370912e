"""Scores given detections: two json files in, numbers and a folder of figures out. No network is needed.

evaluation, analysis = score_file("detections.json", "annotations.json")
write_folder("scores", evaluation, analysis)
"""

import csv
import io
import pathlib

from kgarden.errors import UserError
from kgarden.metrics.analysis import analyse
from kgarden.metrics.arrays import tabulate
from kgarden.metrics.coco import complete
from kgarden.metrics.coco_json import read_results, read_truth
from kgarden.metrics.explain import explain, needs_explaining
from kgarden.metrics.figures import all_figures
from kgarden.metrics.registry import measure
from kgarden.utils.files import read_json, replace_file, write_json


def score_file(detections, annotations, metrics=("coco",), iou_type="bbox"):
    """Measure and analyse detections.

    Args:
        detections:  path; a list in COCO results form, or a data set in COCO form with scores.
        annotations: path of the ground truth in COCO form.
        metrics:     names, see `kgarden.metrics.registry.HEADLINES`.
        iou_type:    "bbox" or "segm".
    Returns:
        (evaluation, analysis): see `score`.
    Raises:
        UserError: a file cannot be used; says which and why.
    """
    truth, notes = _checked(annotations, read_truth)
    results, more = _checked(detections, lambda content: read_results(content, truth))
    evaluation, analysis = score(truth, results, metrics=metrics, iou_type=iou_type)
    named = {
        "detections_file": pathlib.Path(detections).name,
        "annotations_file": pathlib.Path(annotations).name,
    }
    return {**named, **evaluation, **({"notes": notes + more} if notes + more else {})}, analysis


def score(truth, results, image_ids=None, metrics=("coco",), iou_type="bbox"):
    """Measure and analyse detections that are at hand.

    Returns:
        (evaluation, analysis): what `evaluation.json` and `analysis.json` hold.
    """
    evaluation = judged(truth, results, image_ids, metrics, iou_type)
    analysis = analysed(truth, results, image_ids, iou_type)
    return {**evaluation, "errors": analysis["errors"]}, analysis


def judged(truth, results, image_ids=None, metrics=("coco",), iou_type="bbox", explained=True):
    """All measures that are asked for; with `explained` also the cause if the first is nearly nothing."""
    evaluation = {"unit": "percent", "iou_type": iou_type}
    evaluation |= measure(metrics, truth, results, image_ids, iou_type)
    if explained and needs_explaining(evaluation):
        evaluation["explanation"] = explain(truth, results, image_ids, evaluation["headline"])
    pictures = {one["id"] for one in truth["images"]} if image_ids is None else set(image_ids)
    return {**evaluation, "images": len(pictures), "detections": len(results)}


def judged_masks(truth, results, image_ids=None, metrics=("coco",)):
    """The same measures of the masks that a model gave beside its boxes.

    Returns:
        {"metrics", "per_class"} as `judged` has them, or {"not_judged": why} where the ground truth has no
        masks to compare with.
    """
    try:
        found = measure(metrics, truth, results, image_ids, "segm")
    except UserError as error:
        return {"not_judged": f"in the ground truth, {error}"}
    return {key: found[key] for key in ("metrics", "per_class")}


def numbers_of(evaluation):
    """All numbers under one name each, those of masks as `masks_ap`, ..."""
    masks = evaluation.get("masks", {}).get("metrics", {})
    return evaluation["metrics"] | {f"masks_{name}": value for name, value in masks.items()}


def analysed(truth, results, image_ids=None, iou_type="bbox"):
    """Errors, confusions, curves; see `kgarden.metrics.analysis`."""
    return analyse(tabulate(complete(truth, iou_type), results, image_ids, iou_type))


def write_folder(folder, evaluation, analysis):
    """analysis.json, its three figures and a table by class, each written aside and renamed."""
    folder = pathlib.Path(folder)
    write_json(folder / "analysis.json", analysis)
    replace_file(folder / "per_class.csv", table_by_class(evaluation, analysis).encode())
    for name, content in all_figures(analysis).items():
        replace_file(folder / name, content)


def table_by_class(evaluation, analysis):
    """A line for each class, for spreadsheets: its AP, also of masks, its best F1 with score, its errors."""
    text = io.StringIO()
    writer = None
    masks = evaluation.get("masks", {}).get("per_class", [{}] * len(evaluation["per_class"]))
    rows = zip(evaluation["per_class"], masks, analysis["per_class"], strict=True)
    for judged_row, masks_row, row in rows:
        of_masks = {f"masks_{key}": masks_row[key] for key in masks_row if key not in row}
        best = {"best_f1": row["best_f1"]["f1"], **row["best_f1"]}
        best.pop("f1")
        counted = {key: row[key] for key in ("detections", "right")}
        line = {**judged_row, **of_masks, **counted, **row["errors"], **best}
        if writer is None:
            writer = csv.DictWriter(text, line.keys(), lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return text.getvalue()


def _checked(path, check):
    """The content of a file after a check, whose complaint names the file."""
    content = read_json(path)
    try:
        return check(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
