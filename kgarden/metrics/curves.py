"""Precision over recall, and the three ways of taking its mean."""

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # COCO's points


def precision_recall(hits, num_objects):
    """Both after each detection.

    Args:
        hits:        (N,) bool, from the surest detection on; those that count as nothing left out.
        num_objects: to be found, > 0.
    Returns:
        (precision, recall): (N,) each.
    """
    found = np.cumsum(hits)
    return found / np.arange(1, len(hits) + 1), found / num_objects


def envelope(precision):
    """The best precision at this recall or any larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def sampled(precision, recall, points=RECALLS):
    """The envelope at given recalls, 0 where they are not reached.   (len(points),)"""
    at = np.searchsorted(recall, points, side="left")
    return np.append(envelope(precision), 0.0)[at]


def ap_coco(precision, recall):
    """Mean at 101 recalls (COCO)."""
    return float(sampled(precision, recall).mean())


def ap_eleven(precision, recall):
    """Mean at 11 recalls (PASCAL VOC 2007).

    The points are 0.1 * n in floating point, as in every program that published such numbers: 3 * 0.1 is
    a hair above 0.3, so that 3 objects of 10 do not reach it.
    """
    return float(sampled(precision, recall, np.arange(11) * 0.1).mean())


def ap_area(precision, recall):
    """Area under the envelope (PASCAL VOC from 2010, Open Images)."""
    return float((envelope(precision) * np.diff(recall, prepend=0.0)).sum())


def by_class(label, order, num_classes):
    """Yields (class, rows of it in the given order)."""
    ordered = order[np.argsort(label[order], kind="stable")]
    bounds = np.searchsorted(label[ordered], np.arange(num_classes + 1))
    for one in range(num_classes):
        yield one, ordered[bounds[one] : bounds[one + 1]]


def class_aps(hits, counts, label, order, num_objects, rule):
    """AP of each class.

    Args:
        hits, counts: (N,) bool: right; counted at all.
        label, order: (N,) class; rows from the surest on.
        num_objects:  (C,) to be found.
        rule:         one of the functions above.
    Returns:
        (C,) in [0, 1], NaN for classes without objects.
    """
    aps = np.full(len(num_objects), np.nan)
    for one, rows in by_class(label, order[counts[order]], len(num_objects)):
        if num_objects[one] > 0:
            aps[one] = rule(*precision_recall(hits[rows], num_objects[one])) if len(rows) else 0.0
    return aps


def mean_of(aps):
    """Mean over the classes that have objects; NaN if none has."""
    known = aps[~np.isnan(aps)]
    return float(known.mean()) if len(known) else float("nan")
