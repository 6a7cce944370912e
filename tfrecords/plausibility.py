"""Findings on a data set as a whole: what makes it implausible, and what limits of a recipe it exceeds.

Each finding is a function of Facts and Limits that returns a sentence or None. `findings` calls all of them;
`data build`, `data check`, a training before its first step, and the diagnosis of an AP of 0 say them.
"""

import typing
from collections import Counter

from tfrecords import ground_truth
from tfrecords.data_statistics import (
    AS_CORNERS,
    OVER,
    OVER_BORDER,
    STORED_SIZE,
    WITHIN_HUNDRED,
    WITHIN_ONE,
)

MOST = 0.5  # fraction of the boxes
FITTING = 0.95  # fraction of the boxes that must fit as corners, or as percentages, to be called so
SOME = 0.1  # fraction of the boxes; in real data sets almost none reaches out by more than rounding
REACHING = 0.25  # and at least so many must reach out of their image as x, y, width, height
FEWEST = 3  # boxes, for a judgement on all of them
FEWEST_PERCENT = 10  # boxes; objects of a few images may all lie at the top left
SMALL = 8  # px, side of an object that a detector hardly finds
NAMED = 5  # classes that a sentence names


class Limits(typing.NamedTuple):
    """Limits that a data set may exceed; the defaults are those of recipes.

    max_objects:   ground-truth boxes of an image in training; None: not compared.
    detections:    that the model keeps of an image; None: unknown.
    judged:        detections of a class in an image that COCO's metrics judge.
    proposals:     of an image, the fewest of training and inference; None: no first stage, or unknown.
    short_side_px, long_side_px: of resized images; None: images as they are.
    stride:        px of a cell of the finest level; None: unknown.
    """

    max_objects: int | None = 100
    detections: int | None = 100
    judged: int = 100
    proposals: int | None = None
    short_side_px: int | None = None
    long_side_px: int | None = None
    stride: int | None = None


class Finding(typing.NamedTuple):
    """A sentence on a data set.

    kind: "mistake": boxes are probably wrong, and nothing can be learned from them; "limit": of a recipe;
          "remark": harmless or repaired.
    """

    kind: str
    sentence: str


def findings(facts, limits=None):
    """All findings on a data set, mistakes first.

    Args:
        facts:  Facts.
        limits: Limits; None: the defaults.
    Returns:
        [Finding, ...]
    """
    limits = limits or Limits()
    return [
        Finding(kind, sentence)
        for kind, functions in KINDS.items()
        for function in functions
        if (sentence := function(facts, limits))
    ]


# --- mistakes -------------------------------------------------------------------------------------


def fractions(facts, _):
    statistics = facts.statistics
    count = statistics.signs[WITHIN_ONE]
    if not count or count < MOST * statistics.boxes:
        return None
    return (
        f"{count} of {statistics.boxes} boxes lie within 0..1, less than one px: they look like fractions of "
        f"the image. Multiply them by the width and height of their image."
    )


def percentages(facts, _):
    statistics = facts.statistics
    count = statistics.signs[WITHIN_HUNDRED]
    if statistics.boxes < FEWEST_PERCENT or count < FITTING * statistics.boxes:
        return None
    return (
        f"{count} of {statistics.boxes} boxes lie within 0..100, at the top left of larger images: they look "
        f"like percentages of the image. Multiply them by its width and height, divided by 100."
    )


def corners(facts, _):
    statistics = facts.statistics
    over, fitting = statistics.signs[OVER_BORDER], statistics.signs[AS_CORNERS]
    if not _is_corners(statistics):
        return None
    return (
        f"{over} of {statistics.boxes} boxes reach out of their image, and {fitting} fit if read as corners: "
        f"bbox looks like xmin, ymin, xmax, ymax. COCO's bbox is x, y, width, height."
    )


def _is_corners(statistics):
    boxes, signs = statistics.boxes, statistics.signs
    fits = signs[AS_CORNERS] >= FITTING * boxes and signs[OVER_BORDER] >= REACHING * boxes
    return boxes >= FEWEST and fits


def cut(facts, _):
    statistics = facts.statistics
    count = statistics.signs[OVER_BORDER]
    if statistics.boxes < FEWEST or count <= MOST * statistics.boxes or _is_corners(statistics):
        return None
    return (
        f"{count} of {statistics.boxes} boxes reach out of their image and are cut at its border, or lie "
        f"outside of it: are the boxes px of these images, and not of larger ones?"
    )


def many_swapped(facts, _):
    count = facts.remarks.get(ground_truth.SWAPPED, 0)
    if count < FEWEST or count <= REACHING * facts.statistics.boxes:
        return None
    return (
        f"{count} of {facts.statistics.boxes} boxes had swapped corners, which were put in order: are their "
        f"numbers x, y, width, height, where corners belong?"
    )


