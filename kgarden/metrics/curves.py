"""Precision-recall curves and average precision by the rules of COCO, VOC 2007 and VOC 2010."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # COCO's points


class Scored(NamedTuple):
    """Matched detections.

    Attributes:
        hits:   (N,) bool, true positives.
        counts: (N,) bool, False: ignored.
        label:  (N,) class.
        order:  rows by descending score.
    """

    hits: np.ndarray
    counts: np.ndarray
    label: np.ndarray
    order: np.ndarray


def precision_recall(hits, num_objects):
    """Computes precision and recall after each detection.

    Args:
        hits:        (N,) bool, true positives by descending score, without ignored detections.
        num_objects: number of objects, > 0.
    Returns:
        (precision, recall): (N,) each.
    """
    true_positives = np.cumsum(hits)
    return true_positives / np.arange(1, len(hits) + 1), true_positives / num_objects


def envelope(precision):
    """Computes the largest precision at each recall or any larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def sampled(precision, recall, points=RECALLS):
    """Samples the envelope at given recalls, 0 where they are not reached.   (len(points),)"""
    at = np.searchsorted(recall, points, side="left")
    return np.append(envelope(precision), 0.0)[at]


def ap_coco(precision, recall):
    """Computes the mean precision at 101 recalls (COCO)."""
    return float(sampled(precision, recall).mean())


def ap_eleven(precision, recall):
    """Computes the mean precision at 11 recalls (PASCAL VOC 2007).

    The recalls are 0.1 * n in floating point, as in all published implementations: 3 * 0.1 is slightly above
    0.3, so that 3 objects of 10 do not reach it.
    """
    return float(sampled(precision, recall, np.arange(11) * 0.1).mean())


def ap_area(precision, recall):
    """Computes the area under the envelope (PASCAL VOC from 2010, Open Images)."""
    return float((envelope(precision) * np.diff(recall, prepend=0.0)).sum())


def by_class(label, order, num_classes):
    """Yields (class, its rows in the given order) for every class."""
    ordered = order[np.argsort(label[order], kind="stable")]
    bounds = np.searchsorted(label[ordered], np.arange(num_classes + 1))
    for one in range(num_classes):
        yield one, ordered[bounds[one] : bounds[one + 1]]


def class_aps(scored: Scored, num_objects: np.ndarray, rule: Callable) -> np.ndarray:
    """Computes the AP of each class.

    Args:
        scored:      Scored.
        num_objects: (C,) objects of each class.
        rule:        `ap_coco`, `ap_eleven` or `ap_area`.
    Returns:
        (C,) in [0, 1], NaN for classes without objects.
    """
    aps = np.full(len(num_objects), np.nan)
    counted = scored.order[scored.counts[scored.order]]
    for label, rows in by_class(scored.label, counted, len(num_objects)):
        if num_objects[label] > 0:
            hits = scored.hits[rows]
            aps[label] = rule(*precision_recall(hits, num_objects[label])) if len(rows) else 0.0
    return aps


def mean_of(aps):
    """Computes the mean over the classes with objects; NaN if there are none."""
    known = aps[~np.isnan(aps)]
    return float(known.mean()) if len(known) else float("nan")
