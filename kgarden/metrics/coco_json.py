"""COCO JSON: validates files of ground truth and detections, and joins their ids.

Faults of detections are errors, because metrics of the remaining ones would be misleading. Faulty annotations
of the ground truth are left out and reported.
"""

import math
from collections import Counter

from kgarden.errors import UserError
from kgarden.metrics.explain import unknown_classes, unknown_images
from tfrecords.schema import DataError
from tfrecords.segmentations import checked

MAX_PX = 1_000_000  # of a side; a mask of such a size would fill the memory


def read_truth(content) -> tuple[dict, list[str]]:
    """Validates ground truth in COCO form.

    Args:
        content: of the json file.
    Returns:
        (truth, notes): the ground truth without unusable annotations; a line for each kind of those.
    """
    if isinstance(content, list):
        raise UserError("a list is not ground truth; give a COCO file with images and annotations")
    missing = [key for key in ("images", "annotations", "categories") if not _lists(content, key)]
    if missing:
        raise UserError(f"not ground truth in COCO form: it has no list of {', '.join(missing)}")
    for key in ("images", "categories"):
        if not all(isinstance(one, dict) and _is_id(one.get("id")) for one in content[key]):
            raise UserError(f"{key}: an entry has no id")
        if len({type(one["id"]) for one in content[key]}) > 1:
            raise UserError(f"{key}: ids must be all numbers or all strings")
    duplicates = [
        one for one, count in Counter(one["id"] for one in content["categories"]).items() if count > 1
    ]
    if duplicates:
        raise UserError(f"categories: id {duplicates[0]!r} is not unique")
    for one in content["images"]:
        if not all(_is_side(one.get(side)) for side in ("height", "width")):
            raise UserError(f"images: the height or width of {one['id']!r} is not a positive integer")
    images, classes = ({one["id"] for one in content[key]} for key in ("images", "categories"))
    faults = {
        "without image_id and category_id": lambda one: not _is_labelled(one),
        "of an image that is not listed": lambda one: one["image_id"] not in images,
        "of a category that is not listed": lambda one: one["category_id"] not in classes,
        "with neither a bbox of four numbers nor a segmentation": lambda one: not _has_region(one),
        "with an area or iscrowd that is not a number": lambda one: not _has_valid_flags(one),
    }
    kept, notes = content["annotations"], []
    for fault, is_faulty in faults.items():
        faulty = [one for one in kept if is_faulty(one)]
        if faulty:
            notes.append(f"{len(faulty)} annotations left out: {fault} (the first: {str(faulty[0])[:80]})")
            kept = [one for one in kept if not is_faulty(one)]
    return {**content, "annotations": _without_bad_masks(kept)}, notes


def read_results(content, truth: dict) -> tuple[list[dict], list[str]]:
    """Validates detections and converts their ids to those of the ground truth.

    Args:
        content: of the json file: a list in COCO results form, or a data set in COCO form whose annotations
                 have scores. The images and classes of such a data set may have other ids; they are joined
                 by file name and class name.
        truth:   of `read_truth`.
    Returns:
        (results, notes): list in COCO results form; remarks for the user.
    """
    results = _entries(content)
    _check(results)
    results = _without_bad_masks(results)
    notes = []
    if isinstance(content, dict):
        results, notes = _joined(content, results, truth)
    for fault in (
        unknown_images(truth, [one["image_id"] for one in results]),
        unknown_classes(truth, [one["category_id"] for one in results]),
    ):
        if fault:
            raise UserError(fault)
    return results, notes


def _entries(content):
    """The list of detections of either form."""
    if isinstance(content, dict):
        if not _lists(content, "annotations"):
            raise UserError("not detections: give a list in COCO results form, or a data set with scores")
        entries = content["annotations"]
        if entries and not any(_has(one, "score") for one in entries):
            raise UserError("this is ground truth (its annotations have no score); give detections")
    elif isinstance(content, list):
        entries = content
    else:
        raise UserError("not detections: give a list in COCO results form")
    if not entries:
        raise UserError("the list of detections is empty")
    return entries


def _check(results):
    """Raises UserError for the first entry that is not a valid detection."""
    for n, one in enumerate(results):
        if not _has(one, "image_id", "category_id", "score"):
            lacking = [key for key in ("image_id", "category_id", "score") if not _has(one, key)]
            raise UserError(f"detection {n} has no {', '.join(lacking)}; use COCO results form")
        if not _is_number(one["score"]):
            raise UserError(f"detection {n}: score {one['score']!r} is not a finite number")
        if not _has_region(one):
            raise UserError(f"detection {n} has neither a bbox of four finite numbers nor a segmentation")
        if one.get("bbox") and min(one["bbox"][2:]) < 0:
            raise UserError(f"detection {n} has a negative width or height: {one['bbox']}")
        for key in ("image_id", "category_id"):
            if not _is_id(one[key]):
                raise UserError(f"detection {n}: {key} {one[key]!r} is not an integer or string")


def _joined(content, results, truth):
    """Results of a data set with its own images and classes, converted to the ground truth's ids."""
    notes = []
    for part, key, name, what in (
        ("images", "image_id", "file_name", "images"),
        ("categories", "category_id", "name", "classes"),
    ):
        theirs = {id_: named for named, id_ in _named(content.get(part), name)}
        ours = dict(_named(truth[part], name))
        if not set(theirs.values()) & ours.keys():
            continue  # no common names: the ids are used as they are
        if all(ours.get(named, one) == one for one, named in theirs.items()):
            continue
        unknown = sorted({str(theirs.get(one[key], one[key])) for one in results} - {str(n) for n in ours})
        if unknown:
            raise UserError(
                f"{len(unknown)} {what} of the detections are not in the ground truth "
                f"(the first: {unknown[0]})"
            )
        results = [{**one, key: ours[theirs[one[key]]]} for one in results]
        notes.append(f"{what} have other ids in the ground truth; joined by {name}")
    return results, notes


def _named(entries, name):
    """[(name, id), ...] of the entries that have both."""
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
    return value is None or (isinstance(value, int) and 0 < value < MAX_PX)


def _has_valid_flags(one):
    return all(one.get(key) is None or _is_number(one[key]) for key in ("area", "iscrowd"))


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _without_bad_masks(entries):
    """Entries without invalid masks; their boxes can still be evaluated."""
    return [
        one
        if _is_mask(one.get("segmentation"))
        else {key: value for key, value in one.items() if key != "segmentation"}
        for one in entries
    ]


def _has_region(one):
    """Whether an entry has a valid box, or a valid mask if it has no box."""
    box = one.get("bbox")
    if box:
        return isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_coordinate, box))
    return _is_mask(one.get("segmentation"))


def _is_coordinate(value):
    return _is_number(value) and abs(value) < MAX_PX


def _is_mask(mask):
    """Whether a segmentation is one that pycocotools can be given."""
    try:
        return bool(checked(mask))
    except DataError:
        return False
