"""Error analysis: TIDE errors, confusion matrix, precision-recall curves and score histograms in one dict."""

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import Table, pairs
from kgarden.metrics.limits import exceeds_limits, sentences
from kgarden.metrics.matching import ranks
from kgarden.metrics.tide import BEYOND, KINDS, ap_gains, classify_errors, confusion_counts, match_detections

CURVE_IOUS = (0.5, 0.75)
BINS = 20  # of the score histograms, over 0..1


def analyse(table: Table, reach: float = 0.5, near: float = 0.1, score: float | None = None) -> dict:
    """Computes the contents of `analysis.json`: errors, confusion matrix, curves and score histograms.

    Args:
        table: Table.
        reach: IoU of a true positive.
        near:  IoU below which a detection is background.
        score: smallest score in the confusion matrix; None: the score of the best F1 over all classes.
    Returns:
        dictionary of plain numbers, fractions in percent; see docs/evaluation.md.
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    close = pairs(table, least=min(near, reach, *CURVE_IOUS))
    matching = match_detections(table, close, rank, reach)
    errors = classify_errors(table, close, matching, reach=reach, near_iou=near)
    ap, gains = ap_gains(table, matching, errors, order)
    num_objects = _num_objects(table)
    best = best_f1(matching, order, num_objects.sum(), detections.score)
    threshold = best["score"] if score is None else score
    beyond = errors.beyond.objects
    matrix = confusion_counts(table, close, matching, score=threshold or 0.0, reach=reach, beyond=beyond)
    of_objects = (errors.missed.sum(), beyond.sum())
    counts = [*np.bincount(errors.kind[errors.kind >= 0], minlength=5), *of_objects]
    per_class = _per_class(table, matching, errors, order)
    lines = {
        f"iou{round(100 * iou)}": _curves(table, match_detections(table, close, rank, iou), order)
        for iou in CURVE_IOUS
    }
    return {
        "images": len(table.image_ids),
        "objects": int(num_objects.sum()),
        "crowds": int(objects.crowd.sum()),
        "detections": len(detections),
        "right": int(matching.hits.sum()),
        "not_counted": int((~matching.counted).sum()),
        "iou": {"right": reach, "background_below": near},
        "ap": _percent(ap),
        "errors": {
            kind: {"count": int(count), "dap": _percent(gains[kind])}
            for kind, count in zip((*KINDS, BEYOND), counts, strict=True)
        },
        "limits": {
            "max_detections": table.max_detections,
            "per_image": table.per_image,
            "would_do": {
                "max_detections": errors.beyond.max_detections,
                "per_image": errors.beyond.per_image,
            },
            "sentences": sentences(table, errors.beyond),
        },
        "best_f1": best,
        "confusion": {"score": threshold, "iou": reach, "cells": _cells(matrix, table.categories)},
        "per_class": per_class,
        "curves": {"recall": np.round(100 * curves.RECALLS, 1).tolist(), **lines},
        "scores": _histograms(matching, detections.score),
    }


def limits_of(table: Table, reach: float = 0.5, near: float = 0.1) -> list[str]:
    """States how many objects are beyond a limit, and which limit would do; [] in the usual case.

    Args:
        table, reach, near: as in `analyse`.
    """
    if not exceeds_limits(table):
        return []
    close = pairs(table, least=near)
    matching = match_detections(table, close, ranks(table.detections.order()), reach)
    return sentences(table, classify_errors(table, close, matching, reach=reach, near_iou=near).beyond)


def best_f1(matching, order, num_objects, scores):
    """Finds the score threshold of the best F1.

    Args:
        matching:    Matching.
        order:       rows of the detections concerned, by descending score.
        num_objects: number of objects.
        scores:      (N,) of all detections.
    Returns:
        {"f1", "precision", "recall": percent, "score"}; all None without a true positive.
    """
    rows = order[matching.counted[order]]
    if not num_objects or not matching.hits[rows].any():
        return {"f1": None, "precision": None, "recall": None, "score": None}
    precision, recall = curves.precision_recall(matching.hits[rows], num_objects)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    # detections of equal score pass the threshold together
    last = np.append(np.diff(scores[rows]) != 0, True)
    at = int(np.argmax(np.where(last, f1, -1)))
    values = {"f1": f1[at], "precision": precision[at], "recall": recall[at]}
    return {name: _percent(value) for name, value in values.items()} | {"score": float(scores[rows[at]])}


def _num_objects(table):
    """(C,) objects of each class, without crowds."""
    return np.bincount(table.objects.label[~table.objects.crowd], minlength=len(table.categories))


def _per_class(table, matching, errors, order):
    labels, num_objects = table.detections.label, _num_objects(table)
    num = len(table.categories)
    counts = {
        kind: np.bincount(labels[errors.kind == number], minlength=num)
        for number, kind in enumerate(KINDS[:-1])
    }
    for kind, objects in (("missed", errors.missed), (BEYOND, errors.beyond.objects)):
        counts[kind] = np.bincount(table.objects.label[objects], minlength=num)
    rows = []
    for one, mine in curves.by_class(labels, order, num):
        category = table.categories[one]
        rows.append(
            {
                **category,
                "objects": int(num_objects[one]),
                "detections": len(mine),
                "right": int(matching.hits[mine].sum()),
                "errors": {kind: int(counts[kind][one]) for kind in (*KINDS, BEYOND)},
                "best_f1": best_f1(matching, mine, num_objects[one], table.detections.score),
            }
        )
    return rows


def _curves(table, matching, order):
    """{"per_class": {id: 101 precisions}, "mean": 101 precisions}, percent; classes with objects only."""
    num_objects, lines = _num_objects(table), {}
    counted = order[matching.counted[order]]
    for one, rows in curves.by_class(table.detections.label, counted, len(num_objects)):
        if num_objects[one]:
            lines[one] = curves.sampled(*curves.precision_recall(matching.hits[rows], num_objects[one]))
    mean = np.mean(list(lines.values()), axis=0) if lines else np.zeros(0)
    return {
        "mean": _rounded(mean),
        "per_class": {str(table.categories[one]["id"]): _rounded(line) for one, line in lines.items()},
    }


def _rounded(line):
    return np.round(100 * np.asarray(line), 2).tolist()


def _cells(matrix, categories):
    """[[id of the object's class, id of the predicted class, count], ...]; None is the background."""
    ids = [*(category["id"] for category in categories), None]
    return [[ids[row], ids[column], int(matrix[row, column])] for row, column in np.argwhere(matrix)]


def _histograms(matching, scores):
    edges = np.linspace(0, 1, BINS + 1)
    clipped = np.clip(scores, 0, 1)
    return {
        "edges": edges.round(6).tolist(),
        "right": np.histogram(clipped[matching.hits], edges)[0].tolist(),
        "wrong": np.histogram(clipped[matching.counted & ~matching.hits], edges)[0].tolist(),
    }


def _percent(value):
    return None if np.isnan(value) else round(100 * float(value), 6)
