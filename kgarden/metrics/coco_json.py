"""What json files of ground truth and detections must hold, and how the two are brought together.

Faults of the detections are errors: a number made from the rest would be believed. Faults of single
annotations in the ground truth are counted and told, as everywhere in kgarden.
"""

import math
from collections import Counter

from kgarden.errors import UserError
from kgarden.metrics.explain import unknown_classes, unknown_pictures

MOST_PX = 1_000_000  # no picture is larger; a mask of such a size would fill the memory


def read_truth(content):
    """Check ground truth in COCO form.

    Args:
        content: what the json file holds.
    Returns:
        (truth, notes): without annotations that cannot be used; a line for each kind of those.
    """
    if isinstance(content, list):
        raise UserError("this is a list, as of detections; ground truth has images and annotations")
    missing = [key for key in ("images", "annotations", "categories") if not _lists(content, key)]
    if missing:
        raise UserError(f"this is no ground truth in COCO form: it has no list of {', '.join(missing)}")
    for key in ("images", "categories"):
        if not all(isinstance(one, dict) and _is_id(one.get("id")) for one in content[key]):
            raise UserError(f"{key}: every entry needs an id")
        if len({type(one["id"]) for one in content[key]}) > 1:
            raise UserError(f"{key}: some ids are numbers and some are text")
    twice = [one for one, count in Counter(one["id"] for one in content["categories"]).items() if count > 1]
    if twice:
        raise UserError(f"categories: {twice[0]!r} is the id of more than one")
    for one in content["images"]:
        if not all(_is_side(one.get(side)) for side in ("height", "width")):
            raise UserError(f"images: {one['id']!r} has a height or width that is no whole number of px")
    images, classes = ({one["id"] for one in content[key]} for key in ("images", "categories"))
    faults = {
        "is no object with image_id and category_id": lambda one: not _is_labelled(one),
        "is of a picture that is not listed": lambda one: one["image_id"] not in images,
        "is of a category that is not listed": lambda one: one["category_id"] not in classes,
        "has neither a bbox of four numbers nor a segmentation": lambda one: not _is_placed(one),
        "has an area or iscrowd that is no number": lambda one: not _is_flagged(one),
    }
    kept, notes = content["annotations"], []
    for words, wrong in faults.items():
        bad = [n for n, one in enumerate(kept) if wrong(one)]
        if bad:
            notes.append(
                f"{len(bad)} annotations left out: each {words} (the first: {str(kept[bad[0]])[:80]})"
            )
            kept = [one for one in kept if not wrong(one)]
    return {**content, "annotations": _without_bad_masks(kept)}, notes


def read_results(content, truth):
    """Check detections and give them the ground truth's ids.

    Args:
        content: what the json file holds: a list in COCO results form, or a data set in COCO form whose
                 annotations have scores. Such a data set names its pictures and classes itself: they are
                 found by file name and class name, and may have other ids.
        truth:   of `read_truth`.
    Returns:
        (results, notes): list in COCO results form; what there is to tell.
    """
    results = _entries(content)
    _check(results)
    results = _without_bad_masks(results)
    notes = []
    if isinstance(content, dict):
        results, notes = _joined(content, results, truth)
    for complaint in (
        unknown_pictures(truth, [one["image_id"] for one in results]),
        unknown_classes(truth, [one["category_id"] for one in results]),
    ):
        if complaint:
            raise UserError(complaint)
    return results, notes


def _entries(content):
    """The list of detections, whichever form it stands in."""
    if isinstance(content, dict):
        if not _lists(content, "annotations"):
            raise UserError("these are no detections: neither a list nor a data set with annotations")
        entries = content["annotations"]
        if entries and not any(_has(one, "score") for one in entries):
            raise UserError("this is ground truth, its annotations have no score: give detections")
    elif isinstance(content, list):
        entries = content
    else:
        raise UserError("these are no detections: a list in COCO results form is needed")
    if not entries:
        raise UserError("there are no detections in it (an empty list)")
    return entries


def _check(results):
    """UserError that names the first entry that is not a detection."""
    for n, one in enumerate(results):
        if not _has(one, "image_id", "category_id", "score"):
            lacking = [key for key in ("image_id", "category_id", "score") if not _has(one, key)]
            raise UserError(f"detection {n} has no {', '.join(lacking)}: COCO results form is needed")
        if not _is_number(one["score"]):
            raise UserError(f"detection {n} has the score {one['score']!r}: it must be a finite number")
        if not _is_placed(one):
            raise UserError(f"detection {n} has neither a bbox of four finite numbers nor a segmentation")
        if one.get("bbox") and min(one["bbox"][2:]) < 0:
            raise UserError(f"detection {n} has a negative width or height: {one['bbox']}")
        for key in ("image_id", "category_id"):
            if not _is_id(one[key]):
                raise UserError(f"detection {n} has the {key} {one[key]!r}: it must be a whole number")


def _joined(content, results, truth):
    """Results of a data set that lists pictures and classes of its own, with the ground truth's ids."""
    notes = []
    for part, key, name, what in (
        ("images", "image_id", "file_name", "pictures"),
        ("categories", "category_id", "name", "classes"),
    ):
        theirs = {id_: named for named, id_ in _named(content.get(part), name)}
        ours = dict(_named(truth[part], name))
        if not set(theirs.values()) & ours.keys():
            continue  # no names to go by: the ids must do
        if all(ours.get(named, one) == one for one, named in theirs.items()):
            continue
        lost = sorted({str(theirs.get(one[key], one[key])) for one in results} - {str(n) for n in ours})
        if lost:
            raise UserError(
                f"{len(lost)} {what} of the detections are not in the ground truth (the first: {lost[0]})"
            )
        results = [{**one, key: ours[theirs[one[key]]]} for one in results]
        notes.append(f"{what} have other ids in the ground truth: joined by {name}")
    return results, notes


def _named(entries, name):
    """[(name, id), ...] of those entries that have both."""
    entries = entries if isinstance(entries, list) else []
    return [
        (one[name], one["id"])
        for one in entries
        if isinstance(one, dict) and isinstance(one.get(name), str) and _is_id(one.get("id"))
    ]


def _lists(content, key):
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _has(one, *keys):
    return isinstance(one, dict) and all(one.get(key) is not None for key in keys)


def _is_id(value):
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_labelled(one):
    return isinstance(one, dict) and _is_id(one.get("image_id")) and _is_id(one.get("category_id"))


def _is_side(value):
    return value is None or (isinstance(value, int) and 0 < value < MOST_PX)


def _is_flagged(one):
    return all(one.get(key) is None or _is_number(one[key]) for key in ("area", "iscrowd"))


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _without_bad_masks(entries):
    """Masks that cannot be drawn are as good as none; boxes beside them may still be judged."""
    return [
        one
        if _is_mask(one.get("segmentation"))
        else {key: value for key, value in one.items() if key != "segmentation"}
        for one in entries
    ]


def _is_placed(one):
    """Has it a place in the picture?"""
    box = one.get("bbox")
    if box:
        return isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_place, box))
    return _is_mask(one.get("segmentation"))


def _is_place(value):
    return _is_number(value) and abs(value) < MOST_PX


def _is_mask(mask):
    """Polygons of three corners and more, or run lengths?"""
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        sized = isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))
        return sized and isinstance(counts, str | list) and len(counts) > 0
    polygons = mask if isinstance(mask, list) else []
    return bool(polygons) and all(
        isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 and all(map(_is_place, one))
        for one in polygons
    )
