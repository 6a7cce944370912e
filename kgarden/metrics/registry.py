"""Metric registry: the names that a recipe's `evaluate.metrics` and `--metrics` accept."""

from collections.abc import Iterable, Sequence

import numpy as np

from kgarden.errors import UserError
from kgarden.metrics.coco import coco_metrics_of, percent
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.limits import limited
from kgarden.metrics.lvis import evaluate_lvis
from kgarden.metrics.open_images import evaluate_open_images
from kgarden.metrics.voc import voc_ap

# The headline number of each metric. That of the first metric selects the best checkpoint.
HEADLINES = {
    "coco": "ap",
    "voc07": "voc07_map",
    "voc_area": "voc_area_map",
    "open_images": "open_images_map",
    "lvis": "lvis_ap",
}


def measure(
    names: Sequence[str],
    truth: dict,
    results: list[dict],
    image_ids: Iterable | None = None,
    iou_type: str = "bbox",
) -> dict:
    """Computes metrics by name; see `compute_metrics`.

    Args:
        names:     of HEADLINES; the headline of the first one is what runs are compared by.
        truth:     ground truth in COCO form, a dictionary.
        results:   list in COCO results form; may be empty.
        image_ids: evaluate these images only; None: all.
        iou_type:  "bbox" or "segm".
    """
    return compute_metrics(names, EvaluationTable(truth, results, image_ids), iou_type)


def compute_metrics(names: Sequence[str], table: EvaluationTable, iou_type: str = "bbox") -> dict:
    """Computes metrics by name, in percent; None where undefined.

    Args:
        names:    of HEADLINES; the headline of the first one is what runs are compared by.
        table:    EvaluationTable.
        iou_type: "bbox" or "segm".
    Returns:
        {"headline": a key of metrics, "metrics": {name: number},
         "per_class": [{"id", "name", "objects", ...}, ...]}
        with the twelve COCO metrics under their own names (see `coco_metrics_of` for other limits), and of
        the other metrics `<name>_map` and, by class, `<name>_ap`; of "lvis" `lvis_<number>`, see
        `evaluate_lvis`, and by class `lvis_ap` and "frequency"; with "open_images" also its rules in force,
        {"filter", "hierarchy"}, under that key, and by class `open_images_objects`, which includes objects of
        the classes below.
    """
    unknown = [name for name in names if name not in HEADLINES]
    if unknown or not names:
        raise UserError(
            f"metrics: {', '.join(unknown) or 'none'} not supported; use some of {', '.join(HEADLINES)}"
        )
    metrics, rows = {}, []
    if "coco" in names:
        coco = coco_metrics_of(table, iou_type)
        metrics, rows = coco["metrics"], coco["per_class"]
    others = [name for name in names if name != "coco"]
    if others:
        rows = rows or _class_rows(table.arrays(iou_type))
    for name in others:
        aps = _class_aps(name, table, iou_type)
        metrics |= {key: percent(value) for key, value in aps["metrics"].items()}
        for row, ap in zip(rows, aps["ap"], strict=True):
            row[f"{name}_ap"] = percent(ap)
        if name == "open_images":
            for row, count in zip(rows, aps["num_objects"].tolist(), strict=True):
                row["open_images_objects"] = count
        if name == "lvis":
            for row, category in zip(rows, table.arrays(iou_type).categories, strict=True):
                row["frequency"] = category.get("frequency", "")
    rules = {}
    if "open_images" in names:
        rules = {"open_images": table.open_images.of(table.arrays(iou_type))._asdict()}
    headline = HEADLINES[names[0]]
    headline = limited(headline, table.max_detections) if names[0] == "coco" else headline
    return {"headline": headline, "metrics": metrics, "per_class": rows, **rules}


def is_better(value: float | None, best: float | None) -> bool:
    """Returns whether weights with this headline metric replace those kept as the best so far.

    What was measured is better than what could not be (None). As long as nothing could be measured, the later
    weights are the better ones.
    """
    if value is None or best is None:
        return best is None
    return value > best


def _class_aps(name, table, iou_type):
    arrays = table.arrays(iou_type)
    if name == "lvis":
        found = evaluate_lvis(arrays)
        return {**found, "metrics": {f"lvis_{key}": value for key, value in found["metrics"].items()}}
    if name == "open_images":
        found = evaluate_open_images(arrays, table.open_images)
    else:
        found = voc_ap(arrays, iou=0.5, points="11 points" if name == "voc07" else "area")
    return {**found, "metrics": {f"{name}_map": found["map"]}}


def _class_rows(arrays):
    labels = arrays.objects.label[~arrays.objects.crowd]
    counts = np.bincount(labels, minlength=len(arrays.categories)).tolist()
    return [
        {"id": one["id"], "name": one["name"], "objects": count}
        for one, count in zip(arrays.categories, counts, strict=True)
    ]
