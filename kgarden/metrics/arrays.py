"""Ground truth and detections as arrays, and which of them lie in the same picture.

Every measure beside pycocotools works on these: no loop over pictures or boxes.
Letters: M objects, N detections, P pairs of a detection and an object of one picture.
"""

import dataclasses

import numpy as np
from pycocotools import mask as mask_tools

from kgarden.errors import UserError

PAIRS_AT_ONCE = 2_000_000  # of one chunk; bounds the memory of `pairs`


@dataclasses.dataclass(frozen=True)
class Objects:
    """Ground truth.   boxes (M, 4) xyxy px; the others (M,).

    Args:
        image:     row of the picture.
        label:     row of the category.
        crowd:     a region that may hold many: nobody is asked to find it, who does so is not blamed.
        difficult: as PASCAL VOC marks objects; what it means is the metric's choice.
        group:     one box around several (Open Images' IsGroupOf).
        masks:     list of run-length codes, or None: boxes only.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    group: np.ndarray
    masks: list | None = None

    def __len__(self):
        return len(self.image)


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a detector said.   boxes (N, 4) xyxy px; image, label as in Objects; score (N,); masks or None."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    masks: list | None = None

    def __len__(self):
        return len(self.image)

    def order(self):
        """Rows from the surest on; equal scores by picture, then as given, as COCO has them."""
        return np.lexsort((np.arange(len(self)), self.image, -self.score))


@dataclasses.dataclass(frozen=True)
class Table:
    """Objects and detections of the same pictures.

    Args:
        objects, detections: as above.
        categories:          [{"id", "name"}, ...] by id; row = label.
        image_ids:           ids of the pictures, ascending; row = image.
    """

    objects: Objects
    detections: Detections
    categories: list
    image_ids: np.ndarray


def tabulate(truth, results, image_ids=None, iou_type="bbox"):
    """COCO dictionaries -> Table. What is not of these pictures and categories is left out, as COCO does.

    Args:
        truth:     ground truth in COCO form, complete (see `kgarden.metrics.coco.complete`).
        results:   list in COCO results form.
        image_ids: these pictures only; None: all.
        iou_type:  "segm" keeps masks too.
    """
    categories = [
        {"id": one["id"], "name": str(one.get("name", one["id"]))}
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

    there, found = kept(truth["annotations"]), kept(results)
    masks = {}
    if iou_type == "segm":
        size_of = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
        masks = {
            name: [run_lengths(e["segmentation"], size_of[e["image_id"]]) for e in entries]
            for name, entries in (("there", there), ("found", found))
        }
    objects = Objects(
        *columns(there),
        crowd=flags(there, "iscrowd"),
        difficult=flags(there, "difficult"),
        group=flags(there, "is_group_of", "isgroupof", "iscrowd"),
        masks=masks.get("there"),
    )
    score = np.array([e["score"] for e in found], np.float64)
    detections = Detections(*columns(found), score=score, masks=masks.get("found"))
    return Table(objects, detections, categories, np.array(image_ids))


def _xyxy(entries):
    boxes = np.array([box_of(e) for e in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def box_of(entry):
    """xywh px of an annotation or a result; where it has only a mask, the box around that."""
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
    """A segmentation in any of COCO's forms, polygons, counts, compressed counts -> compressed counts."""
    if isinstance(mask, list):
        return mask_tools.merge(mask_tools.frPyObjects(mask, *size_hw))
    if isinstance(mask["counts"], list):
        return mask_tools.frPyObjects(mask, *mask["size"])
    return mask


# --- pairs ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Detections and objects of the same picture.   All (P,).

    Args:
        found: row of the detections.
        there: row of the objects.
        iou:   their overlap; of a crowd, the share of the detection that lies in it.
    """

    found: np.ndarray
    there: np.ndarray
    iou: np.ndarray

    def __len__(self):
        return len(self.found)

    def where(self, kept):
        return Pairs(self.found[kept], self.there[kept], self.iou[kept])


def pairs(table, least=0.0, plus_one=False):
    """All pairs of a detection and an object that overlap.

    Args:
        table:    Table.
        least:    only pairs of at least this overlap, and of more than 0.
        plus_one: a box from 3 to 5 is 3 px wide, as VOC's first programs have it.
    """
    objects, detections = table.objects, table.detections
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for found, there in neighbours(detections.image, objects.image):
        if objects.masks is not None:
            iou = _mask_overlap(detections, objects, found, there)
        else:
            crowd = objects.crowd[there]
            iou = overlap(detections.boxes[found], objects.boxes[there], crowd, plus_one)
        kept = (iou > 0) & (iou >= least)
        parts.append(Pairs(found[kept], there[kept], iou[kept]))
    return Pairs(*(np.concatenate([getattr(part, f) for part in parts]) for f in ("found", "there", "iou")))


def neighbours(one, other):
    """Yields (rows of one, rows of other) of equal value, every such pair once, in chunks of bounded size."""
    order = np.argsort(other, kind="stable")
    first = np.searchsorted(other[order], one, "left")
    count = np.searchsorted(other[order], one, "right") - first
    ends = np.cumsum(count)
    begin = 0
    while begin < len(one):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
        counts = count[begin:end]
        rows = np.repeat(np.arange(begin, end), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[first[rows] + within]
        begin = end


def overlap(boxes, others, crowd=None, plus_one=False):
    """IoU of boxes, row by row; where `crowd` is true, the share of the first box that the second covers.

    Args:
        boxes, others: (P, 4) xyxy px.
        crowd:         (P,) bool or None.
    Returns:
        (P,) in [0, 1].
    """
    extra = 1.0 if plus_one else 0.0
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2]) + extra
    shared = np.maximum(sides, 0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1)
    whole = area + (others[:, 2:] - others[:, :2] + extra).prod(axis=1) - shared
    if crowd is not None:
        whole = np.where(crowd, area, whole)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _mask_overlap(detections, objects, found, there):
    """As `overlap`, of masks; pycocotools compares the masks of one picture at a time."""
    iou = np.zeros(len(found))
    image = detections.image[found]
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.diff(image[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else []:
        a, at_a = np.unique(found[rows], return_inverse=True)
        b, at_b = np.unique(there[rows], return_inverse=True)
        whole = mask_tools.iou(
            [detections.masks[n] for n in a],
            [objects.masks[n] for n in b],
            objects.crowd[b].astype(np.uint8).tolist(),
        )
        iou[rows] = whole[at_a, at_b]
    return iou


def image_sizes(truth, image_ids):
    """(I, 2) height and width of the pictures, px; NaN where the ground truth does not give them."""
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in truth["images"]}
    return np.array([sizes[one] for one in np.asarray(image_ids).tolist()], np.float64).reshape(-1, 2)


def need(entries, key, what):
    """UserError unless every entry has the key."""
    lacking = [n for n, entry in enumerate(entries) if not entry.get(key)]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(entries)} {what} have no usable {key} (the first is number {lacking[0]})"
        )
