"""Everything that can be learnt from detections and ground truth, as one dictionary (`analysis.json`)."""

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import pairs
from kgarden.metrics.matching import ranks
from kgarden.metrics.tide import KINDS, confusion, judge, prices, split

CURVE_IOUS = (0.5, 0.75)
BINS = 20  # of the score histograms, over 0..1


def analyse(table, reach=0.5, near=0.1, score=None):
    """Errors, confusions, curves and scores.

    Args:
        table: Table.
        reach: IoU of a right detection.
        near:  IoU below which a detection has nothing to do with an object.
        score: detections from this score on enter the confusion matrix; None: the score of the best F1 over
               all classes.
    Returns:
        dictionary of plain numbers, percent where something is a share; see docs/evaluation.md.
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    close = pairs(table, least=min(near, reach, *CURVE_IOUS))
    judged = judge(table, close, rank, reach)
    found = split(table, close, judged, reach, near)
    ap, gains = prices(table, judged, found, order)
    num_objects = np.bincount(objects.label[~objects.crowd], minlength=len(table.categories))
    best = best_f1(judged, order, num_objects.sum(), detections.score)
    threshold = best["score"] if score is None else score
    matrix = confusion(table, close, judged, threshold or 0.0, reach)
    kinds = np.append(np.bincount(found.kind[found.kind >= 0], minlength=5), found.missed.sum())
    return {
        "images": len(table.image_ids),
        "objects": int(num_objects.sum()),
        "crowds": int(objects.crowd.sum()),
        "detections": len(detections),
        "right": int(judged.hits.sum()),
        "not_counted": int((~judged.counts).sum()),
        "iou": {"right": reach, "background_below": near},
        "ap": _percent(ap),
        "errors": {
            kind: {"count": int(count), "dap": _percent(gains[kind])}
            for kind, count in zip(KINDS, kinds, strict=True)
        },
        "best_f1": best,
        "confusion": {"score": threshold, "iou": reach, "cells": _cells(matrix, table.categories)},
        "per_class": _per_class(table, judged, found, order, num_objects),
        "curves": {
            "recall": np.round(100 * curves.RECALLS, 1).tolist(),
            **{f"iou{round(100 * iou)}": _curves(table, close, rank, order, iou) for iou in CURVE_IOUS},
        },
        "scores": _histograms(judged, detections.score),
    }


def best_f1(judged, order, num_objects, scores):
    """The score above which detections have the best F1, and what they have there.

    Args:
        judged:      Judged.
        order:       rows of the detections in question, from the surest on.
        num_objects: to be found.
        scores:      (N,) of all detections.
    Returns:
        {"f1", "precision", "recall": percent, "score"}; all None where nothing is right.
    """
    rows = order[judged.counts[order]]
    if not num_objects or not judged.hits[rows].any():
        return {"f1": None, "precision": None, "recall": None, "score": None}
    precision, recall = curves.precision_recall(judged.hits[rows], num_objects)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    # detections of equal score come in together
    last = np.append(np.diff(scores[rows]) != 0, True)
    at = int(np.argmax(np.where(last, f1, -1)))
    values = {"f1": f1[at], "precision": precision[at], "recall": recall[at]}
    return {name: _percent(value) for name, value in values.items()} | {"score": float(scores[rows[at]])}


def _per_class(table, judged, found, order, num_objects):
    labels = table.detections.label
    num = len(table.categories)
    counts = {
        kind: np.bincount(labels[found.kind == number], minlength=num)
        for number, kind in enumerate(KINDS[:-1])
    }
    counts["missed"] = np.bincount(table.objects.label[found.missed], minlength=num)
    rows = []
    for one, mine in curves.by_class(labels, order, num):
        category = table.categories[one]
        rows.append(
            {
                **category,
                "objects": int(num_objects[one]),
                "detections": len(mine),
                "right": int(judged.hits[mine].sum()),
                "errors": {kind: int(counts[kind][one]) for kind in KINDS},
                "best_f1": best_f1(judged, mine, num_objects[one], table.detections.score),
            }
        )
    return rows


def _curves(table, close, rank, order, iou):
    """{"per_class": {id: 101 precisions}, "mean": 101 precisions}, percent; classes with objects only."""
    judged = judge(table, close, rank, iou)
    num_objects = np.bincount(table.objects.label[~table.objects.crowd], minlength=len(table.categories))
    lines = {}
    counted = order[judged.counts[order]]
    for one, rows in curves.by_class(table.detections.label, counted, len(num_objects)):
        if num_objects[one]:
            lines[one] = curves.sampled(*curves.precision_recall(judged.hits[rows], num_objects[one]))
    mean = np.mean(list(lines.values()), axis=0) if lines else np.zeros(0)
    return {
        "mean": _rounded(mean),
        "per_class": {str(table.categories[one]["id"]): _rounded(line) for one, line in lines.items()},
    }


def _rounded(line):
    return np.round(100 * np.asarray(line), 2).tolist()


def _cells(matrix, categories):
    """[[id of the object's class, id of the class said, count], ...]; None is the background."""
    ids = [*(category["id"] for category in categories), None]
    return [[ids[row], ids[column], int(matrix[row, column])] for row, column in np.argwhere(matrix)]


def _histograms(judged, scores):
    edges = np.linspace(0, 1, BINS + 1)
    clipped = np.clip(scores, 0, 1)
    return {
        "edges": edges.round(6).tolist(),
        "right": np.histogram(clipped[judged.hits], edges)[0].tolist(),
        "wrong": np.histogram(clipped[judged.counts & ~judged.hits], edges)[0].tolist(),
    }


def _percent(value):
    return None if np.isnan(value) else round(100 * float(value), 6)
