"""Metric tables for tests, written as rows."""

import numpy as np

from kgarden.metrics.arrays import Detections, Objects, Table

METRICS = (  # COCO's twelve, in the order of pycocotools
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


def table(objects, detections, num_classes, num_images=None):
    """Builds a Table.

    Args:
        objects:    rows of image, x0, y0, x1, y1, class, and any of difficult, group, crowd.
        detections: rows of image, x0, y0, x1, y1, score, class.
    """
    objects = [(*row, *[0] * (9 - len(row))) for row in objects]
    objects = np.array(objects, float).reshape(-1, 9)
    detections = np.asarray(detections, float).reshape(-1, 7)
    categories = [{"id": n + 1, "name": f"class {n}"} for n in range(num_classes)]
    images = int(num_images or max([0, *objects[:, 0], *detections[:, 0]]) + 1)
    return Table(
        Objects(
            objects[:, 0].astype(int),
            objects[:, 5].astype(int),
            objects[:, 1:5],
            crowd=objects[:, 8] > 0,
            difficult=objects[:, 6] > 0,
            group=objects[:, 7] > 0,
        ),
        Detections(
            detections[:, 0].astype(int), detections[:, 6].astype(int), detections[:, 1:5], detections[:, 5]
        ),
        categories,
        np.arange(images),
    )
