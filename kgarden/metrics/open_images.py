"""Open Images average precision: group boxes (IsGroupOf), class hierarchy, verified image-level labels.

Detections are first matched with single objects as in PASCAL VOC. The unmatched ones may lie in a group of
their class: of all detections in one group, the one of the highest score is a true positive and the others
are ignored. A group counts as one object. Before that, objects and detections are repeated under every class
above theirs, and detections of classes of which nothing is known in their image are ignored. Kuznetsova et
al., "The Open Images Dataset V4", IJCV 2020, and the rules of the Open Images Challenge.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kgarden.errors import UserError
from kgarden.metrics import curves
from kgarden.metrics.arrays import Pairs, Table, equal_pairs, overlap, pairs
from kgarden.metrics.matching import best_of, first_claims, ranks

FILTERS = ("verified", "annotated", "release", "none")


class Rules(NamedTuple):
    """Rules of an evaluation.

    Attributes:
        filter:    of FILTERS, which detections count, see `judged`. None: "verified" if the ground truth has
                   image-level labels, else "none".
        hierarchy: repeat objects and detections under the classes above theirs, if the classes have a tree.
    """

    filter: str | None = None
    hierarchy: bool = True

    def of(self, table: Table) -> "Rules":
        """Returns the rules in force for a table."""
        default = "none" if table.verified is None else "verified"
        return Rules(self.filter or default, self.hierarchy and table.ancestors is not None)


OFFICIAL = Rules()


def evaluate_open_images(table: Table, rules: Rules = OFFICIAL) -> dict:
    """Computes the AP of each class under the rules, as `open_images_ap`; of the table as annotated.

    Raises:
        UserError: the filter needs image-level labels, which the ground truth does not have.
    """
    rules = rules.of(table)
    whole = expanded(table) if rules.hierarchy else table
    return open_images_ap(whole, kept=judged(whole, rules.filter))


def open_images_ap(
    table: Table, iou: float = 0.5, inside: float = 0.5, kept: np.ndarray | None = None
) -> dict:
    """Computes the AP of each class, the area under the curve.

    Args:
        table:  Table; `objects.group` marks groups.
        iou:    smallest IoU of a true positive with a single object.
        inside: smallest fraction of a detection that must lie in a group to belong to it.
        kept:   (N,) bool, the evaluated detections; None: all. See `judged`.
    Returns:
        {"ap": (C,) in [0, 1], NaN without objects; "map": their mean; "num_objects": (C,)}
    """
    objects, detections = table.objects, table.detections
    order = detections.order()
    rank = ranks(order)
    same = pairs(table)
    same = same.where(objects.label[same.object] == detections.label[same.detection])
    kept = np.ones(len(detections), bool) if kept is None else kept

    best, target = best_of(same.where(~objects.group[same.object]), len(detections))
    hits = first_claims(target, rank, kept & (best >= iou) & (target >= 0))

    grouped = same.where(objects.group[same.object])
    fraction = overlap(
        detections.boxes[grouped.detection], objects.boxes[grouped.object], np.ones(len(grouped), bool)
    )
    fraction, group = best_of(Pairs(grouped.detection, grouped.object, fraction), len(detections))
    in_group = kept & ~hits & (fraction >= inside) & (group >= 0)
    best_of_group = first_claims(group, rank, in_group)

    counts = kept & (~in_group | best_of_group)
    num_objects = np.bincount(objects.label, minlength=len(table.categories))
    scored = curves.Scored(hits | best_of_group, counts, detections.label, order)
    aps = curves.class_aps(scored, num_objects, curves.ap_area)
    return {"ap": aps, "map": curves.mean_of(aps), "num_objects": num_objects}


def of_present_classes(table: Table, always: Sequence[int] = ()) -> np.ndarray:
    """Returns which detections are of a class annotated in their image, or of one of `always`.   (N,) bool.

    Open Images' labels are incomplete: nothing is known about a class in images where it is not annotated.
    """
    objects, detections = table.objects, table.detections
    num = len(table.categories)
    present = objects.image * num + objects.label
    return np.isin(detections.image * num + detections.label, present) | np.isin(
        detections.label, np.asarray(always, np.int64)
    )


def judged(table: Table, filter: str) -> np.ndarray:
    """Returns which detections count; the others are neither right nor wrong.   (N,) bool

    Args:
        table:  Table; with a hierarchy, as `expanded` returns it.
        filter: "verified": of classes that are annotated in their image, or of which people verified that
                they are in it or not; a class in the image implies those above it, one that is not those
                below it. The protocol of Open Images.
                "annotated": of classes that are annotated in their image.
                "release": likewise, and those of the first class: the release of TSD.
                "none": all.
    Raises:
        UserError: "verified" without image-level labels.
    """
    if filter not in FILTERS:
        raise UserError(f"open_images: filter {filter!r} is not supported; use one of {', '.join(FILTERS)}")
    if filter == "none":
        return np.ones(len(table.detections), bool)
    annotated = of_present_classes(table, always=(0,) if filter == "release" else ())
    if filter != "verified":
        return annotated
    if table.verified is None:
        raise UserError(
            "open_images: filter verified needs image-level labels, which the ground truth does not have; "
            "build it with --image-labels, or use the filter annotated or none"
        )
    image, label = _implied(table)
    num = len(table.categories)
    return annotated | np.isin(table.detections.image * num + table.detections.label, image * num + label)


def expanded(table: Table) -> Table:
    """Repeats every object and every detection under all classes above its own.

    Args:
        table: Table with "ancestors".
    Returns:
        Table; what was there comes first.
    """
    return dataclasses.replace(
        table,
        objects=_repeated(table.objects, table.ancestors),
        detections=_repeated(table.detections, table.ancestors),
    )


def _repeated(rows, relation):
    """Objects or detections, followed by their copies under the related classes."""
    copied, label = _related(rows.label, relation)
    at = np.concatenate([np.arange(len(rows)), copied])
    plain = [one.name for one in dataclasses.fields(rows) if one.name not in ("label", "masks")]
    plain = [name for name in plain if getattr(rows, name) is not None]
    return dataclasses.replace(
        rows,
        **{name: getattr(rows, name)[at] for name in plain},
        label=np.concatenate([rows.label, label]),
        masks=rows.masks and [rows.masks[n] for n in at],
    )


def _related(label, relation):
    """(row, class) for every class that is related to that of the row, by a (C, C) relation."""
    one, other = np.nonzero(relation)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64)), *equal_pairs(label, one)]
    rows, at = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, other[at]


def _implied(table):
    """(image, label) of all classes that are known to be in an image or not, from its image-level labels."""
    image, label, present = table.verified.T
    if table.ancestors is None:
        return image, label
    images, labels = [image], [label]
    for kind, relation in ((1, table.ancestors), (0, table.ancestors.T)):
        rows, related = _related(label[present == kind], relation)
        images.append(image[present == kind][rows])
        labels.append(related)
    return np.concatenate(images), np.concatenate(labels)
