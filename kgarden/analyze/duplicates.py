"""Duplicates, and the score maps behind them: what a learned selection takes away.

Zhou et al. 2021 (PSS), arXiv:2101.11782, Fig. 2: the scores of a one-to-many detector are high all over an
object, so that many boxes answer for it and NMS is needed; times the scores of the PSS branch one place is
left. Counted here as well: pairs of detections of one class that overlap.
"""

import collections
import pathlib

import keras
import numpy as np
from keras import ops

from kgarden.analyze.outputs import write_analysis
from kgarden.build import load_run, prepare_data
from kgarden.errors import UserError
from kgarden.heads.dense import DenseHead
from kgarden.heads.selection import Selection
from kgarden.metrics.figures import BLUES, figure_of, png_of
from kgarden.models.base.one_stage import OneStage
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops.boxes import iou
from kgarden.structures import BOXES, IMAGE_ID, IMAGES, LABELS, SCORES, SIZE_HW, VALID
from kgarden.utils.files import replace_file

OVERLAP = 0.7  # IoU above which two detections of a class are duplicates,
SCORE = 0.3  # if both have more than this score
MOST = 1000  # detections of an image that are looked at, best first

READING = (
    f"A duplicate is a pair of detections of one class with IoU > {OVERLAP} and both scores > {SCORE}. "
    "'all places' are the detector's own scores without any suppression: the pairs that NMS has to remove. "
    "'NMS' is what is left of them after it. 'selected' are the scores times those of the learned selection, "
    "without NMS: near 0 it has learned to answer once for each object. In the images the first row shows "
    "the highest score of a class at each place, level by level; the second the same times the selection: "
    "blobs should have become points."
)


class Ways(StaticShapeModel):
    """A dense detector asked in several ways at once.

    Args:
        detector: OneStage; a selection of its own (PSS, DeFCN's kind) is found by `base`.
    Call:
        x: {"images", "size_hw"}.
    Returns:
        {"found/<way>": (B,) detections above SCORE, "pairs/<way>": (B,) duplicates,
        "maps/<way>": list over levels of (B, H_l, W_l) scores, the highest class and anchor}.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.base = _base_of(detector)
        limits = dict(score_threshold=SCORE, per_level=MOST, total=MOST)
        every = Selection(method="none", **limits)
        self.ways = {
            "all places": (self.base, every),
            "NMS": (self.base, Selection(method="nms", iou=detector.selection.iou, **limits)),
        }
        if self.base is not detector.dense_head:
            self.ways["selected"] = (detector.dense_head, every)
        self.built = True

    def call(self, x, training=False):
        raw = self.detector(x, training=False)
        answer = {}
        for name, (head, selection) in self.ways.items():
            candidates = head.candidates(raw, x[SIZE_HW])
            found = selection(_by_score(candidates))
            answer[f"found/{name}"] = ops.sum(ops.cast(found[VALID], "int32"), axis=1)
            answer[f"pairs/{name}"] = duplicates(found)
            if name != "NMS":
                answer[f"maps/{name}"] = score_maps(candidates)
        return answer


def _by_score(candidates):
    """The same candidates, chosen by nothing but their score."""
    return {
        key: value for key, value in candidates.items() if key not in ("ranking_scores", "threshold_scores")
    }


def duplicates(found):
    """Pairs of detections of one class whose boxes overlap.

    Args:
        found: detections as kgarden.structures has them, all above SCORE.
    Returns:
        (B,) int32.
    """
    boxes, labels, valid = found[BOXES], found[LABELS], found[VALID]
    near = iou(boxes, boxes) > OVERLAP
    same = (labels[:, :, None] == labels[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    first = ops.arange(boxes.shape[1])[:, None] < ops.arange(boxes.shape[1])[None, :]
    return ops.sum(ops.cast(near & same & first, "int32"), axis=(1, 2))


def score_maps(candidates):
    """The highest score at each cell.   list over levels of (B, H_l, W_l)."""
    best = ops.max(candidates[SCORES], axis=-1)
    maps, start = [], 0
    for height, width, anchors in candidates["levels"]:
        stop = start + height * width * anchors
        of_level = ops.reshape(best[:, start:stop], (-1, height, width, anchors))
        maps.append(ops.max(of_level, axis=-1))
        start = stop
    return maps


def analyze_duplicates(run, to, weights=None, limit=None, images=4):
    """Count duplicates of a run's detector on its validation data and draw its score maps.

    Args:
        run:      directory of a run with a dense detector.
        to:       folder for duplicates.csv, reading.txt and maps_<image id>.png.
        weights:  another file than the run's best weights.
        limit:    only the first so many images.
        images: how many score maps are drawn.
    Returns:
        [{"way", "images", "detections_per_image", "duplicates_per_image"}, ...]
    Raises:
        UserError: the run has no dense detector.
    """
    recipe, detector, _ = load_run(run, weights)
    if not isinstance(detector, OneStage) or not isinstance(_base_of(detector), DenseHead):
        raise UserError(f"{run}: {recipe.model.name} has no dense head whose scores could be shown")
    data = prepare_data(recipe, cache=pathlib.Path(run) / "data", splits=("val",))
    to = pathlib.Path(to)
    model = ready_to_predict(Ways(detector))
    totals, images = collections.Counter(), 0
    for x, meta in data.val_batches(limit):
        x = {key: np.asarray(value) for key, value in x.items()}
        answer = keras.tree.map_structure(np.asarray, model.predict_on_batch(x))
        ids = np.asarray(meta[IMAGE_ID])
        real = np.flatnonzero(ids >= 0)
        totals.update({key: int(answer[key][real].sum()) for key in answer if not key.startswith("maps/")})
        for row in real[: max(images - images, 0)]:
            replace_file(to / f"maps_{ids[row]}.png", png_of(_drawn(x, answer, row)))
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
    """The dense head itself, without what is laid on top of it."""
    return getattr(detector.dense_head, "base", detector.dense_head)


def _drawn(x, answer, row):
    """The image, and a row of score maps for each way."""
    ways = [key for key in answer if key.startswith("maps/")]
    levels = len(answer[ways[0]])
    height, width = x[IMAGES][row].shape[:2]
    tall = 2.2 * height / width + 0.35
    figure = figure_of(2.2 * (levels + 1), tall * len(ways) + 0.2)
    grid = figure.subplots(len(ways), levels + 1, squeeze=False)
    for cells, way in zip(grid, ways, strict=True):
        cells[0].imshow(x[IMAGES][row])
        cells[0].set_title(way.removeprefix("maps/"), fontsize=9, loc="left")
        for number, cell in enumerate(cells[1:]):
            scores = answer[way][number][row]
            cell.imshow(scores, cmap=BLUES, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            cell.set_title(f"level {number + 1}: {scores.max():.2f} at most", fontsize=8, loc="left")
        for cell in cells:
            cell.set_axis_off()
    return figure
