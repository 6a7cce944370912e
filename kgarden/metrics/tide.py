"""TIDE error analysis: classifies every false positive and computes the AP50 that each error type costs.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv:2008.08115),
section 2.2, with the precedence of its toolbox. With `reach` = 0.5 and `near` = 0.1, a detection that COCO's
matching at IoU `reach` leaves unmatched is an error of

    localisation   IoU near..reach with an object of its class
    class          IoU >= reach with an object of another class
    duplicate      IoU >= reach with an object of its class that a higher-scoring detection matches
    both           IoU near..reach with an object of another class
    background     IoU < near with every object

and an unmatched object is

    missed         unless an error of localisation or class points at it, or
    beyond         a limit: only so many detections count or are kept (kgarden/metrics/limits.py).

The cost of an error type (dAP50) is what AP50 gains if only that type is corrected: a localisation or class
error becomes correct if it has the highest score among those that point at its object and the object is
unmatched, and is removed otherwise; errors of the other types are removed; missed objects no longer count as
objects, nor do those beyond a limit. The costs do not add up to 100 - AP50.
"""

import dataclasses

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.arrays import Pairs
from kgarden.metrics.curves import Scored
from kgarden.metrics.limits import Beyond, beyond_limits, positions
from kgarden.metrics.matching import best_of, first_claims, match, ranks

KINDS = ("localisation", "class", "duplicate", "both", "background", "missed")
BEYOND = "beyond_limit"  # kind of the objects that no detection could match


@dataclasses.dataclass(frozen=True)
class Matching:
    """COCO's matching at one IoU threshold.

    Args:
        matched: (N,) row of the object that each detection matches, -1: none.
        counted: (N,) bool, False: ignored (it lies in a crowd, or is not among the first that count).
        same:    Pairs of equal class that may match, also of detections that do not count; no crowds.
        rank:    (N,) position of each detection by score.
    """

    matched: np.ndarray
    counted: np.ndarray
    same: Pairs
    rank: np.ndarray

    @property
    def hits(self):
        """(N,) bool, true positives."""
        return self.matched >= 0


def match_detections(table, near, rank, reach):
    """Matches detections and objects as COCO does.

    Args:
        table: Table.
        near:  Pairs of the table; all those of IoU `reach` and more must be among them.
        rank:  (N,) position of each detection by score.
        reach: IoU of a true positive.
    """
    objects, detections = table.objects, table.detections
    counts = positions(detections, rank) < table.max_detections
    same = objects.label[near.object] == detections.label[near.detection]
    same = near.where(same & (near.iou >= min(reach, 1 - 1e-10)))
    crowd = objects.crowd[same.object]
    in_crowd = np.zeros(len(detections), bool)
    in_crowd[same.detection[crowd]] = True
    same = same.where(~crowd)
    matched = match(same.where(counts[same.detection]), rank, len(detections), len(objects))
    return Matching(matched, counts & ((matched >= 0) | ~in_crowd), same, rank)


