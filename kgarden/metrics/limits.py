"""Objects beyond a limit: unmatched only because so many detections count, or are kept, and no more.

COCO judges the 100 highest-scoring detections of a class in an image, and a model keeps `selection.total`
detections of an image. An unmatched object is beyond a limit, and not missed, if

- a detection that no longer counts matches it, or
- its image has more objects than detections can count, or than the model keeps; of those, as many as are too
  many, the last ones of the ground truth.
"""

import dataclasses

import numpy as np

from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.matching import match


def limited(name: str, max_detections: int) -> str:
    """Returns the name of a metric under a limit: `ap` under COCO's own, `ap_max300` under another."""
    return name if max_detections == COCO_MAX_DETECTIONS else f"{name}_max{max_detections}"


def limit_of(name: str) -> tuple[str, int | None]:
    """Splits what `limited` returned: ("ap", 300); COCO's own limit, and none at all, are None."""
    base, _, limit = name.partition("_max")
    return base, int(limit) if limit else None


@dataclasses.dataclass(frozen=True)
class Beyond:
    """Objects beyond a limit, and the limits that would do.

    Args:
        objects:        (M,) bool.
        max_detections: that would do, per class and image; None: this limit cut nothing.
        per_image:      detections kept of an image that would do; None: this limit cut nothing.
    """

    objects: np.ndarray
    max_detections: int | None = None
    per_image: int | None = None


def beyond_limits(table, same, rank, unmatched) -> Beyond:
    """Finds the objects beyond a limit; see the head of this file.

    Args:
        table:     Table.
        same:      Pairs of detections and objects of one class that may match, of all detections, no crowds.
        rank:      (N,) position of each detection by score.
        unmatched: (M,) bool, the objects that are in question.
    """
    objects, detections = table.objects, table.detections
    num_classes = len(table.categories)
    beyond, limit = np.zeros(len(objects), bool), table.max_detections
    position = positions(detections, rank)
    would_do = None
    if (position >= limit).any():
        matched = match(same, rank, len(detections), len(objects))
        late = np.flatnonzero((matched >= 0) & (position >= limit))
        late = late[unmatched[matched[late]]]
        beyond[matched[late]] = True
        would_do = int(position[late].max()) + 1 if len(late) else None
    of_class = objects.image * num_classes + objects.label
    parts = {"objects": objects, "unmatched": unmatched, "beyond": beyond}
    too_many = _too_many(of_class, limit, **parts)
    would_do = max(filter(None, (would_do, too_many)), default=None)
    per_image = None
    if table.per_image is not None:
        per_image = _too_many(objects.image, table.per_image, **parts)
    return Beyond(beyond, would_do, per_image)


def exceeds_limits(table) -> bool:
    """Returns whether any image has more objects or detections than a limit allows."""
    objects, detections, num_classes = table.objects, table.detections, len(table.categories)
    real = ~objects.crowd
    return (
        _largest(detections.image * num_classes + detections.label) > table.max_detections
        or _largest((objects.image * num_classes + objects.label)[real]) > table.max_detections
        or (table.per_image is not None and _largest(objects.image[real]) > table.per_image)
    )


def most_matched(table) -> int:
    """Returns how many objects could be matched under the limits, whatever the detections."""
    objects, num_classes = table.objects, len(table.categories)
    of_class = (objects.image * num_classes + objects.label)[~objects.crowd]
    groups, counts = np.unique(of_class, return_counts=True)
    counts = np.minimum(counts, table.max_detections)
    if table.per_image is not None:
        counts = np.minimum(np.bincount(groups // max(num_classes, 1), counts), table.per_image)
    return int(counts.sum())


def _largest(group):
    return int(np.unique(group, return_counts=True)[1].max()) if len(group) else 0


def positions(detections, rank):
    """Returns the position of each detection among those of its class and image, 0 = best.   (N,)"""
    order = np.lexsort((rank, detections.label, detections.image))
    new = np.diff(detections.image[order], prepend=-1) | np.diff(detections.label[order], prepend=-1)
    start = np.maximum.accumulate(np.where(new != 0, np.arange(len(order)), 0))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - start
    return position


def _too_many(group, limit, *, objects, unmatched, beyond):
    """Adds to `beyond` the objects that a group has more than the limit; the largest such group's size."""
    real = np.flatnonzero(~objects.crowd)
    real, largest = real[np.argsort(group[real], kind="stable")], None
    for rows in np.split(real, np.flatnonzero(np.diff(group[real])) + 1):
        if len(rows) <= limit:
            continue
        free = rows[unmatched[rows] & ~beyond[rows]]
        more = max(len(rows) - limit - int(beyond[rows].sum()), 0)
        beyond[free[max(len(free) - more, 0) :]] = True
        if beyond[rows].any():
            largest = max(largest or 0, len(rows))
    return largest


def sentences(table, beyond: Beyond) -> list[str]:
    """States in plain sentences how many objects are beyond which limit, and which limit would do."""
    if not beyond.objects.any():
        return []
    image = table.objects.image[beyond.objects]
    where = f"{_number(len(image), 'object')} in {_number(len(np.unique(image)), 'image')}"
    what = f"{where} cannot be matched, which is not counted as missed"
    parts = []
    if beyond.max_detections:
        parts.append(
            f"{what}: only the first {table.max_detections} detections of a class in an image are judged; "
            f"evaluate.max_detections (--max-detections) {beyond.max_detections} would do; its AP is named "
            f"{limited('ap', beyond.max_detections)}."
        )
    if beyond.per_image:
        parts.append(
            f"{what}: the model keeps the first {table.per_image} detections of an image; "
            f"model.selection.total {beyond.per_image} would do."
        )
    return parts


def _number(count, what):
    return f"{count} {what}" + ("" if count == 1 else "s")
