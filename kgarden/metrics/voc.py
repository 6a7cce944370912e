"""PASCAL VOC's average precision.

Every detection is compared with the one object of its class and picture that it overlaps most. If that
overlap reaches the threshold it is right, unless a surer detection was there first, and nothing at all if
the object is difficult. Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010,
part 4.2.
"""

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import pairs
from kgarden.metrics.matching import best_of, first_claims, ranks

RULES = {"11 points": curves.ap_eleven, "area": curves.ap_area}


def voc_ap(table, iou=0.5, points="area", plus_one=False):
    """AP of each class.

    Args:
        table:    Table; objects that are difficult or a crowd are neither to be found nor wrong to find.
        iou:      smallest overlap of a right detection.
        points:   "11 points" (2007) or "area" (from 2010).
        plus_one: a box from 3 to 5 is 3 px wide, as the first programs have it.
    Returns:
        {"ap": (C,) in [0, 1], NaN without objects; "map": their mean; "num_objects": (C,)}
    """
    objects, detections = table.objects, table.detections
    excused = objects.difficult | objects.crowd
    order = detections.order()
    same = pairs(table, plus_one=plus_one)
    same = same.where(objects.label[same.there] == detections.label[same.found])
    best, there = best_of(same, len(detections), prefer=excused)
    reached = (best >= iou) & (there >= 0)
    counts = np.ones(len(detections), bool)
    counts[reached] = ~excused[there[reached]]
    hits = first_claims(there, ranks(order), reached & counts)
    num_objects = np.bincount(objects.label[~excused], minlength=len(table.categories))
    aps = curves.class_aps(hits, counts, detections.label, order, num_objects, RULES[points])
    return {"ap": aps, "map": curves.mean_of(aps), "num_objects": num_objects}
