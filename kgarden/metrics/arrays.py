"""Arrays of ground truth and detections, and the overlaps of those in the same image.

All metrics except COCO's, which pycocotools computes, work on these arrays, without loops over images or
boxes. Letters: M objects, N detections, P pairs of a detection and an object of one image.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from pycocotools import mask as mask_tools

from kgarden.errors import UserError

COCO_MAX_DETECTIONS = 100  # that COCO judges of a class in an image
PAIRS_PER_CHUNK = 2_000_000  # bounds the memory of `pairs`


@dataclasses.dataclass(frozen=True)
class Objects:
    """Ground truth.   boxes (M, 4) xyxy px; the others (M,).

    Args:
        image:     row of the image.
        label:     row of the category.
        crowd:     COCO's crowd regions: not counted as objects, and detections in them are ignored.
        difficult: PASCAL VOC's flag; each metric defines its meaning.
        group:     one box around several objects (Open Images' IsGroupOf).
        masks:     list of run-length codes, or None: boxes only.
        area:      px^2, as annotated; None: not known.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    group: np.ndarray
    masks: list | None = None
    area: np.ndarray | None = None

    def __len__(self):
        return len(self.image)


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detections.   boxes (N, 4) xyxy px; image, label as in Objects; score (N,); masks or None."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    masks: list | None = None

    def __len__(self):
        return len(self.image)

    def where(self, kept):
        """Returns the detections of a (N,) mask."""
        masks = self.masks and [self.masks[row] for row in np.flatnonzero(kept)]
        plain = (self.image[kept], self.label[kept], self.boxes[kept], self.score[kept])
        return Detections(*plain, masks=masks)

    def order(self):
        """Returns rows by descending score; ties by image, then in the given order, as in COCO."""
        return np.lexsort((np.arange(len(self)), self.image, -self.score))


@dataclasses.dataclass(frozen=True)
class Table:
    """Objects and detections of the same images.

    Args:
        objects, detections: as above.
        categories:          [{"id", "name"}, ...] by id; row = label.
        image_ids:           ids of the images, ascending; row = image.
        max_detections:      number of detections of a class in an image that count, best first.
        per_image:           number of detections that the model keeps of an image; None: not known.
        ancestors:           (C, C) bool, whether a class (row) is a subclass of another (column); None: the
                             classes have no hierarchy.
        verified:            (V, 3) image, label and 1 or 0, the verified image-level labels: whether objects
                             of the class are in the image; None: the ground truth has none.
        not_exhaustive:      (E, 2) image and label, classes of which not every object of the image has a box;
                             None: the ground truth does not say.
    """

    objects: Objects
    detections: Detections
    categories: list
    image_ids: np.ndarray
    max_detections: int = COCO_MAX_DETECTIONS
    per_image: int | None = None
    ancestors: np.ndarray | None = None
    verified: np.ndarray | None = None
    not_exhaustive: np.ndarray | None = None


def tabulate(
    truth: dict, results: list[dict], image_ids: Iterable | None = None, iou_type: str = "bbox"
) -> Table:
    """Converts COCO dictionaries to a Table; entries of other images and categories are dropped, as in COCO.

    Args:
        truth:     ground truth in COCO form, complete (see `kgarden.metrics.evaluation_table.complete`).
        results:   list in COCO results form.
        image_ids: these images only; None: all.
        iou_type:  "bbox", or "segm" to convert masks as well.
    """
    categories = [
        {
            "id": one["id"],
            "name": str(one.get("name", one["id"])),
            **({"frequency": one["frequency"]} if "frequency" in one else {}),
        }
        for one in sorted(truth["categories"], key=lambda one: one["id"])
    ]
    known = {one["id"] for one in truth["images"]}
    image_ids = sorted(known if image_ids is None else known & set(image_ids))
    image_of = {one: row for row, one in enumerate(image_ids)}
    label_of = {one["id"]: row for row, one in enumerate(categories)}

    def kept(entries):
        return [e for e in entries if e["image_id"] in image_of and e["category_id"] in label_of]

    def columns(entries):
        image = np.array([image_of[e["image_id"]] for e in entries], np.int64)
        label = np.array([label_of[e["category_id"]] for e in entries], np.int64)
        return image, label, _xyxy(entries)

    def flags(entries, *names):
        first = [next((e[name] for name in names if name in e), 0) for e in entries]
        return np.array([bool(one) for one in first], bool)

    annotations, results = kept(truth["annotations"]), kept(results)
    object_masks = result_masks = None
    if iou_type == "segm":
        size_of = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
        object_masks, result_masks = (
            [run_lengths(e["segmentation"], size_of[e["image_id"]]) for e in entries]
            for entries in (annotations, results)
        )
    objects = Objects(
        *columns(annotations),
        crowd=flags(annotations, "iscrowd"),
        difficult=flags(annotations, "difficult"),
        group=flags(annotations, "is_group_of", "isgroupof", "iscrowd"),
        masks=object_masks,
        area=np.array([e.get("area", np.nan) for e in annotations], np.float64),
    )
    score = np.array([e["score"] for e in results], np.float64)
    detections = Detections(*columns(results), score=score, masks=result_masks)
    return Table(
        objects,
        detections,
        categories,
        np.array(image_ids),
        ancestors=_ancestors(truth["categories"], label_of),
        verified=_verified(truth["images"], image_of, label_of),
        not_exhaustive=_not_exhaustive(truth["images"], image_of, label_of),
    )


def _ancestors(categories, label_of):
    """(C, C) bool of "ancestors" of the categories, or None if none has this key."""
    if not any("ancestors" in one for one in categories):
        return None
    above = np.zeros((len(label_of), len(label_of)), bool)
    for one in categories:
        above[label_of[one["id"]], [label_of[a] for a in one.get("ancestors", ()) if a in label_of]] = True
    return above


def _verified(images, image_of, label_of):
    """(V, 3) of "pos_category_ids" and "neg_category_ids" of the images, or None if none has these keys."""
    kinds = (("pos_category_ids", 1), ("neg_category_ids", 0))
    if not any(key in one for one in images for key, _ in kinds):
        return None
    rows = [
        (image_of[one["id"]], label_of[category], present)
        for one in images
        if one["id"] in image_of
        for key, present in kinds
        for category in one.get(key, ())
        if category in label_of
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _not_exhaustive(images, image_of, label_of):
    """(E, 2) of "not_exhaustive_category_ids" of the images, or None if none has this key."""
    key = "not_exhaustive_category_ids"
    if not any(key in one for one in images):
        return None
    rows = [
        (image_of[one["id"]], label_of[category])
        for one in images
        if one["id"] in image_of
        for category in one.get(key, ())
        if category in label_of
    ]
    return np.array(rows, np.int64).reshape(-1, 2)


def _xyxy(entries):
    boxes = np.array([box_of(e) for e in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def box_of(entry):
    """Returns the box of an annotation or result, xywh px; without a box, the bounding box of its mask."""
    if entry.get("bbox"):
        return entry["bbox"]
    mask = entry["segmentation"]
    if isinstance(mask, dict) and isinstance(mask["counts"], str | bytes):
        return mask_tools.toBbox(mask).tolist()
    if isinstance(mask, dict):
        return mask_tools.toBbox(mask_tools.frPyObjects(mask, *mask["size"])).tolist()
    xy = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
    return [*xy.min(axis=0).tolist(), *np.ptp(xy, axis=0).tolist()]


def run_lengths(mask, size_hw):
    """Converts any of COCO's segmentations (polygons, counts, compressed counts) to compressed counts."""
    if isinstance(mask, list):
        return mask_tools.merge(mask_tools.frPyObjects(mask, *size_hw))
    if isinstance(mask["counts"], list):
        return mask_tools.frPyObjects(mask, *mask["size"])
    return mask


# --- pairs ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Detections and objects of the same image.   All (P,).

    Args:
        detection: row of the detections.
        object:    row of the objects.
        iou:       their IoU; for a crowd, the fraction of the detection that lies in it.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray

    def __len__(self):
        return len(self.detection)

    def where(self, kept):
        return Pairs(self.detection[kept], self.object[kept], self.iou[kept])


def pairs(table, least=0.0, plus_one=False):
    """Computes the overlaps of all detections and objects of the same image.

    Args:
        table:    Table.
        least:    smallest overlap of a returned pair; pairs without overlap are never returned.
        plus_one: a box from 3 to 5 is 3 px wide, as in the first VOC development kits.
    """
    objects, detections = table.objects, table.detections
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, gt_rows in equal_pairs(detections.image, objects.image):
        if objects.masks is not None:
            iou = _mask_overlap(detections, objects, rows, gt_rows)
        else:
            crowd = objects.crowd[gt_rows]
            iou = overlap(detections.boxes[rows], objects.boxes[gt_rows], crowd, plus_one)
        kept = (iou > 0) & (iou >= least)
        parts.append(Pairs(rows[kept], gt_rows[kept], iou[kept]))
    fields = ("detection", "object", "iou")
    return Pairs(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def equal_pairs(one, other):
    """Yields (rows of one, rows of other) of equal value, each pair once, in chunks of bounded size."""
    order = np.argsort(other, kind="stable")
    first = np.searchsorted(other[order], one, "left")
    count = np.searchsorted(other[order], one, "right") - first
    ends = np.cumsum(count)
    begin = 0
    while begin < len(one):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_PER_CHUNK, "right")))
        counts = count[begin:end]
        rows = np.repeat(np.arange(begin, end), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[first[rows] + within]
        begin = end


def overlap(boxes, others, crowd=None, plus_one=False):
    """Computes the IoU of boxes row by row; with `crowd`, the fraction of the first box that is covered.

    Args:
        boxes, others: (P, 4) xyxy px.
        crowd:         (P,) bool or None.
    Returns:
        (P,) in [0, 1].
    """
    extra = 1.0 if plus_one else 0.0
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2]) + extra
    intersection = np.maximum(sides, 0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1)
    union = area + (others[:, 2:] - others[:, :2] + extra).prod(axis=1) - intersection
    if crowd is not None:
        union = np.where(crowd, area, union)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _mask_overlap(detections, objects, detection_rows, object_rows):
    """As `overlap`, of masks; pycocotools compares the masks of one image at a time."""
    iou = np.zeros(len(detection_rows))
    image = detections.image[detection_rows]
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.diff(image[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else []:
        a, at_a = np.unique(detection_rows[rows], return_inverse=True)
        b, at_b = np.unique(object_rows[rows], return_inverse=True)
        matrix = mask_tools.iou(
            [detections.masks[n] for n in a],
            [objects.masks[n] for n in b],
            objects.crowd[b].astype(np.uint8).tolist(),
        )
        iou[rows] = matrix[at_a, at_b]
    return iou


def image_sizes(truth, image_ids):
    """Returns (I, 2) height and width of the images, px; NaN where the ground truth has none."""
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in truth["images"]}
    return np.array([sizes[one] for one in np.asarray(image_ids).tolist()], np.float64).reshape(-1, 2)


def require(entries, key, what):
    """Raises UserError unless every entry has the key."""
    lacking = [n for n, entry in enumerate(entries) if not entry.get(key)]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(entries)} {what} have no usable {key} (the first is number {lacking[0]})"
        )
