"""What is wrong with detections: every wrong one gets one reason, every reason its price in AP50.

The reasons are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020 (arXiv:2008.08115), section 2.2, tried in the order of its toolbox. With `reach` = 0.5 and `near` =
0.1, a detection that COCO's matching at IoU `reach` leaves without an object is an error of

    localisation   an object of its class overlaps by near..reach
    class          an object of another class overlaps by reach or more
    duplicate      an object of its class does, but a surer detection has it
    both           an object of another class overlaps by near..reach
    background     no object overlaps by near

and an object that was not found is

    missed         unless an error of localisation or class points at it.

The price of a kind (dAP50) is what AP50 gains if that kind alone is put right: a detection with a wrong place
or class finds its object, if it is the surest that points there and nobody else has it, and else goes away;
the other kinds go away; missed objects are no longer asked for. Prices do not add up to what AP50 lacks.
"""

import dataclasses

import numpy as np

from kgarden.metrics import curves
from kgarden.metrics.matching import best_of, first_claims, match, ranks

KINDS = ("localisation", "class", "duplicate", "both", "background", "missed")
MOST = 100  # detections of a class in a picture that count, as in COCO


@dataclasses.dataclass(frozen=True)
class Judged:
    """COCO's matching at one IoU.

    Args:
        taken:  (N,) row of the object that each detection finds, -1: none.
        counts: (N,) bool, False: it counts as nothing (it lies in a crowd, or behind the first MOST).
    """

    taken: np.ndarray
    counts: np.ndarray

    @property
    def hits(self):
        return self.taken >= 0


def judge(table, near, rank, reach):
    """COCO's matching.

    Args:
        table: Table.
        near:  Pairs of the table, those of IoU `reach` and more among them.
        rank:  (N,) place of each detection by score.
        reach: IoU of a right detection.
    """
    objects, detections = table.objects, table.detections
    counts = _among_first(detections, rank)
    same = objects.label[near.there] == detections.label[near.found]
    same = near.where(same & (near.iou >= min(reach, 1 - 1e-10)) & counts[near.found])
    crowd = objects.crowd[same.there]
    taken = match(same.where(~crowd), rank, len(detections), len(objects))
    in_crowd = np.zeros(len(detections), bool)
    in_crowd[same.found[crowd]] = True
    return Judged(taken, counts & ((taken >= 0) | ~in_crowd))


def _among_first(detections, rank):
    """Is it one of the MOST surest of its class in its picture?   (N,) bool."""
    order = np.lexsort((rank, detections.label, detections.image))
    new = np.diff(detections.image[order], prepend=-1) | np.diff(detections.label[order], prepend=-1)
    start = np.maximum.accumulate(np.where(new != 0, np.arange(len(order)), 0))
    among = np.empty(len(order), bool)
    among[order] = np.arange(len(order)) - start < MOST
    return among


# --- the split --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """Every detection's reason.

    Args:
        kind:   (N,) place in KINDS, -1: right or not counted.
        target: (N,) row of the object that an error of localisation or class points at, else -1.
        missed: (M,) bool.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray


def split(table, near, judged, reach, near_iou):
    """One reason for each wrong detection; see the top of this file.

    Args:
        near: Pairs of IoU `near_iou` and more.
    """
    objects, detections = table.objects, table.detections
    near = near.where(~objects.crowd[near.there] & (near.iou >= near_iou))
    same = objects.label[near.there] == detections.label[near.found]
    own, own_there = best_of(near.where(same), len(detections))
    other, other_there = best_of(near.where(~same), len(detections))
    reasons = [
        (own >= near_iou) & (own < reach),
        other >= reach,
        own >= reach,
        other >= near_iou,
        np.ones(len(detections), bool),
    ]
    kind = np.select(reasons, range(len(reasons)))
    kind = np.where(judged.hits | ~judged.counts, -1, kind)
    target = np.select([kind == 0, kind == 1], [own_there, other_there], -1)
    missed = ~objects.crowd
    missed[judged.taken[judged.hits]] = False
    missed[target[target >= 0]] = False
    return Split(kind, target, missed)


def prices(table, judged, found, order):
    """AP50 gained by putting each kind right.

    Args:
        judged: Judged at IoU 0.5, or whatever `reach` is.
        found:  Split.
        order:  (N,) rows of the detections by score.
    Returns:
        (ap, {kind: gain}): in [0, 1]; NaN without objects.
    """
    objects, labels = table.objects, table.detections.label
    num_objects = _asked(table)

    def mean_ap(hits, counts, labels, number):
        aps = curves.class_aps(hits, counts, labels, order, number, curves.ap_coco)
        aps[(number == 0) & (num_objects > 0)] = 1.0  # every object of the class had been missed
        return curves.mean_of(aps[num_objects > 0])

    ap = mean_ap(judged.hits, judged.counts, labels, num_objects)
    free = np.ones(len(objects), bool)
    free[judged.taken[judged.hits]] = False
    gains = {}
    for number, kind in enumerate(KINDS[:-1]):
        of_kind = found.kind == number
        pointing = of_kind & (found.target >= 0)
        pointing[pointing] = free[found.target[pointing]]
        mended = first_claims(found.target, ranks(order), pointing)
        mended_labels = labels.copy()
        mended_labels[mended] = objects.label[found.target[mended]]
        counts = judged.counts & (~of_kind | mended)
        gains[kind] = mean_ap(judged.hits | mended, counts, mended_labels, num_objects) - ap
    asked = num_objects - np.bincount(objects.label[found.missed], minlength=len(num_objects))
    gains["missed"] = mean_ap(judged.hits, judged.counts, labels, asked) - ap
    return ap, gains


def _asked(table):
    """(C,) objects of each class that are to be found."""
    return np.bincount(table.objects.label[~table.objects.crowd], minlength=len(table.categories))


# --- which class is taken for which -------------------------------------------------------------------


def confusion(table, near, judged, score, reach):
    """How often each class was taken for which.

    Detections below `score` are left out. An object goes to a detection of its own class where one fits
    (COCO's matching); what is left over on both sides is matched in the same way whatever its class.

    Args:
        near:   Pairs of IoU `reach` and more.
        judged: Judged at `reach`.
    Returns:
        (C + 1, C + 1) int: row = class of the object, column = class said. The last row holds detections
        without an object, the last column objects without a detection.
    """
    objects, detections = table.objects, table.detections
    background = len(table.categories)
    shown = judged.counts & (detections.score >= score)
    taken = np.where(shown, judged.taken, -1)
    free = ~objects.crowd
    free[taken[taken >= 0]] = False
    left = shown & (taken < 0)
    loose = near.where((near.iou >= reach) & left[near.found] & free[near.there])
    strange = match(loose, ranks(detections.order()), len(detections), len(objects))
    taken = np.where(strange >= 0, strange, taken)
    free[taken[taken >= 0]] = False

    matrix = np.zeros((background + 1, background + 1), np.int64)
    said = detections.label[shown]
    meant = np.append(objects.label, background)[taken[shown]]
    np.add.at(matrix, (meant, said), 1)
    np.add.at(matrix, (objects.label[free], background), 1)
    return matrix
