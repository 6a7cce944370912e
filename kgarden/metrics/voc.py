"""PASCAL VOC average precision.

Every detection is compared with the object of its class and image that it overlaps most. If that IoU reaches
the threshold, the detection is a true positive, or a false positive if a higher-scoring detection has matched
the object already; it is ignored if the object is difficult. Everingham et al., "The PASCAL Visual Object
Classes (VOC) Challenge", IJCV 2010, section 4.2.
"""

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import Table, pairs
from kgarden.metrics.matching import best_of, first_claims, ranks

RULES = {"11 points": curves.ap_eleven, "area": curves.ap_area}


def voc_ap(table: Table, iou: float = 0.5, points: str = "area", plus_one: bool = False) -> dict:
    """Computes the AP of each class.

    Args:
        table:    Table; difficult objects and crowds are ignored, and so are detections of them.
        iou:      smallest IoU of a true positive.
        points:   "11 points" (2007) or "area" (from 2010).
        plus_one: a box from 3 to 5 is 3 px wide, as in the first development kits.
    Returns:
        {"ap": (C,) in [0, 1], NaN without objects; "map": their mean; "num_objects": (C,)}
    """
    objects, detections = table.objects, table.detections
    ignored = objects.difficult | objects.crowd
    order = detections.order()
    same = pairs(table, plus_one=plus_one)
    same = same.where(objects.label[same.object] == detections.label[same.detection])
    best, target = best_of(same, len(detections), prefer=ignored)
    reached = (best >= iou) & (target >= 0)
    counts = np.ones(len(detections), bool)
    counts[reached] = ~ignored[target[reached]]
    hits = first_claims(target, ranks(order), reached & counts)
    num_objects = np.bincount(objects.label[~ignored], minlength=len(table.categories))
    scored = curves.Scored(hits, counts, detections.label, order)
    aps = curves.class_aps(scored, num_objects, RULES[points])
    return {"ap": aps, "map": curves.mean_of(aps), "num_objects": num_objects}