# --- limits ---------------------------------------------------------------------------------------


def fullest(facts, limits):
    statistics = facts.statistics
    too_low = [
        f"{name} is {limit}{why}"
        for name, limit, most, why in (
            ("data.max_objects", limits.max_objects, statistics.most, ""),
            ("model.selection.total", limits.detections, statistics.most, ""),
            ("evaluate.max_detections", limits.judged, statistics.most_of_a_class, " for each class"),
            ("the number of proposals", limits.proposals, statistics.most, ""),
        )
        if limit is not None and most > limit
    ]
    if not too_low:
        return None
    default = "by default, " if limits == Limits() else ""
    return (
        f"The fullest image, {statistics.fullest}, has {statistics.most} objects, "
        f"{statistics.most_of_a_class} of one class; {default}{', '.join(too_low)}: "
        f"{statistics.most} would do."
    )


def small(facts, limits):
    median = facts.statistics.median_side(limits.short_side_px, limits.long_side_px)
    least = max(SMALL, limits.stride or 0)
    if median is None or median >= least or fractions(facts, limits) or percentages(facts, limits):
        return None
    resized = f" after resizing to a short side of {limits.short_side_px} px" if limits.short_side_px else ""
    cells = f", where a cell of the finest level has {limits.stride} px" if limits.stride else ""
    return (
        f"Half of the objects are smaller than about {_rounded(median)} x {_rounded(median)} px"
        f"{resized}{cells}: enlarge or crop the images (data.short_side_px)."
    )


def _rounded(value):
    return f"{value:.0f}" if value >= 2 else f"{value:.2g}"


# --- remarks --------------------------------------------------------------------------------------


def no_objects(facts, _):
    statistics = facts.statistics
    if statistics.images and not statistics.objects:
        return f"None of the {statistics.images} images has an object."
    return None


def some_cut(facts, limits):
    statistics = facts.statistics
    count = statistics.signs[OVER_BORDER]
    if statistics.boxes < FEWEST or count < SOME * statistics.boxes or cut(facts, limits):
        return None
    if _is_corners(statistics):
        return None
    return (
        f"{count} of {statistics.boxes} boxes reach out of their image by more than {OVER:g} px and are cut: "
        f"have boxes and images the same size and orientation?"
    )


def swapped(facts, limits):
    count = facts.remarks.get(ground_truth.SWAPPED, 0)
    return (
        f"{count} boxes had swapped corners: put in order."
        if count and not many_swapped(facts, limits)
        else None
    )


def from_masks(facts, _):
    count = facts.remarks.get(ground_truth.FROM_MASK, 0)
    return f"{count} boxes were made from polygons or masks, because there was no bbox." if count else None


def stored_size(facts, _):
    count = facts.statistics.signs[STORED_SIZE]
    if not count:
        return None
    return (
        f"{count} images have an EXIF orientation, and annotations of the size as stored: they were not "
        f"rotated. See whether the boxes fit: kgarden data show."
    )


def without_objects(facts, _):
    counts = facts.statistics.objects_of_class
    empty = [one for one in facts.categories if not counts[one["id"]]]
    if not empty or not facts.statistics.objects:
        return None
    if len(empty) == 1:
        [one] = empty
        dummy = one["id"] == 0 and len(facts.categories) > 1
        why = ": exports of Roboflow put the name of the project there; it is kept" if dummy else ""
        return f"No object of class {_name(one)} (id {one['id']}){why}."
    more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
    names = ", ".join(_name(one) for one in empty[:NAMED])
    return f"No object of {len(empty)} of {len(facts.categories)} classes: {names}{more}."


def same_name(facts, _):
    counts = Counter(_name(one).casefold() for one in facts.categories)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return None
    ids = [str(one["id"]) for one in facts.categories if _name(one).casefold() == twice[0]]
    more = f" {len(twice) - 1} further names also occur twice." if len(twice) > 1 else ""
    return (
        f"{len(ids)} classes have the same name, {twice[0]} (ids {', '.join(ids)}): --rename "
        f"'{twice[0]}={twice[0]}' joins them.{more}"
    )


def _name(category):
    return str(category.get("name", category["id"])).strip()


KINDS = {
    "mistake": (fractions, percentages, corners, cut, many_swapped),
    "limit": (fullest, small),
    "remark": (no_objects, some_cut, swapped, from_masks, stored_size, without_objects, same_name),
}
TOLD = {ground_truth.SWAPPED, ground_truth.FROM_MASK}  # reasons of remarks that a finding tells
