"""Duplicate detections and score maps of dense detectors, with NMS, without it, and with learned selection.

Zhou et al. 2021 (PSS), arXiv:2101.11782, Fig. 2: the scores of a one-to-many detector are high all over an
object, so that it predicts many boxes for it and needs NMS. Multiplied with the scores of the PSS branch, one
point remains. The analysis also counts overlapping pairs of detections of the same class.
"""

import collections
import os
import pathlib

import keras
import numpy as np
from keras import ops

from kgarden.analyze.outputs import analysis_folder, write_analysis
from kgarden.build import load_run, prepare_data
from kgarden.errors import UserError
from kgarden.heads.dense import DenseHead
from kgarden.heads.selection import Selection
from kgarden.metrics.figures import BLUES, figure_of, png_of
from kgarden.models.base.one_stage import OneStage
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops.boxes import iou
from kgarden.structures import BOXES, IMAGE_ID, IMAGES, LABELS, SCORES, SIZE_HW, VALID

DUPLICATE_IOU = 0.7  # two detections of a class with a larger IoU are duplicates
MIN_SCORE = 0.3  # of the counted detections
MAX_DETECTIONS = 1000  # per image, best first

READING = (
    f"A duplicate is a pair of detections of one class with IoU > {DUPLICATE_IOU} and both scores > "
    f"{MIN_SCORE}. 'all places': the detector's scores without suppression, with the pairs that NMS has to "
    "remove. 'NMS': the pairs that remain after NMS. 'selected': scores multiplied with those of the learned "
    "selection, without NMS; a value near 0 means that it selects each object once. In the images, the first "
    "row shows the highest class score at each point, level by level; the second row the same multiplied "
    "with the selection, which should reduce blobs to single points."
)


class SelectionComparison(StaticShapeModel):
    """Model that applies several selections to the predictions of a dense detector.

    Args:
        detector: OneStage; a head with a learned selection (PSS, DeFCN) has an attribute `base`.
    Call:
        x: {"images", "size_hw"}.
    Returns:
        {"found/<way>": (B,) detections above MIN_SCORE, "pairs/<way>": (B,) duplicates,
        "maps/<way>": list over levels of (B, H_l, W_l) scores, the highest class and anchor}.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.base = _base_of(detector)
        limits = dict(score_threshold=MIN_SCORE, per_level=MAX_DETECTIONS, total=MAX_DETECTIONS)
        no_suppression = Selection(method="none", **limits)
        self.ways = {
            "all places": (self.base, no_suppression),
            "NMS": (self.base, Selection(method="nms", iou=detector.selection.iou, **limits)),
        }
        if self.base is not detector.dense_head:
            self.ways["selected"] = (detector.dense_head, no_suppression)
        self.built = True

    def call(self, x, training=False):
        raw = self.detector(x, training=False)
        outputs = {}
        for name, (head, selection) in self.ways.items():
            candidates = head.candidates(raw, x[SIZE_HW])
            detections = selection(_by_score(candidates))
            outputs[f"found/{name}"] = ops.sum(ops.cast(detections[VALID], "int32"), axis=1)
            outputs[f"pairs/{name}"] = duplicates(detections)
            if name != "NMS":
                outputs[f"maps/{name}"] = score_maps(candidates)
        return outputs


def _by_score(candidates):
    """The same candidates, ranked by their score alone."""
    return {
        key: value for key, value in candidates.items() if key not in ("ranking_scores", "threshold_scores")
    }


def duplicates(detections: dict):
    """Counts pairs of detections of the same class whose boxes overlap.

    Args:
        detections: as defined in kgarden.structures, all above MIN_SCORE.
    Returns:
        (B,) int32.
    """
    boxes, labels, valid = detections[BOXES], detections[LABELS], detections[VALID]
    near = iou(boxes, boxes) > DUPLICATE_IOU
    same = (labels[:, :, None] == labels[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    first = ops.arange(boxes.shape[1])[:, None] < ops.arange(boxes.shape[1])[None, :]
    return ops.sum(ops.cast(near & same & first, "int32"), axis=(1, 2))


def score_maps(candidates: dict) -> list:
    """Computes the highest score at each point.   list over levels of (B, H_l, W_l)."""
    best = ops.max(candidates[SCORES], axis=-1)
    maps, start = [], 0
    for height, width, anchors in candidates["levels"]:
        stop = start + height * width * anchors
        of_level = ops.reshape(best[:, start:stop], (-1, height, width, anchors))
        maps.append(ops.max(of_level, axis=-1))
        start = stop
    return maps


def analyze_duplicates(
    run: str | os.PathLike,
    to: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    num_maps: int = 4,
) -> list[dict]:
    """Counts duplicates of a run's detector on its validation data and draws its score maps.

    Args:
        run:      run directory of a dense detector.
        to:       folder for duplicates.csv, reading.txt and maps_<image id>.png.
        weights:  file to use instead of the run's best weights.
        limit:    number of images, from the first; None: all.
        num_maps: number of images whose score maps are drawn.
    Returns:
        [{"way", "images", "detections_per_image", "duplicates_per_image"}, ...]
    Raises:
        UserError: the run has no dense detector.
    """
    to = analysis_folder(to, ["duplicates"])
    recipe, detector, _ = load_run(run, weights)
    if not isinstance(detector, OneStage) or not isinstance(_base_of(detector), DenseHead):
        raise UserError(f"{run}: {recipe.model.name} has no dense head; use a run of a one-stage detector")
    data = prepare_data(recipe, cache=pathlib.Path(run) / "data", splits=("val",))
    model = ready_to_predict(SelectionComparison(detector))
    totals, images = collections.Counter(), 0
    for x, meta in data.val_batches(limit):
        x = {key: np.asarray(value) for key, value in x.items()}
        outputs = keras.tree.map_structure(np.asarray, model.predict_on_batch(x))
        ids = np.asarray(meta[IMAGE_ID])
        real = np.flatnonzero(ids >= 0)
        totals.update({key: int(outputs[key][real].sum()) for key in outputs if not key.startswith("maps/")})
        for row in real[: max(num_maps - images, 0)]:
            to.write(f"maps_{ids[row]}.png", png_of(_figure(x, outputs, row)))
        images += len(real)
    rows = [
        {
            "way": way,
            "images": images,
            "detections_per_image": round(totals[f"found/{way}"] / images, 3),
            "duplicates_per_image": round(totals[f"pairs/{way}"] / images, 3),
        }
        for way in model.ways
    ]
    write_analysis(to, READING, {"duplicates": rows})
    return rows


def _base_of(detector):
    """The dense head without the learned selection around it."""
    return getattr(detector.dense_head, "base", detector.dense_head)


def _figure(x, outputs, row):
    """A row for each way: the image and its score maps."""
    ways = [key for key in outputs if key.startswith("maps/")]
    levels = len(outputs[ways[0]])
    height, width = x[IMAGES][row].shape[:2]
    tall = 2.2 * height / width + 0.35
    figure = figure_of(2.2 * (levels + 1), tall * len(ways) + 0.2)
    grid = figure.subplots(len(ways), levels + 1, squeeze=False)
    for cells, way in zip(grid, ways, strict=True):
        cells[0].imshow(x[IMAGES][row])
        cells[0].set_title(way.removeprefix("maps/"), fontsize=9, loc="left")
        for number, cell in enumerate(cells[1:]):
            scores = outputs[way][number][row]
            cell.imshow(scores, cmap=BLUES, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            cell.set_title(f"level {number + 1}: max {scores.max():.2f}", fontsize=8, loc="left")
        for cell in cells:
            cell.set_axis_off()
    return figure
