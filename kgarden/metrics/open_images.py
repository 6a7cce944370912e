"""Open Images average precision, with group boxes (IsGroupOf).

Detections are first matched with single objects as in PASCAL VOC. The unmatched ones may lie in a group of
their class: of all detections in one group, the one of the highest score is a true positive and the others
are ignored. A group counts as one object. Kuznetsova et al., "The Open Images Dataset V4", IJCV 2020, and the
rules of the Open Images Challenge, without the class hierarchy.
"""

from collections.abc import Sequence

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import Pairs, Table, overlap, pairs
from kgarden.metrics.matching import best_of, first_claims, ranks


def open_images_ap(
    table: Table, iou: float = 0.5, inside: float = 0.5, kept: np.ndarray | None = None
) -> dict:
    """Computes the AP of each class, the area under the curve.

    Args:
        table:  Table; `objects.group` marks groups.
        iou:    smallest IoU of a true positive with a single object.
        inside: smallest fraction of a detection that must lie in a group to belong to it.
        kept:   (N,) bool, the evaluated detections; None: all. See `of_present_classes`.
    Returns:
        {"ap": (C,) in [0, 1], NaN without objects; "map": their mean; "num_objects": (C,)}
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    same = pairs(table)
    same = same.where(objects.label[same.object] == detections.label[same.detection])
    kept = np.ones(len(detections), bool) if kept is None else kept

    best, target = best_of(same.where(~objects.group[same.object]), len(detections))
    hits = first_claims(target, rank, kept & (best >= iou) & (target >= 0))

    grouped = same.where(objects.group[same.object])
    fraction = overlap(
        detections.boxes[grouped.detection], objects.boxes[grouped.object], np.ones(len(grouped), bool)
    )
    fraction, group = best_of(Pairs(grouped.detection, grouped.object, fraction), len(detections))
    in_group = kept & ~hits & (fraction >= inside) & (group >= 0)
    best_of_group = first_claims(group, rank, in_group)

    counts = kept & (~in_group | best_of_group)
    num_objects = np.bincount(objects.label, minlength=len(table.categories))
    scored = curves.Scored(hits | best_of_group, counts, detections.label, order)
    aps = curves.class_aps(scored, num_objects, curves.ap_area)
    return {"ap": aps, "map": curves.mean_of(aps), "num_objects": num_objects}


def of_present_classes(table: Table, always: Sequence[int] = ()) -> np.ndarray:
    """Returns which detections are of a class annotated in their image, or of one of `always`.   (N,) bool.

    Open Images' labels are incomplete: nothing is known about a class in images where it is not annotated.
    """
    objects, detections = table.objects, table.detections
    num = len(table.categories)
    present = objects.image * num + objects.label
    return np.isin(detections.image * num + detections.label, present) | np.isin(
        detections.label, np.asarray(always, np.int64)
    )
