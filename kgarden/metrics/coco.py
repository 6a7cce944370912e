"""COCO's twelve numbers, for boxes or masks: pycocotools judges.

What COCO has no word for: objects marked `difficult` are ordinary ones here.
"""

import contextlib
import io

import numpy as np
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kgarden.errors import UserError
from kgarden.metrics.arrays import box_of, need, run_lengths

# The order in which pycocotools gives its twelve numbers.
METRICS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


def coco_metrics(truth, results, image_ids=None, iou_type="bbox"):
    """The twelve numbers of COCO and AP for each class, in percent; None where there is nothing to measure.

    Results for pictures or categories that the ground truth does not know are not judged.

    Args:
        truth:     ground truth in COCO form, a dictionary; it is not changed.
        results:   list in COCO results form; may be empty.
        image_ids: evaluate these pictures only.
        iou_type:  "bbox" or "segm".
    Returns:
        {"metrics": {"ap", ..., "ar_large"}, "per_class": [{"id", "name", "objects", "ap", "ap50"}, ...]}
    Raises:
        UserError: masks are asked for and missing.
    """
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"iou type {iou_type!r}: there are bbox and segm")
    with contextlib.redirect_stdout(io.StringIO()):
        known = _index(complete(truth, iou_type))
        judge = COCOeval(known, _detections(known, results, iou_type), iou_type)
        if image_ids is not None:
            judge.params.imgIds = sorted(set(image_ids) & known.imgs.keys())
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {
        "metrics": {name: percent(value) for name, value in zip(METRICS, judge.stats, strict=True)},
        "per_class": _per_class(known, judge),
    }


def complete(truth, iou_type="bbox"):
    """A copy of ground truth in which nothing is missing that the measures read.

    - `id`: new numbers from 1 where ids are missing, used twice or 0, which pycocotools takes for "no match";
    - `bbox`: of the mask;   `area`: of the mask if masks are judged, else of the box;   `iscrowd`: 0.
    """
    annotations = [dict(one) for one in truth["annotations"]]
    if iou_type == "segm":
        need(annotations, "segmentation", "annotations")
        need(truth["images"], "height", "images")
        need(truth["images"], "width", "images")
    ids = [one.get("id") for one in annotations]
    if not all(isinstance(one, int) and one > 0 for one in ids) or len(set(ids)) < len(ids):
        for number, one in enumerate(annotations, start=1):
            one["id"] = number
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in truth["images"]}
    for one in annotations:
        one["iscrowd"] = one.get("iscrowd") or 0
        one["bbox"] = box_of(one)
        if one.get("area") is None:
            masked = iou_type == "segm" and one["image_id"] in sizes
            one["area"] = _mask_area(one, sizes) if masked else one["bbox"][2] * one["bbox"][3]
    return {**truth, "annotations": annotations}


def _mask_area(annotation, sizes):
    return float(mask_tools.area(run_lengths(annotation["segmentation"], sizes[annotation["image_id"]])))


def _encoded(result, images):
    image = images[result["image_id"]]
    return run_lengths(result["segmentation"], (image["height"], image["width"]))


def _index(dataset):
    index = COCO()
    index.dataset = dataset
    index.createIndex()
    return index


def _detections(known, results, iou_type):
    """As COCO.loadRes, which falls over an empty list and makes masks of boxes where masks are missing."""
    if iou_type == "segm":
        need(results, "segmentation", "results")
    kept = [one for one in results if one["image_id"] in known.imgs and one["category_id"] in known.cats]
    if iou_type == "segm":  # masks alone: beside a box, loadRes would take the box's area for the mask's
        kept = [{**one, "segmentation": _encoded(one, known.imgs)} for one in kept]
        kept = [{key: value for key, value in one.items() if key != "bbox"} for one in kept]
    else:
        kept = [{**one, "bbox": list(box_of(one))} for one in kept]
    if kept:
        return known.loadRes(kept)
    return _index({key: known.dataset[key] for key in ("images", "categories")} | {"annotations": []})


def _per_class(known, judge):
    # (10 IoU, 101 recalls, classes), all areas, 100 boxes
    precision = judge.eval["precision"][:, :, :, 0, -1]
    pictures = set(judge.params.imgIds)
    asked = [
        one["category_id"]
        for one in known.anns.values()
        if not one["iscrowd"] and one["image_id"] in pictures
    ]
    ids, counts = np.unique(np.array(asked, np.int64), return_counts=True)
    objects = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return [
        {
            "id": category,
            "name": str(known.cats[category].get("name", category)),
            "objects": objects.get(category, 0),
            "ap": percent(_mean(precision[:, :, index])),
            "ap50": percent(_mean(precision[0, :, index])),
        }
        for index, category in enumerate(int(one) for one in judge.params.catIds)
    ]


def _mean(precision):
    known = precision[precision > -1]
    return known.mean() if known.size else -1.0


def percent(value):
    """0..1 -> 0..100; None for what was not measured (pycocotools' -1, NaN)."""
    return None if not value >= 0 else round(100 * float(value), 6)
