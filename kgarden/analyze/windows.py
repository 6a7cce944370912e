"""Boxes in place of proposals: sliding windows around every object, and what a RoI head makes of them.

Wu et al. 2020, arXiv:1904.06493, section 3.1: about 14,000 boxes of known IoU for each object. The paper does
not say which; here nine widths times nine heights at 13 x 13 offsets, thirteen of the latter dense around the
object's centre, so that every interval of IoU has some (the object itself is one of them).
"""

import numpy as np
from keras import ops

from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, LABELS, SCORES, SIZE_HW, VALID

SIDES = (0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0)  # of a window, in sides of the object
OFFSETS = tuple(np.sign(u) * abs(u) ** 2.5 for u in np.linspace(-1.0, 1.0, 13))  # of its centre
SMALLEST_PX = 1.0  # a window of which less is left inside the image is dropped
CHUNK = 1000  # boxes that go through the RoI head together


def window_grid():
    """The windows of an object that is the unit square around 0.   (13689, 4) xyxy float64"""
    wide, high, right, down = (
        part.ravel() for part in np.meshgrid(SIDES, SIDES, OFFSETS, OFFSETS, indexing="ij")
    )
    return np.stack([right - wide / 2, down - high / 2, right + wide / 2, down + high / 2], axis=1)


def windows_around(box, size_hw, grid):
    """The windows of one object, cut off at the image's borders.

    IoUs are computed in sides of the object, where they are the same numbers for every object.

    Args:
        box:     (4,) xyxy px of the network input.
        size_hw: (2,) of the image inside the canvas.
        grid:    (W, 4) of `window_grid`, or rows of it.
    Returns:
        boxes: (n, 4) float32 px; iou: (n,) float64 with the object. n <= W.
    """
    box = np.asarray(box, "float64")
    center, sides = np.tile((box[:2] + box[2:]) / 2, 2), np.tile(box[2:] - box[:2], 2)
    border = (np.array([0, 0, *size_hw[::-1]]) - center) / sides
    low, high = np.tile(border[:2], 2), np.tile(border[2:], 2)
    inside = np.clip(grid, low, high)
    extent = inside[:, 2:] - inside[:, :2]
    kept = (extent * sides[:2] >= SMALLEST_PX).all(axis=1)
    inside, extent = inside[kept], extent[kept]
    own = np.clip([-0.5, -0.5, 0.5, 0.5], low, high)
    common = np.minimum(inside[:, 2:], own[2:]) - np.maximum(inside[:, :2], own[:2])
    common = np.maximum(common, 0.0).prod(axis=1)
    iou = common / (extent.prod(axis=1) + (own[2:] - own[:2]).prod() - common)
    return (inside * sides + center).astype("float32"), iou


class Pyramid(StaticShapeModel):
    """x -> the levels of a detector's neck."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        return self.detector.pyramid(x, training=False)


class HeadOnBoxes(StaticShapeModel):
    """A RoI head that is handed boxes, each with the object that it is compared with.

    Call:
        {"pyramid", "size_hw" (1, 2), "boxes" (1, P, 4), "labels" (1, P), "gt_boxes" (1, P, 4)}
    Returns:
        {"<answer>/score": (1, P) probability of the object's class,
        "<answer>/iou": (1, P) of the refined box of that class with the object}, for each answer of the head.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.built = True

    def call(self, x, training=False):
        boxes, labels = x[BOXES], x[LABELS]
        proposals = {BOXES: boxes, VALID: ops.ones_like(labels, dtype="bool")}
        raw = self.head(x["pyramid"], proposals, x[SIZE_HW], training=False)
        found = {}
        for name, answer in self.head.answers(raw, x[SIZE_HW]).items():
            if SCORES in answer:
                found[f"{name}/score"] = score_of(answer[SCORES], labels)
            if BOXES in answer:
                refined = box_of(answer[BOXES], labels)
                found[f"{name}/iou"] = box_ops.iou(refined[:, :, None], x["gt_boxes"][:, :, None])[..., 0, 0]
        return found


