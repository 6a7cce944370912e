"""LVIS metrics: AP where each image is annotated for some classes only, by object size and class frequency.

An image is judged on the classes that are annotated in it and on those that people verified to be absent;
detections of other classes are left out. Unmatched detections of classes of which not every object has a box
are ignored. The best 300 detections of an image count, whatever their classes. Gupta, Dollár, Girshick 2019,
arXiv:1908.03195, section 2, and the `lvis` package 0.5.3, whose numbers these are.
"""

import dataclasses

import numpy as np
from pycocotools import mask as mask_tools

from kgarden.errors import UserError
from kgarden.metrics import curves
from kgarden.metrics.arrays import Table, pairs
from kgarden.metrics.matching import match, ranks

MAX_DETECTIONS = 300  # of an image
IOUS = np.linspace(0.5, 0.95, 10)
LARGEST = 1e10  # px^2
AREAS = {  # px^2, both ends included
    "": (0, LARGEST),
    "_small": (0, 32**2),
    "_medium": (32**2, 96**2),
    "_large": (96**2, LARGEST),
}
FREQUENCIES = {"_rare": "r", "_common": "c", "_frequent": "f"}


def evaluate_lvis(table: Table) -> dict:
    """Computes the metrics of LVIS.

    Args:
        table: Table of ground truth with "neg_category_ids".
    Returns:
        {"metrics": {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_rare", "ap_common",
        "ap_frequent", "ar300", "ar300_small", "ar300_medium", "ar300_large"}, in [0, 1], NaN where undefined:
        no objects, or categories without a "frequency"; "ap": (C,) of the classes}
    Raises:
        UserError: the ground truth does not say which classes are absent from images.
    """
    if table.verified is None:
        raise UserError(
            "lvis needs the classes that are verified to be absent from each image, neg_category_ids, which "
            "the ground truth does not have; build it with `kgarden data build lvis`, or use the metric coco"
        )
    table = federated(table)
    aps, recalls = zip(
        *(_of_size(table, smallest, largest) for smallest, largest in AREAS.values()), strict=True
    )
    of_class = _means(aps[0])
    metrics = {"ap": of_class, "ap50": aps[0][0], "ap75": aps[0][5]}
    metrics |= {f"ap{size}": _means(of_size) for size, of_size in list(zip(AREAS, aps, strict=True))[1:]}
    frequency = np.array([one.get("frequency", "") for one in table.categories])
    metrics |= {f"ap{name}": of_class[frequency == one] for name, one in FREQUENCIES.items()}
    names = [f"ar{MAX_DETECTIONS}{size}" for size in AREAS]
    metrics |= {name: _means(of_size) for name, of_size in zip(names, recalls, strict=True)}
    return {"metrics": {name: curves.mean_of(values) for name, values in metrics.items()}, "ap": of_class}


def federated(table: Table) -> Table:
    """Returns the table with the detections that are judged: see the head of this file."""
    detections, num = table.detections, len(table.categories)
    order = detections.order()
    order = order[np.argsort(detections.image[order], kind="stable")]  # by image, best first
    image = detections.image[order]
    position = np.arange(len(order)) - np.searchsorted(image, image, "left")
    kept = np.zeros(len(detections), bool)
    kept[order[position < MAX_DETECTIONS]] = True
    absent = table.verified[table.verified[:, 2] == 0]
    known = np.concatenate(
        [table.objects.image * num + table.objects.label, absent[:, 0] * num + absent[:, 1]]
    )
    kept &= np.isin(detections.image * num + detections.label, known)
    return dataclasses.replace(table, detections=detections.where(kept))


def _of_size(table, smallest, largest):
    """AP and recall of each class at each threshold, of objects of some areas.   Two (10, C)."""
    objects, detections, num = table.objects, table.detections, len(table.categories)
    ignored = objects.crowd | (objects.area < smallest) | (objects.area > largest)
    areas = _areas(detections)
    excused = (areas < smallest) | (areas > largest) | _not_exhaustive(table)
    num_objects = np.bincount(objects.label[~ignored], minlength=num)
    order = detections.order()
    rank, same = ranks(order), _pairs_of_class(table)
    aps, recalls = [], []
    for iou in IOUS:
        close = same.where(same.iou >= min(iou, 1 - 1e-10))
        matched = match(close, rank, len(detections), len(objects), last=ignored)
        found = matched >= 0
        counts = np.where(found, ~ignored[matched] if len(objects) else False, ~excused)
        scored = curves.Scored(found & counts, counts, detections.label, order)
        aps.append(curves.class_aps(scored, num_objects, curves.ap_coco))
        hits = np.bincount(detections.label[found & counts], minlength=num)
        recalls.append(np.where(num_objects > 0, hits / np.maximum(num_objects, 1), np.nan))
    return np.array(aps), np.array(recalls)


def _pairs_of_class(table):
    """Pairs of detections and objects of one class in one image; the class takes part in the look-up."""
    num = len(table.categories)
    objects, detections = (
        dataclasses.replace(rows, image=rows.image * num + rows.label)
        for rows in (table.objects, table.detections)
    )
    return pairs(dataclasses.replace(table, objects=objects, detections=detections))


def _not_exhaustive(table):
    """Detections of a class of which not every object of their image has a box.   (N,) bool."""
    if table.not_exhaustive is None:
        return np.zeros(len(table.detections), bool)
    num, listed = len(table.categories), table.not_exhaustive
    of_class = table.detections.image * num + table.detections.label
    return np.isin(of_class, listed[:, 0] * num + listed[:, 1])


def _areas(detections):
    """Areas of the boxes, or of the masks where there are any.   (N,) px^2."""
    if detections.masks is not None:
        return np.array([mask_tools.area(mask) for mask in detections.masks], np.float64)
    return (detections.boxes[:, 2:] - detections.boxes[:, :2]).prod(axis=1)


def _means(of_thresholds):
    """Means over the thresholds.   (10, C) -> (C,)."""
    return of_thresholds.mean(axis=0)
