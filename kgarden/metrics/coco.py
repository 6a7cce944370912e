"""COCO metrics: the twelve AP and AR of boxes or masks, computed by pycocotools.

COCO has no `difficult` flag; such objects are ordinary objects here.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kgarden.errors import UserError
from kgarden.metrics.arrays import box_of, require, run_lengths
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.limits import limited

AREAS = ("all", "small", "medium", "large")  # in the order of pycocotools
IOUS = np.linspace(0.5, 0.95, 10)  # thresholds of COCO's AP


def coco_metrics(
    truth: dict, results: list[dict], image_ids: Iterable | None = None, iou_type: str = "bbox"
) -> dict:
    """Computes the twelve COCO metrics of results; see `coco_metrics_of`.

    Args:
        truth:     ground truth in COCO form, a dictionary; it is not changed.
        results:   list in COCO results form; may be empty.
        image_ids: evaluate these images only; None: all.
        iou_type:  "bbox" or "segm".
    """
    return coco_metrics_of(EvaluationTable(truth, results, image_ids), iou_type)


def coco_metrics_of(table: EvaluationTable, iou_type: str = "bbox") -> dict:
    """Computes the twelve COCO metrics and AP for each class, in percent; None where undefined.

    Results for images or categories that the ground truth does not list are ignored.

    Args:
        table:    EvaluationTable.
        iou_type: "bbox" or "segm".
    Returns:
        {"metrics": {"ap", ..., "ar_large"}, "per_class": [{"id", "name", "objects", "ap", "ap50"}, ...]}
        Under another limit than COCO's 100 detections, numbers that depend on it have other names:
        `ap_max300`, ..., `ar1`, `ar10`, `ar300`, `ar_small_max300`.
    Raises:
        UserError: iou_type is "segm" and masks are missing.
    """
    evaluator = _accumulated(table, IOUS, iou_type)
    return {"metrics": _summary(evaluator), "per_class": _per_class(evaluator.cocoGt, evaluator)}


def ap_by_iou(table: EvaluationTable, ious: Sequence[float] = IOUS, iou_type: str = "bbox") -> np.ndarray:
    """Computes AP at single IoU thresholds by object size, mean over classes.

    The mean over IOUS is COCO's AP. Song et al. 2020, arXiv:2003.07540, Fig. 6 and Table 9.

    Args:
        table:    EvaluationTable.
        ious:     T thresholds, ascending.
        iou_type: "bbox" or "segm".
    Returns:
        (T, 4) float64 in percent, columns as AREAS; NaN in those of sizes without objects.
    Raises:
        UserError: iou_type is "segm" and masks are missing.
    """
    precision = _accumulated(table, ious, iou_type).eval["precision"][..., -1]  # (T, 101 recalls, classes, 4)
    means = [[_mean(of_size) for of_size in np.moveaxis(at_iou, -1, 0)] for at_iou in precision]
    return np.array([[np.nan if mean < 0 else 100.0 * mean for mean in row] for row in means])


def average_recall(table: EvaluationTable, limits: Sequence[int], iou_type: str = "bbox") -> np.ndarray:
    """Computes COCO's average recall over IoU 0.5 to 0.95 of the best detections of an image.

    Args:
        table:    EvaluationTable.
        limits:   numbers of detections of a class in an image, ascending.
        iou_type: "bbox" or "segm".
    Returns:
        (len(limits), 4) float64 in percent, columns as AREAS; NaN in those of sizes without objects.
    """
    recall = _accumulated(table, IOUS, iou_type, limits).eval["recall"]  # (T, classes, 4, limits)
    means = [[_mean(recall[:, :, area, n]) for area in range(len(AREAS))] for n in range(len(limits))]
    return np.array([[np.nan if mean < 0 else 100.0 * mean for mean in row] for row in means])


def _accumulated(table, ious, iou_type, limits=None):
    """COCOeval with the precision and recall of all classes, sizes and limits."""
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"iou type {iou_type!r} is not supported; use bbox or segm")
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _index(table.complete(iou_type))
        evaluator = COCOeval(ground_truth, _detections(ground_truth, table.results, iou_type), iou_type)
        if table.image_ids is not None:
            evaluator.params.imgIds = sorted(table.image_ids & ground_truth.imgs.keys())
        evaluator.params.iouThrs = np.asarray(ious, "float64")
        own = [n for n in (1, 10) if n < table.max_detections] + [table.max_detections]
        evaluator.params.maxDets = list(limits or own)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _summary(evaluator):
    """COCOeval.summarize, whose first AP is of 100 detections or none, under the limits of `params`."""
    *fewer, most = evaluator.params.maxDets
    precision = evaluator.eval["precision"][..., -1]  # (10 IoU, 101 recalls, classes, areas)
    recall = evaluator.eval["recall"]  # (10 IoU, classes, areas, limits)
    metrics = {limited("ap", most): precision[:, :, :, 0]}
    metrics |= {limited(f"ap{iou}", most): precision[at, :, :, 0] for iou, at in ((50, 0), (75, 5))}
    areas = list(enumerate(AREAS))[1:]
    metrics |= {limited(f"ap_{area}", most): precision[..., n] for n, area in areas}
    metrics |= {f"ar{limit}": recall[:, :, 0, n] for n, limit in enumerate((*fewer, most))}
    metrics |= {limited(f"ar_{area}", most): recall[:, :, n, -1] for n, area in areas}
    return {name: percent(_mean(values)) for name, values in metrics.items()}


def _encoded(result, images):
    image = images[result["image_id"]]
    return run_lengths(result["segmentation"], (image["height"], image["width"]))


def _index(dataset):
    index = COCO()
    index.dataset = dataset
    index.createIndex()
    return index


def _detections(ground_truth, results, iou_type):
    """As COCO.loadRes, which fails on an empty list and substitutes boxes for missing masks."""
    if iou_type == "segm":
        require(results, "segmentation", "results")
    kept = [
        one
        for one in results
        if one["image_id"] in ground_truth.imgs and one["category_id"] in ground_truth.cats
    ]
    if iou_type == "segm":  # without boxes, because loadRes would take a box's area for the mask's
        kept = [{**one, "segmentation": _encoded(one, ground_truth.imgs)} for one in kept]
        kept = [{key: value for key, value in one.items() if key != "bbox"} for one in kept]
    else:
        kept = [{**one, "bbox": list(box_of(one))} for one in kept]
    if kept:
        return ground_truth.loadRes(kept)
    return _index({key: ground_truth.dataset[key] for key in ("images", "categories")} | {"annotations": []})


def _per_class(ground_truth, evaluator):
    # (10 IoU, 101 recalls, classes), all areas, the most detections
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    images = set(evaluator.params.imgIds)
    labels = [
        one["category_id"]
        for one in ground_truth.anns.values()
        if not one["iscrowd"] and one["image_id"] in images
    ]
    most = evaluator.params.maxDets[-1]
    ids, counts = np.unique(np.array(labels, np.int64), return_counts=True)
    objects = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return [
        {
            "id": category,
            "name": str(ground_truth.cats[category].get("name", category)),
            "objects": objects.get(category, 0),
            limited("ap", most): percent(_mean(precision[:, :, index])),
            limited("ap50", most): percent(_mean(precision[0, :, index])),
        }
        for index, category in enumerate(int(one) for one in evaluator.params.catIds)
    ]


def _mean(precision):
    known = precision[precision > -1]
    return known.mean() if known.size else -1.0


def percent(value: float) -> float | None:
    """Converts 0..1 to percent; None for undefined values (pycocotools' -1, NaN)."""
    return None if not value >= 0 else round(100 * float(value), 6)
