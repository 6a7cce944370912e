"""Why is AP 0, or nearly, or nothing?   Causes that are found by trying what would match.

A cause is only named if the numbers show it: another reading of boxes or ids must find many times more
objects than the one that was used. Where there is no such cause, the answer says how near the boxes come.
"""

import pathlib
from collections import Counter

import numpy as np

from kgarden.metrics.arrays import image_sizes, neighbours, overlap, tabulate
from kgarden.metrics.box_formats import BOX_READINGS, scalings
from kgarden.metrics.coco import complete

NEARLY_ZERO = 1.0  # percent; below it, AP is answered with a cause
LOW_SCORE = 0.05  # detectors drop what is below
SHARE = 0.3  # a reading must find this share of the objects to be called a cause,
TIMES = 3  # and so many times what the present one finds
REACH = 0.5
PICTURES = 200  # that are looked at


def needs_explaining(evaluation):
    """Is the headline of a `measure` nothing, 0 or nearly 0?"""
    value = evaluation["metrics"][evaluation["headline"]]
    return value is None or value < NEARLY_ZERO


def explain(truth, results, image_ids=None, headline="ap"):
    """The cause of a low AP in plain sentences, the main one first.

    Args:
        truth:     ground truth in COCO form.
        results:   list in COCO results form.
        image_ids: the pictures that were judged; None: all of the ground truth.
        headline:  which number is low: for VOC's, difficult objects do not count.
    Returns:
        [sentence, ...], at least one.
    """
    for cause in (
        _nothing_to_find(truth, image_ids, headline),
        _nothing_said(results),
        unknown_pictures(truth, [one["image_id"] for one in results]),
        unknown_classes(truth, [one["category_id"] for one in results]),
    ):
        if cause:
            return [cause]
    table = _sample(tabulate(complete(truth), results, image_ids))
    if not len(table.detections):
        return ["None of the detections is of a picture that was judged."]
    sizes = image_sizes(truth, table.image_ids)
    return [_geometry(table, sizes) or _classes(table) or _distance(table), *_low_scores(results)]


# --- is there anything? -------------------------------------------------------------------------------


def _nothing_to_find(truth, image_ids, headline):
    listed = {one["id"] for one in truth["images"]}
    judged = listed if image_ids is None else set(image_ids)
    if not truth["annotations"]:
        return "The ground truth holds no objects at all."
    if not judged & listed:
        return (
            f"None of the {len(judged)} pictures that were judged is in the ground truth (judged: "
            f"{_some(judged)}; in the ground truth: {_some(listed)})."
        )
    objects = [one for one in truth["annotations"] if one["image_id"] in judged]
    if not objects:
        return f"The ground truth has no objects in the {len(judged & listed)} pictures that were judged."
    if all(one.get("iscrowd") for one in objects):
        return f"All {len(objects)} objects are crowd regions (iscrowd 1), which nobody is asked to find."
    asked = [one for one in objects if not one.get("iscrowd")]
    if headline.startswith("voc") and all(one.get("difficult") for one in asked):
        return f"All {len(asked)} objects are marked difficult, which PASCAL VOC leaves out."
    return None


def _nothing_said(results):
    if results:
        return None
    return (
        "There are no detections at all: no score is above the model's threshold. Either training has not "
        "come far, or the model's min_score is too high."
    )


def _low_scores(results):
    highest = max(one["score"] for one in results)
    if highest >= LOW_SCORE:
        return []
    return [
        f"All scores are below {LOW_SCORE} (the highest is {highest:.3g}): the model is sure of nothing yet."
    ]


# --- ids ------------------------------------------------------------------------------------------------


def unknown_pictures(truth, ids):
    """A sentence on image ids that the ground truth does not know, or None."""
    names = {str(one.get("file_name", "")): one["id"] for one in truth["images"]}
    stems = {pathlib.PurePath(name).stem: one for name, one in names.items()}
    listed = {one["id"] for one in truth["images"]}
    readings = {
        "read as file names": names.get,
        "read as file names without suffix": lambda one: stems.get(str(one)),
    }
    return _unknown("image", ids, listed, readings)


