"""COCO JSON: validates files of ground truth and detections, and joins their ids.

Faults of detections are errors, because metrics of the remaining ones would be misleading. Faulty annotations
of the ground truth are left out and reported, by the rules of the conversion.
"""

import math
from collections import Counter

from kgarden.errors import UserError
from kgarden.metrics.explain import unknown_classes, unknown_images
from kgarden.metrics.predictions import as_data_set, is_prediction
from tfrecords import ground_truth
from tfrecords.conversion_report import Fault
from tfrecords.image_names import Names
from tfrecords.schema import DataError
from tfrecords.segmentations import checked
from tfrecords.values import as_id, as_int


def read_truth(content) -> tuple[dict, list[str]]:
    """Validates ground truth in COCO form by the rules of `tfrecords.ground_truth`, as the conversion does.

    Args:
        content: of the json file.
    Returns:
        (truth, notes): the ground truth without unusable annotations and masks; a line for each kind of fault
        and repair. Image ids are int, or str if one of them is no number; category ids are those of the
        conversion. Images that were left out are listed by id under `left_out`.
    """
    try:
        read = ground_truth.read(content)
    except DataError as error:
        raise UserError(str(error)) from None
    masks = [_with_valid_mask(where, one, read.images, read.faults) for where, one in read.annotations]
    images, (numbered, categories) = _id_of_key(read.images), read.numbered_categories()
    source_ids = {one["id"]: {"source_id": one["source_id"]} for one in numbered if "source_id" in one}
    truth = {
        **content,
        "images": [{**one, "id": images[key]} for key, one in read.images.items() if one is not None],
        "categories": [
            {**one, "id": categories[key], **source_ids.get(categories[key], {})}
            for key, one in read.categories.items()
        ],
        "annotations": [
            {**one, "image_id": images[one["image_id"]], "category_id": categories[one["category_id"]]}
            for one in masks
        ],
    }
    left_out = [images[key] for key, one in read.images.items() if one is None]
    return {**truth, **({"left_out": left_out} if left_out else {})}, _notes(read.faults)


def _with_valid_mask(where, annotation, images, faults):
    """The annotation with its mask in normal form; without it, and with a remark, if the mask is invalid."""
    if "segmentation" not in annotation:
        return annotation
    image = images[annotation["image_id"]]
    try:
        mask = checked(annotation["segmentation"], image.get("height"), image.get("width"))
        return {**annotation, "segmentation": mask}
    except DataError as error:
        faults.remarks.append(Fault(where, f"kept without its mask: {error}"))
        return {key: value for key, value in annotation.items() if key != "segmentation"}


def _id_of_key(keys):
    """{id of the reader: id that can be sorted among the others}."""
    numbers = all(isinstance(key, int) for key in keys)
    return {key: key if numbers else str(key) for key in keys}


def _notes(faults):
    """A line for each kind of fault, with its number and the first."""
    kinds = (
        ("images left out", faults.images),
        ("annotations left out", faults.boxes),
        ("times", faults.remarks),
    )
    notes = []
    for what, of_kind in kinds:
        counts, first = Counter(fault.reason for fault in of_kind), {}
        for fault in of_kind:
            first.setdefault(fault.reason, fault.where)
        notes += [
            f"{count} {what}: {reason} (the first: {first[reason]})" for reason, count in counts.items()
        ]
    return notes


def read_results(content, truth: dict) -> tuple[list[dict], list[str]]:
    """Validates detections and converts their ids to those of the ground truth.

    Args:
        content: of the json file: a list in COCO results form; a data set in COCO form whose annotations
                 have scores; or what `kgarden predict` writes. The images and classes of the last two may
                 have other ids; they are joined by file name and class name.
        truth:   of `read_truth`.
    Returns:
        (results, notes): list in COCO results form; remarks for the user.
    """
    notes = []
    if is_prediction(content):
        content, notes = as_data_set(content, truth)
        if not content["annotations"]:
            return [], notes
    results = _entries(content)
    _check(results)
    results = [
        {**one, "image_id": as_id(one["image_id"]), "category_id": as_id(one["category_id"])}
        for one in _without_bad_masks(results)
    ]
    if isinstance(content, dict):
        results, more = _joined(content, results, truth)
        notes += more
    results, more = _of_truth(results, truth)
    notes += more
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


def _of_truth(results, truth):
    """Results with the ids of the ground truth, where they are the same number; none of left-out images."""
    images, categories = (
        {as_id(one.get("source_id", one["id"])): one["id"] for one in truth[key]}
        for key in ("images", "categories")
    )
    left_out = {as_id(one) for one in truth.get("left_out", ())}
    kept = [
        {
            **one,
            "image_id": images.get(as_id(one["image_id"]), one["image_id"]),
            "category_id": categories.get(as_id(one["category_id"]), one["category_id"]),
        }
        for one in results
        if as_id(one["image_id"]) not in left_out
    ]
    less = len(results) - len(kept)
    notes = [f"{less} detections left out: the ground truth leaves their images out"] if less else []
    return kept, notes


def _joined(content, results, truth):
    """Results of a data set with its own images and classes, converted to the ground truth's ids."""
    notes = []
    for part, key, name, what in (
        ("images", "image_id", "file_name", "images"),
        ("categories", "category_id", "name", "classes"),
    ):
        theirs = {as_id(id_): named for named, id_ in _named(content.get(part), name)}
        ours = dict(_named(truth[part], name))
        if part == "images":  # other systems write other paths for the same image
            theirs = _as_in(ours, theirs)
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


def _as_in(ours, theirs):
    """{id: name} with the names of the ground truth, unless two images would get the same."""
    known = Names(ours)
    renamed = {id_: known.get(name) or name for id_, name in theirs.items()}
    return renamed if len(set(renamed.values())) == len(renamed) else theirs


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
    return isinstance(value, str) or as_int(value) is not None


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _without_bad_masks(entries):
    """Entries with their masks in normal form, without invalid ones; their boxes can still be evaluated."""
    masks = [_mask_of(one) for one in entries]
    return [
        {key: value for key, value in one.items() if key != "segmentation"}
        | ({"segmentation": mask} if mask else {})
        for one, mask in zip(entries, masks, strict=True)
    ]


def _has_region(one):
    """Whether an entry has a valid box, or a valid mask if it has no box."""
    box = one.get("bbox")
    if box:
        return isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_coordinate, box))
    return _mask_of(one) is not None


def _is_coordinate(value):
    return _is_number(value) and abs(value) < ground_truth.LARGEST_SIDE


def _mask_of(one):
    """The segmentation of an entry in a form that pycocotools can be given, or None."""
    try:
        return checked(one.get("segmentation"))
    except DataError:
        return None
