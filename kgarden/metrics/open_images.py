"""Open Images' average precision, which knows boxes around groups.

Detections are first compared with single objects as PASCAL VOC does. Those that are not right may lie in a
group of their class: of all detections in one group the surest stands for them and is right, the others count
as nothing. A group is one object to be found. Kuznetsova et al., "The Open Images Dataset V4", IJCV 2020, and
the rules of the Open Images Challenge, without the hierarchy of classes.
"""

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import overlap, pairs
from kgarden.metrics.matching import best_of, first_claims, ranks


def open_images_ap(table, iou=0.5, inside=0.5, kept=None):
    """AP of each class, area under the curve.

    Args:
        table:  Table; `objects.group` marks groups.
        iou:    smallest overlap of a right detection with a single object.
        inside: smallest share of a detection that must lie in a group to be of it.
        kept:   (N,) bool, detections that are judged, or None: all. See `of_present_classes`.
    Returns:
        {"ap": (C,) in [0, 1], NaN without objects; "map": their mean; "num_objects": (C,)}
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    same = pairs(table)
    same = same.where(objects.label[same.there] == detections.label[same.found])
    kept = np.ones(len(detections), bool) if kept is None else kept

    best, there = best_of(same.where(~objects.group[same.there]), len(detections))
    hits = first_claims(there, rank, kept & (best >= iou) & (there >= 0))

    grouped = same.where(objects.group[same.there])
    share = overlap(
        detections.boxes[grouped.found], objects.boxes[grouped.there], np.ones(len(grouped), bool)
    )
    share, group = best_of(type(grouped)(grouped.found, grouped.there, share), len(detections))
    of_group = kept & ~hits & (share >= inside) & (group >= 0)
    spokesmen = first_claims(group, rank, of_group)

    counts = kept & (~of_group | spokesmen)
    num_objects = np.bincount(objects.label, minlength=len(table.categories))
    aps = curves.class_aps(hits | spokesmen, counts, detections.label, order, num_objects, curves.ap_area)
    return {"ap": aps, "map": curves.mean_of(aps), "num_objects": num_objects}


def of_present_classes(table, always=()):
    """Which detections are of a class that their picture holds, or of one of `always`?   (N,) bool.

    Open Images' labels of a picture are not complete: elsewhere nothing is known about a class.
    """
    objects, detections = table.objects, table.detections
    num = len(table.categories)
    present = objects.image * num + objects.label
    return np.isin(detections.image * num + detections.label, present) | np.isin(
        detections.label, np.asarray(always, np.int64)
    )