def unknown_classes(truth, ids):
    """A sentence on category ids that the ground truth does not know, or None."""
    names = {str(one.get("name", "")): one["id"] for one in truth["categories"]}
    listed = {one["id"] for one in truth["categories"]}
    return _unknown("category", ids, listed, {"read as class names": names.get})


def _unknown(kind, ids, listed, readings):
    """The sentence, with the first reading under which every id would be known."""
    found = set(ids)
    lost = found - listed
    if not lost:
        return None
    places = dict(enumerate(sorted(listed, key=_by_kind)))
    readings = {
        "turned into whole numbers": lambda one: int(one) if str(one).isdecimal() else None,
        "turned into text": str,
        **readings,
        "counted one higher": lambda one: one + 1 if isinstance(one, int) else None,
        "counted one lower": lambda one: one - 1 if isinstance(one, int) else None,
        "read as places in the list of ids, from 0": places.get,
        "read as places in the list of ids, from 1": lambda one: isinstance(one, int) and places.get(one - 1),
    }
    fit = next((words for words, read in readings.items() if all(read(one) in listed for one in found)), None)
    number = sum(one in lost for one in ids)
    return (
        f"{number} of {len(ids)} detections have {kind} ids that are not in the ground truth (theirs: "
        f"{_some(lost)}; the ground truth's: {_some(listed)})" + (f"; {fit}, all would be." if fit else ".")
    )


def _by_kind(one):
    return isinstance(one, str), one


def _some(values, count=3):
    chosen = sorted(values, key=_by_kind)[:count]
    return ", ".join(map(repr, chosen)) + (", …" if len(values) > count else "")


# --- boxes ------------------------------------------------------------------------------------------------


