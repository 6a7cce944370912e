"""Sliding windows: boxes of known IoU around every object, and a RoI head's predictions on them.

Wu et al. 2020, arXiv:1904.06493, section 3.1: about 14,000 boxes of known IoU for each object. The paper does
not specify them. Here they are nine widths times nine heights at 13 x 13 offsets, which are denser near the
object's centre, so that every interval of IoU has windows (the object's own box is one of them).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from keras import ops

from kgarden.analyze.loaded_runs import LoadedRun
from kgarden.inference.batching import pad_batch
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, LABELS, SCORES, SIZE_HW, VALID

SIDES = (0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0)  # of a window, relative to the object
OFFSETS = tuple(np.sign(u) * abs(u) ** 2.5 for u in np.linspace(-1.0, 1.0, 13))  # of its centre
MIN_SIDE_PX = 1.0  # windows with a smaller side inside the image are dropped
CHUNK = 1000  # boxes per batch of the RoI head


def window_grid() -> np.ndarray:
    """Computes the windows of the unit square centred at 0.   (13689, 4) xyxy float64"""
    w, h, x, y = (axis.ravel() for axis in np.meshgrid(SIDES, SIDES, OFFSETS, OFFSETS, indexing="ij"))
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)


def windows_around(box, size_hw, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the windows of one object, clipped to the image, and their IoU with it.

    IoUs are computed relative to the object's sides, so that they are the same numbers for every object.

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
    kept = (extent * sides[:2] >= MIN_SIDE_PX).all(axis=1)
    inside, extent = inside[kept], extent[kept]
    own = np.clip([-0.5, -0.5, 0.5, 0.5], low, high)
    common = np.minimum(inside[:, 2:], own[2:]) - np.maximum(inside[:, :2], own[:2])
    common = np.maximum(common, 0.0).prod(axis=1)
    iou = common / (extent.prod(axis=1) + (own[2:] - own[:2]).prod() - common)
    return (inside * sides + center).astype("float32"), iou


class Pyramid(StaticShapeModel):
    """Model that computes a detector's pyramid, the levels of its neck."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        return self.detector.pyramid(x, training=False)


class HeadOnBoxes(StaticShapeModel):
    """Model that runs a RoI head on given boxes and compares its predictions with one object per box.

    Call:
        {"pyramid", "size_hw" (1, 2), "boxes" (1, P, 4), "labels" (1, P), "gt_boxes" (1, P, 4)}
    Returns:
        {"<branch>/score": (1, P) probability of the object's class,
        "<branch>/iou": (1, P) IoU of the refined box of that class with the object}, for the head's own
        prediction and that of each branch.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.built = True

    def call(self, x, training=False):
        boxes, labels = x[BOXES], x[LABELS]
        proposals = {BOXES: boxes, VALID: ops.ones_like(labels, dtype="bool")}
        raw = self.head(x["pyramid"], proposals, x[SIZE_HW], training=False)
        outputs = {}
        for name, prediction in self.head.branch_predictions(raw, x[SIZE_HW]).items():
            if SCORES in prediction:
                outputs[f"{name}/score"] = score_of(prediction[SCORES], labels)
            if BOXES in prediction:
                refined = box_of(prediction[BOXES], labels)
                iou = box_ops.iou(refined[:, :, None], x["gt_boxes"][:, :, None])
                outputs[f"{name}/iou"] = iou[..., 0, 0]
        return outputs


def score_of(scores, labels):
    """Gathers the score of each box's class.   (B, P, C), (B, P) -> (B, P)."""
    return ops.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]


def box_of(boxes, labels):
    """Gathers the refined box of each box's class.   (B, P, 4) or (B, P, C, 4), (B, P) -> (B, P, 4)."""
    if len(boxes.shape) == 3:
        return boxes
    return ops.take_along_axis(boxes, labels[..., None, None], axis=2)[:, :, 0]


class Windows:
    """Slides windows over the objects of a run's images.

    Args:
        per_object: number of windows per object, a random sample for each; None: all 13,689.
        seed:       of the samples, which depend on the image and the object as well.
        chunk:      boxes per batch of the RoI head.
    """

    def __init__(self, per_object: int | None = None, seed: int = 0, chunk: int = CHUNK):
        self.grid = window_grid()
        self.per_object = min(per_object or len(self.grid), len(self.grid))
        self.seed, self.chunk = seed, min(chunk, self.per_object)

    def over(
        self, run: LoadedRun, limit: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple]:
        """Yields (object, IoU of its windows (n,), {"<branch>/<what>": (n,)} of `HeadOnBoxes`) per object.

        Args:
            run:      LoadedRun with a RoI head.
            limit:    number of images, from the first; None: all.
            progress: function of (images done, images in total).
        """
        features = ready_to_predict(Pyramid(run.detector))
        head = ready_to_predict(HeadOnBoxes(run.detector.roi_head))
        for done, (x, image_id, objects, boxes) in enumerate(run.images(limit), start=1):
            if objects:
                size_hw = x[SIZE_HW][0]
                rows = [self._rows(image_id, number) for number in range(len(objects))]
                windows = [
                    windows_around(box, size_hw, self.grid[row]) for box, row in zip(boxes, rows, strict=True)
                ]
                counts = [len(iou) for _, iou in windows]
                inputs = {
                    BOXES: np.concatenate([window for window, _ in windows]),
                    LABELS: np.repeat(np.array([one["label"] for one in objects], "int32"), counts),
                    "gt_boxes": np.repeat(boxes.astype("float32"), counts, axis=0),
                }
                image = {"pyramid": features.predict_on_batch(x), SIZE_HW: x[SIZE_HW]}
                values = self._predict(head, image, inputs)
                ends = np.cumsum([0, *counts])
                for one, (_, iou), start, end in zip(objects, windows, ends[:-1], ends[1:], strict=True):
                    yield one, iou, {key: value[start:end] for key, value in values.items()}
            if progress:
                progress(done, run.num_images(limit))

    def _rows(self, image_id, number):
        """Rows of the grid for one object, the same for every run."""
        if self.per_object == len(self.grid):
            return slice(None)
        rng = np.random.default_rng([self.seed, image_id, number])
        return np.sort(rng.choice(len(self.grid), self.per_object, replace=False))

    def _predict(self, head, image, inputs):
        """Runs the head on all windows of an image, in chunks of one size.   {"<branch>/<what>": (n,)}"""
        total, chunks = len(inputs[LABELS]), []
        for start in range(0, total, self.chunk):
            chunk = {key: value[start : start + self.chunk] for key, value in inputs.items()}
            count = len(chunk[LABELS])
            chunk = {key: value[None] for key, value in pad_batch(chunk, self.chunk).items()}
            values = head.predict_on_batch({**image, **chunk})
            chunks.append({key: np.asarray(value)[0, :count] for key, value in values.items()})
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def windows_of_runs(
    runs: Sequence[LoadedRun],
    windows: Windows,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple]:
    """Yields (LoadedRun, object, IoUs, predictions) of every object of every run; see `Windows.over`."""
    total = sum(run.num_images(limit) for run in runs)
    before = 0
    for run in runs:

        def report(done, _, before=before):
            progress(before + done, total)

        for values in windows.over(run, limit, report if progress else None):
            yield run, *values
        before += run.num_images(limit)