def score_of(scores, labels):
    """The score of each box's class.   (B, P, C), (B, P) -> (B, P)."""
    return ops.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]


def box_of(boxes, labels):
    """The box of each box's class, or the one for all.   (B, P, 4) or (B, P, C, 4), (B, P) -> (B, P, 4)."""
    if len(boxes.shape) == 3:
        return boxes
    return ops.take_along_axis(boxes, labels[..., None, None], axis=2)[:, :, 0]


class Windows:
    """Slides windows over the objects of a run's images.

    Args:
        per_object: so many windows of each object, drawn anew for each; None: all 13,689.
        seed:       of that draw, which depends on the object besides.
        chunk:      boxes that go through the RoI head together.
    """

    def __init__(self, per_object=None, seed=0, chunk=CHUNK):
        self.grid = window_grid()
        self.per_object = min(per_object or len(self.grid), len(self.grid))
        self.seed, self.chunk = seed, min(chunk, self.per_object)

    def over(self, subject, limit=None, progress=None):
        """For every object: (object, IoU of its windows (n,), {"<answer>/<what>": (n,)} of `HeadOnBoxes`).

        Args:
            subject:  LoadedRun with a RoI head.
            limit:    only the first so many images.
            progress: function of (images done, images in all).
        """
        features = ready_to_predict(Pyramid(subject.detector))
        head = ready_to_predict(HeadOnBoxes(subject.detector.roi_head))
        for done, (x, image_id, objects, boxes) in enumerate(subject.images(limit), start=1):
            if objects:
                size_hw = x[SIZE_HW][0]
                rows = [self._rows(image_id, number) for number in range(len(objects))]
                windows = [
                    windows_around(box, size_hw, self.grid[row]) for box, row in zip(boxes, rows, strict=True)
                ]
                found = self._ask(head, features.predict_on_batch(x), x[SIZE_HW], windows, objects, boxes)
                ends = np.cumsum([0] + [len(iou) for _, iou in windows])
                for one, (_, iou), start, end in zip(objects, windows, ends[:-1], ends[1:], strict=True):
                    yield one, iou, {key: value[start:end] for key, value in found.items()}
            if progress:
                progress(done, subject.known(limit))

    def _rows(self, image_id, number):
        """Which windows an object gets: the same for every run."""
        if self.per_object == len(self.grid):
            return slice(None)
        draw = np.random.default_rng([self.seed, image_id, number])
        return np.sort(draw.choice(len(self.grid), self.per_object, replace=False))

    def _ask(self, head, pyramid, size_hw, windows, objects, boxes):
        """All windows of an image in chunks of one size.   {"<answer>/<what>": (n of all objects,)}"""
        counts = [len(iou) for _, iou in windows]
        asked = {
            BOXES: np.concatenate([one for one, _ in windows]),
            LABELS: np.repeat(np.array([one["label"] for one in objects], "int32"), counts),
            "gt_boxes": np.repeat(boxes.astype("float32"), counts, axis=0),
        }
        total, parts = sum(counts), []
        for start in range(0, total, self.chunk):
            part = {key: value[start : start + self.chunk] for key, value in asked.items()}
            missing = self.chunk - len(part[LABELS])
            part = {key: np.concatenate([v, v[-1:].repeat(missing, axis=0)])[None] for key, v in part.items()}
            found = head.predict_on_batch({"pyramid": pyramid, SIZE_HW: size_hw, **part})
            parts.append({key: np.asarray(value)[0, : self.chunk - missing] for key, value in found.items()})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def windows_of_runs(subjects, windows, limit=None, progress=None):
    """(LoadedRun, object, IoUs, answers) of every object of every run; see `Windows.over`."""
    in_all = sum(subject.known(limit) for subject in subjects)
    before = 0
    for subject in subjects:

        def told(done, total, before=before):
            progress(before + done, in_all)

        for found in windows.over(subject, limit, told if progress else None):
            yield subject, *found
        before += subject.known(limit)
