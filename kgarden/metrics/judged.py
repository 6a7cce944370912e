"""Detections and objects image by image, each with its verdict: right, an error type, found or missed."""

import numpy as np

from kgarden.metrics.arrays import Table, pairs
from kgarden.metrics.matching import ranks
from kgarden.metrics.tide import KINDS, classify_errors, match_detections

RIGHT, IGNORED = "right", "ignored"


def judged_images(table: Table, reach: float = 0.5, near: float = 0.1) -> dict[int, dict]:
    """Returns what an error analysis says of each image.

    Args:
        table: Table.
        reach: IoU of a true positive.
        near:  IoU below which a detection is background.
    Returns:
        {image id: {"detections": [[x0, y0, x1, y1, label, score, verdict], ...], best first,
        "objects": [[x0, y0, x1, y1, label, crowd, score], ...]}}, boxes in px; label: row of
        `table.categories`; verdict: "right", one of tide.KINDS or "ignored"; score of an object: that of the
        detection that matches it, or None.
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    close = pairs(table, least=min(near, reach))
    matching = match_detections(table, close, rank, reach)
    kinds = classify_errors(table, close, matching, reach=reach, near_iou=near).kind
    found = np.full(len(objects), np.nan)
    found[matching.matched[matching.hits]] = detections.score[matching.hits]
    images = {int(one): {"detections": [], "objects": []} for one in table.image_ids}
    ids = table.image_ids.tolist()
    for row in order.tolist():
        verdict = RIGHT if matching.hits[row] else KINDS[kinds[row]] if kinds[row] >= 0 else IGNORED
        entry = [*_box(detections, row), float(detections.score[row]), verdict]
        images[ids[detections.image[row]]]["detections"].append(entry)
    for row in range(len(objects)):
        score = None if np.isnan(found[row]) else float(found[row])
        entry = [*_box(objects, row), bool(objects.crowd[row]), score]
        images[ids[objects.image[row]]]["objects"].append(entry)
    return images


def _box(rows, row):
    return [*(round(float(side), 1) for side in rows.boxes[row]), int(rows.label[row])]


def mistakes(image: dict, score: float) -> int:
    """Counts the wrong detections of an image with this score or more, and the objects that none matches.

    Args:
        image: of `judged_images`.
        score: threshold.
    """
    wrong = sum(one[5] >= score and one[6] not in (RIGHT, IGNORED) for one in image["detections"])
    missed = sum(not one[5] and (one[6] is None or one[6] < score) for one in image["objects"])
    return wrong + missed
