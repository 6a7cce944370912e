"""Diagnosis of near-zero AP: finds the cause by testing other interpretations of boxes, ids and classes.

A cause is named only if the numbers show it: another interpretation must match many times more objects than
the given one. Without such a cause, the diagnosis states how close the boxes come to the objects.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

from kgarden.metrics.arrays import equal_pairs, image_sizes, overlap
from kgarden.metrics.box_formats import BOX_FORMATS, scalings
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.limits import most_matched
from tfrecords.image_names import Names
from tfrecords.plausibility import findings

NEARLY_ZERO = 1.0  # percent; a lower headline is diagnosed
LOW_SCORE = 0.05  # usual score threshold of detectors
MIN_MATCHED = 0.3  # an interpretation is a cause if it matches this fraction of the objects,
MIN_FACTOR = 3  # and this many times what the given one matches
MATCH_IOU = 0.5
MAX_IMAGES = 200  # images that the diagnosis uses


def needs_explaining(evaluation):
    """Returns whether the headline metric of an evaluation is undefined, 0 or nearly 0."""
    value = evaluation["metrics"][evaluation["headline"]]
    return value is None or value < NEARLY_ZERO


def explain(
    truth: dict, results: list[dict], image_ids: Iterable | None = None, headline: str = "ap"
) -> list[str]:
    """Diagnoses a low AP; see `explain_table`.

    Args:
        truth:     ground truth in COCO form.
        results:   list in COCO results form.
        image_ids: the evaluated images; None: all of the ground truth.
        headline:  the low metric.
    """
    return explain_table(EvaluationTable(truth, results, image_ids), headline)


def explain_table(evaluation: EvaluationTable, headline: str = "ap") -> list[str]:
    """Diagnoses a low AP in plain sentences, the main cause first: mistakes of the data set, if it has any.

    Args:
        evaluation: EvaluationTable.
        headline:   the low metric; for VOC's, difficult objects do not count.
    Returns:
        [sentence, ...], at least one.
    """
    mistakes = [one.sentence for one in findings(evaluation.facts) if one.kind == "mistake"]
    return mistakes + _causes(evaluation, headline, known=bool(mistakes))


def _causes(evaluation, headline, known):
    """The causes that the detections show; `known`: there is one already, so that finding none is no news."""
    truth, results = evaluation.ground_truth, evaluation.results
    for cause in (
        _no_objects(truth, evaluation.image_ids, headline),
        _no_detections(results),
        unknown_images(truth, [one["image_id"] for one in results]),
        unknown_classes(truth, [one["category_id"] for one in results]),
        _limited(evaluation.arrays(), headline),
    ):
        if cause:
            return [cause]
    table = _sample(evaluation.arrays())
    if not len(table.detections):
        return ["None of the detections is in an evaluated image."]
    sizes = image_sizes(truth, table.image_ids)
    cause = _geometry(table, sizes) or _classes(table) or (None if known else _distance(table))
    return [*([cause] if cause else []), *_low_scores(results)]


# --- missing objects or detections --------------------------------------------------------------------------


def _no_objects(truth, image_ids, headline):
    listed = {one["id"] for one in truth["images"]}
    evaluated = listed if image_ids is None else set(image_ids)
    if not truth["annotations"]:
        return "The ground truth contains no objects."
    if not evaluated & listed:
        return (
            f"None of the {len(evaluated)} evaluated images is in the ground truth (evaluated: "
            f"{_some(evaluated)}; in the ground truth: {_some(listed)})."
        )
    objects = [one for one in truth["annotations"] if one["image_id"] in evaluated]
    if not objects:
        return f"The ground truth has no objects in the {len(evaluated & listed)} evaluated images."
    classes = {one["id"] for one in truth["categories"]}
    if not any(one["category_id"] in classes for one in objects):
        return (
            f"None of the {len(objects)} objects is of a class that the ground truth lists (category ids of "
            f"the objects: {_some({one['category_id'] for one in objects})}; listed: {_some(classes)})."
        )
    objects = [one for one in objects if one["category_id"] in classes]
    if all(one.get("iscrowd") for one in objects):
        return f"All {len(objects)} objects are crowd regions (iscrowd 1), which do not count as objects."
    objects = [one for one in objects if not one.get("iscrowd")]
    if headline.startswith("voc") and all(one.get("difficult") for one in objects):
        return f"All {len(objects)} objects are marked difficult, which PASCAL VOC ignores."
    return None


def _no_detections(results):
    if results:
        return None
    return (
        "There are no detections: no score exceeds the model's threshold. Either the model needs more "
        "training, or its min_score is too high."
    )


def _limited(table, headline):
    number, possible = int((~table.objects.crowd).sum()), most_matched(table)
    if not headline.startswith("ap") or possible >= MIN_MATCHED * number:
        return None
    judged = f"the first {table.max_detections} detections of a class in an image are judged"
    limits = [f"{judged} (evaluate.max_detections)"]
    if table.per_image is not None:
        limits.append(f"the model keeps {table.per_image} of an image (model.selection.total)")
    return f"At most {possible} of {number} objects can be matched: {', and '.join(limits)}."


def _low_scores(results):
    highest = max(one["score"] for one in results)
    if highest >= LOW_SCORE:
        return []
    return [
        f"All scores are below {LOW_SCORE} (the highest is {highest:.3g}): the model is not confident yet."
    ]


# --- ids ------------------------------------------------------------------------------------------------


def unknown_images(truth, ids):
    """Describes image ids that are not in the ground truth; None if there are none."""
    ids_of = {str(one["file_name"]): one["id"] for one in truth["images"] if one.get("file_name")}
    names, stems = Names(ids_of), Names(ids_of, ending=False)
    listed = {one["id"] for one in truth["images"]}
    conversions = {
        "read as file names": lambda one: ids_of.get(names.get(str(one))),
        "read as file names without suffix": lambda one: ids_of.get(stems.get(str(one))),
    }
    return _unknown("image", ids, listed, conversions)


def unknown_classes(truth, ids):
    """Describes category ids that are not in the ground truth; None if there are none."""
    names = {str(one.get("name", "")): one["id"] for one in truth["categories"]}
    listed = {one["id"] for one in truth["categories"]}
    return _unknown("category", ids, listed, {"read as class names": names.get})


def _unknown(kind, ids, listed, conversions):
    """The sentence, with the first conversion that maps every id to a known one."""
    distinct = set(ids)
    unknown = distinct - listed
    if not unknown:
        return None
    positions = dict(enumerate(sorted(listed, key=_by_type)))
    conversions = {
        "converted to integers": lambda one: int(one) if str(one).isdecimal() else None,
        "converted to strings": str,
        **conversions,
        "increased by one": lambda one: one + 1 if isinstance(one, int) else None,
        "decreased by one": lambda one: one - 1 if isinstance(one, int) else None,
        "read as positions in the list of ids, from 0": positions.get,
        "read as positions in the list of ids, from 1": lambda one: (
            isinstance(one, int) and positions.get(one - 1)
        ),
    }
    fixes = (name for name, convert in conversions.items() if all(convert(one) in listed for one in distinct))
    fix = next(fixes, None)
    number = sum(one in unknown for one in ids)
    return (
        f"{number} of {len(ids)} detections have {kind} ids that are not in the ground truth (detections: "
        f"{_some(unknown)}; ground truth: {_some(listed)})" + (f"; {fix}, all would be." if fix else ".")
    )


def _by_type(one):
    return isinstance(one, str), one


def _some(values, count=3):
    chosen = sorted(values, key=_by_type)[:count]
    return ", ".join(map(repr, chosen)) + (", …" if len(values) > count else "")


# --- boxes ------------------------------------------------------------------------------------------------


def _sample(table):
    """The first images with objects, and their highest-scoring detections, twice as many as objects.

    With enough boxes, even an untrained detector covers every object.
    """
    objects, detections = table.objects, table.detections
    images = np.unique(objects.image[~objects.crowd])[:MAX_IMAGES]
    of_images = np.isin(objects.image, images) & ~objects.crowd
    allowed = 2 * np.bincount(objects.image[of_images], minlength=len(table.image_ids))
    order = detections.order()
    order = order[np.argsort(detections.image[order], kind="stable")]
    position = np.arange(len(order)) - np.searchsorted(detections.image[order], detections.image[order])
    kept = np.sort(order[position < allowed[detections.image[order]]])
    objects, detections = _rows(objects, np.flatnonzero(of_images)), _rows(detections, kept)
    return dataclasses.replace(table, objects=objects, detections=detections)


def _rows(part, rows):
    values = {name: value[rows] for name, value in vars(part).items() if isinstance(value, np.ndarray)}
    return type(part)(**values)


def best_overlaps(table, boxes=None, image=None, label=None):
    """Computes the best IoU of each object with any detection, best first, (M,).

    Objects that no detection could match under the limits are left out, those of the smallest IoU.

    Args:
        boxes, image: of the detections; None: the table's.
        label:        (N,) of the detections, to compare objects with their own class; None: with all classes.
    """
    objects, detections = table.objects, table.detections
    boxes = detections.boxes if boxes is None else boxes
    best = np.zeros(len(objects))
    for rows, gt_rows in equal_pairs(detections.image if image is None else image, objects.image):
        if label is not None:
            same = label[rows] == objects.label[gt_rows]
            rows, gt_rows = rows[same], gt_rows[same]
        np.maximum.at(best, gt_rows, overlap(boxes[rows], objects.boxes[gt_rows]))
    return np.sort(best)[::-1][: most_matched(table)]


def _matched(best):
    """Fraction of the objects whose best IoU is MATCH_IOU or more."""
    return float((best >= MATCH_IOU).mean())


def _is_cause(matched, given):
    return matched >= MIN_MATCHED and matched >= MIN_FACTOR * given


def _geometry(table, sizes):
    """Diagnoses boxes in another format, of another image or scale, or outside their images."""
    given = _matched(best_overlaps(table))
    if given >= MIN_MATCHED:
        return None
    raw, hw = table.detections.boxes.copy(), sizes[table.detections.image]
    raw[:, 2:] -= raw[:, :2]  # x, y, width, height: the numbers of the results
    matched = {
        name: _matched(best_overlaps(table, boxes=convert(raw, hw))) for name, convert in BOX_FORMATS.items()
    }
    name = max(matched, key=matched.get)
    if _is_cause(matched[name], given):
        return _would_match(given, f"read as {name}", matched[name])
    for step, name in [(1, "next"), (-1, "previous")]:
        moved = _matched(best_overlaps(table, image=table.detections.image + step))
        if _is_cause(moved, given):
            return _would_match(given, f"assigned to the {name} image in the list of ids", moved)
    return _scaled(table, hw, given) or _outside(table, hw)


def _would_match(given, change, matched):
    return (
        f"The boxes do not match: {_shown(given)} of the objects are matched at IoU {MATCH_IOU}; {change}, "
        f"{_shown(matched)} would be."
    )


def _scaled(table, hw, given):
    best, best_name = 0.0, None
    for name, factors in scalings(hw):
        matched = _matched(best_overlaps(table, boxes=table.detections.boxes * factors))
        if matched > best:
            best, best_name = matched, name
    return _would_match(given, f"read as px of {best_name}", best) if _is_cause(best, given) else None


def _outside(table, hw):
    boxes = table.detections.boxes
    outside = (boxes[:, 0] >= hw[:, 1]) | (boxes[:, 1] >= hw[:, 0]) | (boxes[:, 2:] <= 0).any(axis=1)
    fraction = float(outside.mean())
    if fraction < 0.5:
        return None
    return (
        f"{_shown(fraction)} of the boxes lie outside their images: they are not x, y, width, height in px."
    )


# --- classes and distances ------------------------------------------------------------------------------


def _classes(table):
    """Diagnoses boxes that match objects of other classes."""
    any_class, label = _matched(best_overlaps(table)), table.detections.label
    if any_class < MIN_MATCHED:
        return None
    same_class = _matched(best_overlaps(table, label=label))
    matched = {
        name: _matched(best_overlaps(table, label=relabel[label]))
        for name, relabel in _relabelings(table.categories).items()
    }
    name = max(matched, key=matched.get)
    if _is_cause(matched[name], same_class) and matched[name] > 0.7 * any_class:
        return (
            f"The boxes match, the classes do not: {_shown(same_class)} of the objects are matched by a box "
            f"of their class; with category ids {name}, {_shown(matched[name])} would be."
        )
    if _is_cause(any_class, same_class):
        return (
            f"The boxes match, the classes do not: {_shown(any_class)} of the objects are matched at IoU "
            f"{MATCH_IOU}, {_shown(same_class)} by a box of their class; most often "
            f"{_most_frequent_mistake(table)}."
        )
    return (
        f"{_shown(same_class)} of the objects are matched by a box of their class at IoU {MATCH_IOU}, but "
        f"wrong boxes have higher scores."
    )


def _relabelings(categories):
    """{name: (C,) label that each label's category id would have, -1: none}."""
    row_of = {category["id"]: row for row, category in enumerate(categories)}
    conversions = {
        "increased by one": lambda one: row_of.get(one + 1, -1),
        "decreased by one": lambda one: row_of.get(one - 1, -1),
        "read as positions in the list of ids, from 0": lambda one: one if one < len(categories) else -1,
        "read as positions in the list of ids, from 1": lambda one: one - 1 if one <= len(categories) else -1,
    }
    ids = [one if isinstance(one, int) else -2 for one in row_of]
    return {name: np.array([convert(one) for one in ids]) for name, convert in conversions.items()}


def _most_frequent_mistake(table):
    objects, detections = table.objects, table.detections
    mistakes = Counter()
    for rows, gt_rows in equal_pairs(detections.image, objects.image):
        wrong = overlap(detections.boxes[rows], objects.boxes[gt_rows]) >= MATCH_IOU
        wrong &= detections.label[rows] != objects.label[gt_rows]
        gt_labels = objects.label[gt_rows[wrong]].tolist()
        mistakes.update(zip(gt_labels, detections.label[rows[wrong]].tolist(), strict=True))
    (gt_label, predicted), _ = mistakes.most_common(1)[0]
    return f"{table.categories[gt_label]['name']} is predicted as {table.categories[predicted]['name']}"


def _distance(table):
    best = best_overlaps(table)
    mean = float(best.mean())
    mean_iou = f"the best box of an object has IoU {mean:.2f} with it on average"
    if mean >= 0.1:
        return (
            f"The boxes are close, but not close enough: {mean_iou}, and {_shown(_matched(best))} reach "
            f"{MATCH_IOU}. The model needs more training."
        )
    return (
        f"Nothing matches: {mean_iou}, and no other interpretation of boxes or ids helps. The model is "
        f"untrained, or the detections belong to other images."
    )


def _shown(fraction):
    return f"{100 * fraction:.0f} %"