# --- error types ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Errors:
    """Error type of every detection and object.

    Args:
        kind:   (N,) index of KINDS, -1: true positive or ignored.
        target: (N,) row of the object that an error of localisation or class points at, else -1.
        missed: (M,) bool.
        beyond: Beyond, the objects beyond a limit; they are not missed.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray
    beyond: Beyond


def classify_errors(table, near, matching, *, reach, near_iou):
    """Assigns one error type to each false positive; see the head of this file.

    Args:
        table:    Table.
        near:     Pairs of IoU `near_iou` and more.
        matching: Matching at `reach`.
        reach:    IoU of a true positive.
        near_iou: IoU below which a detection is background.
    """
    objects, detections = table.objects, table.detections
    near = near.where(~objects.crowd[near.object] & (near.iou >= near_iou))
    same = objects.label[near.object] == detections.label[near.detection]
    own, own_object = best_of(near.where(same), len(detections))
    other, other_object = best_of(near.where(~same), len(detections))
    conditions = [
        (own >= near_iou) & (own < reach),
        other >= reach,
        own >= reach,
        other >= near_iou,
        np.ones(len(detections), bool),
    ]
    kind = np.select(conditions, range(len(conditions)))
    kind = np.where(matching.hits | ~matching.counted, -1, kind)
    target = np.select([kind == 0, kind == 1], [own_object, other_object], -1)
    missed = ~objects.crowd
    missed[matching.matched[matching.hits]] = False
    missed[target[target >= 0]] = False
    beyond = beyond_limits(table, matching.same, matching.rank, missed)
    return Errors(kind, target, missed & ~beyond.objects, beyond)


def ap_gains(table, matching, errors, order):
    """Computes the AP50 gained by correcting each error type alone.

    Args:
        table:    Table.
        matching: Matching at `reach`, usually 0.5.
        errors:   Errors.
        order:    (N,) rows of the detections by score.
    Returns:
        (ap, {kind: gain}): in [0, 1], of KINDS and BEYOND; NaN without objects.
    """
    objects, labels = table.objects, table.detections.label
    num_objects = _num_objects(table)

    def mean_ap(hits, counts, labels, number):
        rows = Scored(hits, counts, labels, order)
        aps = curves.class_aps(rows, number, curves.ap_coco)
        aps[(number == 0) & (num_objects > 0)] = 1.0  # every object of the class was missed
        return curves.mean_of(aps[num_objects > 0])

    ap = mean_ap(matching.hits, matching.counted, labels, num_objects)
    free = np.ones(len(objects), bool)
    free[matching.matched[matching.hits]] = False
    gains = {}
    for number, kind in enumerate(KINDS[:-1]):
        of_kind = errors.kind == number
        pointing = of_kind & (errors.target >= 0)
        pointing[pointing] = free[errors.target[pointing]]
        corrected = first_claims(errors.target, ranks(order), pointing)
        corrected_labels = labels.copy()
        corrected_labels[corrected] = objects.label[errors.target[corrected]]
        counts = matching.counted & (~of_kind | corrected)
        gains[kind] = mean_ap(matching.hits | corrected, counts, corrected_labels, num_objects) - ap
    for kind, removed in (("missed", errors.missed), (BEYOND, errors.beyond.objects)):
        left = num_objects - np.bincount(objects.label[removed], minlength=len(num_objects))
        gains[kind] = mean_ap(matching.hits, matching.counted, labels, left) - ap
    return ap, gains


def _num_objects(table):
    """(C,) objects of each class, without crowds."""
    return np.bincount(table.objects.label[~table.objects.crowd], minlength=len(table.categories))


# --- confusion matrix ---------------------------------------------------------------------------------


def confusion_counts(table, near, matching, *, score, reach, beyond=None):
    """Computes the confusion matrix.

    Detections below `score` are ignored. Objects are matched with detections of their own class first
    (COCO's matching); the unmatched ones are then matched in the same way regardless of class.

    Args:
        table:    Table.
        near:     Pairs of IoU `reach` and more.
        matching: Matching at `reach`.
        score:    smallest score of a detection.
        reach:    IoU of a match.
        beyond:   (M,) bool, objects that are left out; None: none.
    Returns:
        (C + 1, C + 1) int: row = class of the object, column = predicted class. The last row holds
        detections without an object, the last column objects without a detection.
    """
    objects, detections = table.objects, table.detections
    background = len(table.categories)
    shown = matching.counted & (detections.score >= score)
    matched = np.where(shown, matching.matched, -1)
    free = ~objects.crowd if beyond is None else ~objects.crowd & ~beyond
    free[matched[matched >= 0]] = False
    left = shown & (matched < 0)
    remaining = near.where((near.iou >= reach) & left[near.detection] & free[near.object])
    any_class = match(remaining, ranks(detections.order()), len(detections), len(objects))
    matched = np.where(any_class >= 0, any_class, matched)
    free[matched[matched >= 0]] = False

    matrix = np.zeros((background + 1, background + 1), np.int64)
    predicted = detections.label[shown]
    gt_label = np.append(objects.label, background)[matched[shown]]
    np.add.at(matrix, (gt_label, predicted), 1)
    np.add.at(matrix, (objects.label[free], background), 1)
    return matrix