def _sample(table):
    """The first pictures with objects, and of their detections the surest: twice as many as objects.

    A detector that knows nothing covers any object with enough boxes; with few it does not.
    """
    objects, detections = table.objects, table.detections
    pictures = np.unique(objects.image[~objects.crowd])[:PICTURES]
    there = np.isin(objects.image, pictures) & ~objects.crowd
    allowed = 2 * np.bincount(objects.image[there], minlength=len(table.image_ids))
    order = detections.order()
    order = order[np.argsort(detections.image[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(detections.image[order], detections.image[order])
    kept = np.sort(order[place < allowed[detections.image[order]]])
    return type(table)(
        _rows(objects, np.flatnonzero(there)), _rows(detections, kept), table.categories, table.image_ids
    )


def _rows(part, rows):
    values = {name: value[rows] for name, value in vars(part).items() if isinstance(value, np.ndarray)}
    return type(part)(**values)


def best_overlaps(table, boxes=None, image=None, label=None):
    """The best IoU of each object with any detection, (M,), the detections read in another way.

    Args:
        boxes, image: of the detections, instead of the table's.
        label:        (N,) of the detections, to compare with those of its class only; None: with all.
    """
    objects, detections = table.objects, table.detections
    boxes = detections.boxes if boxes is None else boxes
    best = np.zeros(len(objects))
    for found, there in neighbours(detections.image if image is None else image, objects.image):
        if label is not None:
            same = label[found] == objects.label[there]
            found, there = found[same], there[same]
        np.maximum.at(best, there, overlap(boxes[found], objects.boxes[there]))
    return best


def _share(best):
    return float((best >= REACH).mean())


def _better(share, than):
    return share >= SHARE and share >= TIMES * than


def _geometry(table, sizes):
    """Boxes that fit if they are read in another way, or that lie outside their pictures."""
    plain = _share(best_overlaps(table))
    if plain >= SHARE:
        return None
    raw, hw = table.detections.boxes.copy(), sizes[table.detections.image]
    raw[:, 2:] -= raw[:, :2]  # x, y, width, height: as they stand in the results
    read = {words: _share(best_overlaps(table, boxes=of(raw, hw))) for words, of in BOX_READINGS.items()}
    words = max(read, key=read.get)
    if _better(read[words], plain):
        return _would_fit(plain, f"read as {words}", read[words])
    for step, words in [(1, "one higher"), (-1, "one lower")]:
        moved = _share(best_overlaps(table, image=table.detections.image + step))
        if _better(moved, plain):
            return _would_fit(plain, f"given to the picture {words} in the list of ids", moved)
    return _scaled(table, hw, plain) or _outside(table, hw)


def _would_fit(plain, change, share):
    return (
        f"The boxes do not fit: {_shown(plain)} of the objects are met at IoU {REACH}; {change}, "
        f"{_shown(share)} would be."
    )


def _scaled(table, hw, plain):
    best, words = 0.0, None
    for name, factors in scalings(hw):
        share = _share(best_overlaps(table, boxes=table.detections.boxes * factors))
        if share > best:
            best, words = share, name
    return _would_fit(plain, f"read as px of {words}", best) if _better(best, plain) else None


def _outside(table, hw):
    boxes = table.detections.boxes
    beyond = (boxes[:, 0] >= hw[:, 1]) | (boxes[:, 1] >= hw[:, 0]) | (boxes[:, 2:] <= 0).any(axis=1)
    share = float(beyond.mean())
    if share < 0.5:
        return None
    return f"{_shown(share)} of the boxes lie outside their pictures: they are not x, y, width, height in px."


# --- classes, and how near --------------------------------------------------------------------------------


def _classes(table):
    """Boxes that are right while their classes are not."""
    anyhow, label = _share(best_overlaps(table)), table.detections.label
    if anyhow < SHARE:
        return None
    plain = _share(best_overlaps(table, label=label))
    found = {
        words: _share(best_overlaps(table, label=relabel[label]))
        for words, relabel in _label_readings(table.categories).items()
    }
    words = max(found, key=found.get)
    if _better(found[words], plain) and found[words] > 0.7 * anyhow:
        return (
            f"The boxes fit, the classes do not: {_shown(plain)} of the objects are met by a box of their "
            f"class; with category ids {words}, {_shown(found[words])} would be."
        )
    if _better(anyhow, plain):
        return (
            f"The boxes fit, the classes do not: {_shown(anyhow)} of the objects are met at IoU {REACH}, "
            f"{_shown(plain)} by a box of their class; most often {_most_frequent_mistake(table)}."
        )
    return (
        f"{_shown(plain)} of the objects are met by a box of their class at IoU {REACH}, but wrong boxes "
        f"with higher scores stand before them."
    )


def _label_readings(categories):
    """{words: (C,) the label that each label's category id would have, -1: none}."""
    row_of = {category["id"]: row for row, category in enumerate(categories)}
    meant = {
        "one higher": lambda one: row_of.get(one + 1, -1),
        "one lower": lambda one: row_of.get(one - 1, -1),
        "read as places in the list of ids, from 0": lambda one: one if one < len(categories) else -1,
        "read as places in the list of ids, from 1": lambda one: one - 1 if one <= len(categories) else -1,
    }
    whole = [one if isinstance(one, int) else -2 for one in row_of]
    return {words: np.array([of(one) for one in whole]) for words, of in meant.items()}


def _most_frequent_mistake(table):
    objects, detections = table.objects, table.detections
    mistakes = Counter()
    for found, there in neighbours(detections.image, objects.image):
        wrong = overlap(detections.boxes[found], objects.boxes[there]) >= REACH
        wrong &= detections.label[found] != objects.label[there]
        pairs = zip(
            objects.label[there[wrong]].tolist(), detections.label[found[wrong]].tolist(), strict=True
        )
        mistakes.update(pairs)
    (meant, said), _ = mistakes.most_common(1)[0]
    return f"{table.categories[meant]['name']} is called {table.categories[said]['name']}"


def _distance(table):
    best = best_overlaps(table)
    mean = float(best.mean())
    how_near = f"the best box of an object has IoU {mean:.2f} with it on average"
    if mean >= 0.1:
        return (
            f"The boxes are near and not near enough: {how_near}, and {_shown(_share(best))} reach {REACH}. "
            f"Training has not come far yet."
        )
    return (
        f"Nothing matches: {how_near}, and no other reading of boxes or ids helps. The model has learnt "
        f"nothing yet, or the detections are of other pictures."
    )


def _shown(share):
    return f"{100 * share:.0f} %"
