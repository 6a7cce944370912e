"""Derived proposals of TSD: where its classifier and its regressor look, on the proposals of detections.

Song et al. 2020, arXiv:2003.07540, Fig. 5: the proposal P of a detection, the regressor's P_r and the centres
of the classifier's bins, P_c; and how far they are moved.
"""

import os
from collections.abc import Callable

import numpy as np
from keras import ops

from kgarden.analyze.compare import CELL, comparison_figure
from kgarden.analyze.loaded_runs import EVERY, SIZES, boxes_of, open_runs, size_of
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.errors import UserError
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.models.tsd import MOVED, OFFSETS, POINTS, TSDHead
from kgarden.models.tsd_cascade import TSDCascadeHead
from kgarden.ops.gather import gather
from kgarden.structures import BOXES, IMAGE_ID, IMAGES, LABELS, ORIGINAL_HW, SCORES, SIZE_HW, SOURCE, VALID
from kgarden.utils.fonts import missing_glyphs, shown_name
from kgarden.visualization.draw import color_of, draw_boxes, draw_points, scaled

YELLOW, RED, PINK, WHITE = (255, 221, 51), (222, 45, 38), (255, 105, 180), (255, 255, 255)
COLUMNS = ("delta_r_x", "delta_r_y", "delta_c_x", "delta_c_y", "outside")

READING = (
    "Yellow: proposals P of the highest-scoring detections. Red: the regressor's P_r, or the centres of its "
    "bins where each has an offset of its own. Pink: centres of the classifier's bins, P_c. Right: the "
    "detections, and ground truth in white. In the paper, P_r moves to the border that is difficult to "
    "regress, and P_c gathers on characteristic parts and context. With offsets near 0 TSD looks where a "
    "plain head does."
)


class DerivedProposals(StaticShapeModel):
    """Model that computes a detector's detections, and what TSD's tasks saw of the proposal of each.

    Call:
        x
    Returns:
        {"boxes", "scores", "labels", "valid": detections as in kgarden.structures, "stages": of
        `TSDHead.derived_proposals`, with K rows, those of the detections}.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        detector = self.detector
        raw = detector(x, training=False)
        proposals = detector.proposals(x, raw)
        seen = detector.refined(x, raw, proposals)
        candidates = detector.roi_head.candidates(seen, proposals, x[SIZE_HW])
        detections = detector.select(x, detector.fused(candidates, proposals))
        rows = ops.maximum(detections[SOURCE], 0)

        def of_detections(array):
            return gather(array, rows)

        stages = []
        for stage in detector.roi_head.derived_proposals(seen):
            of_tasks = {
                key: {task: of_detections(one) for task, one in stage[key].items()}
                for key in (POINTS, OFFSETS)
            }
            stages.append({**of_tasks, **{key: of_detections(stage[key]) for key in (BOXES, MOVED)}})
        return {**{key: detections[key] for key in (BOXES, SCORES, LABELS, VALID)}, "stages": stages}


def analyze_tsd(
    run: str | os.PathLike,
    to: str | os.PathLike,
    count: int = 4,
    most: int = 3,
    min_score: float = 0.3,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Draws TSD's derived proposals on validation images and measures their offsets.

    Args:
        run:       run directory of a detector with a TSD head, or with a cascade of them.
        to:        folder for tsd.csv, by_class.csv, tsd.png, tsd.svg and reading.txt.
        count:     number of images that are drawn, from the first.
        most:      number of detections that are drawn in an image, best first.
        min_score: smallest score of a detection that is drawn or counted.
        weights:   file to use instead of the run's best weights.
        limit:     number of images that are counted, from the first; None: all.
        progress:  function of (images done, images in total).
    Returns:
        {"rows": of tsd.csv, "reading": the paragraph}.
    Raises:
        UserError: the run has no TSD head with offsets, or no detection has the smallest score.
    """
    to = analysis_folder(to, ["tsd", "by_class"], ["tsd"])
    [loaded] = open_runs([run], weights)
    _check_head(loaded)
    names = [shown_name(category) for category in loaded.categories]
    moves, drawn = Moves(), {}
    images = seen = 0
    for x, image_id, original_hw, found in _images_of(loaded, limit):
        images += 1
        shown = best_rows(found, min_score)
        seen += len(shown)
        moves.add(found, shown, area_factor=float((original_hw / x[SIZE_HW]).prod()))
        if len(drawn) < count:
            truth = boxes_of(loaded.objects.get(image_id, []), x[SIZE_HW], original_hw)
            drawn[image_id] = drawings(x, found, shown[:most], truth=truth, names=names)
        if progress:
            progress(images, loaded.num_images(limit))
    if not seen:
        raise UserError(
            f"{run}: no detection scores {min_score:g} or more in {images} images; use --min-score"
        )
    rows, by_class = moves.rows_by_size(), moves.rows_by_class(loaded.categories)
    reading = " ".join(
        filter(None, (READING, describe(rows, images, min_score), missing_glyphs(loaded.categories)))
    )
    figures = {"tsd": comparison_figure(drawn)} if drawn else {}
    write_analysis(to, reading, {"tsd": rows, "by_class": by_class}, figures)
    return {"rows": rows, "reading": reading}


def _check_head(run):
    head, name = getattr(run.detector, "roi_head", None), run.recipe.model.name
    if not isinstance(head, TSDHead | TSDCascadeHead):
        raise UserError(f"{run.name}: {name} has no TSD head; use a run of tsd, tsd_cascade or roi_head: tsd")
    first = head.heads[0] if isinstance(head, TSDCascadeHead) else head
    if first.estimators is None:
        raise UserError(f"{run.name}: its TSD head moves nothing, classify_at and regress_at are null")


def _images_of(run, limit):
    """Yields (x, image_id, original_hw, outputs of DerivedProposals) of each image, without batches."""
    model = ready_to_predict(DerivedProposals(run.detector))
    for x, meta in run.data.val_batches(limit):
        x = {key: np.asarray(value) for key, value in x.items()}
        outputs = model.predict_on_batch(x)
        for row in np.flatnonzero(np.asarray(meta[IMAGE_ID]) >= 0):
            yield (
                {key: value[row] for key, value in x.items()},
                int(meta[IMAGE_ID][row]),
                np.asarray(meta[ORIGINAL_HW])[row],
                row_of(outputs, row),
            )


def row_of(outputs, row):
    """One image of nested outputs."""
    if isinstance(outputs, dict):
        return {key: row_of(value, row) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [row_of(value, row) for value in outputs]
    return np.asarray(outputs[row])


def best_rows(found: dict, min_score: float) -> np.ndarray:
    """Returns the rows of an image's detections that score at least `min_score`, best first."""
    rows = np.flatnonzero(found[VALID] & (found[SCORES] >= min_score))
    return rows[np.argsort(-found[SCORES][rows], kind="stable")]


# --- numbers ------------------------------------------------------------------------------------------------


class Moves:
    """Offsets of the proposals of detections, in sides of the proposal, by stage, size and class."""

    def __init__(self):
        self.labels, self.sizes, self.values = [], [], {}

    def add(self, found, shown, area_factor):
        """Adds detections of one image.

        Args:
            found:       outputs of DerivedProposals of an image.
            shown:       rows of it.
            area_factor: px^2 of the original image for one of the network input.
        """
        boxes = found[BOXES][shown]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * area_factor
        self.labels += found[LABELS][shown].tolist()
        self.sizes += [size_of(area) for area in areas]
        for number, stage in enumerate(found["stages"], start=1):
            self.values.setdefault(number, []).append(_values(stage, shown))

    def rows_by_size(self):
        """A row for each stage and size with detections, and for all detections of a stage."""
        sizes = np.array(self.sizes)
        groups = {size: sizes == size for size in SIZES} | {EVERY: np.full(len(sizes), True)}
        return self._rows("size", groups)

    def rows_by_class(self, categories):
        """A row for each stage and class with detections."""
        labels = np.array(self.labels)
        return self._rows("class", {one["name"]: labels == row for row, one in enumerate(categories)})

    def _rows(self, kind, groups):
        rows = []
        for number, parts in self.values.items():
            values = np.concatenate(parts)
            for name, members in groups.items():
                if members.any():
                    means = map(rounded, values[members].mean(axis=0))
                    row = {"stage": number, kind: name, "detections": int(members.sum())}
                    rows.append({**row, **dict(zip(COLUMNS, means, strict=True))})
        return rows


def _values(stage, shown):
    """(n, 5) of COLUMNS; NaN for a task without offsets."""
    offsets = {task: np.abs(one[shown]).mean(axis=(1, 2)) for task, one in stage[OFFSETS].items()}
    nothing = np.full((len(shown), 2), np.nan)
    outside = np.full(len(shown), np.nan)
    if "class" in stage[POINTS]:
        points, boxes = stage[POINTS]["class"][shown], stage[BOXES][shown][:, None, None]
        beyond = (points < boxes[..., :2]) | (points > boxes[..., 2:])
        outside = beyond.any(axis=-1).mean(axis=(1, 2))
    return np.column_stack([offsets.get("box", nothing), offsets.get("class", nothing), outside])


def describe(rows, images, min_score):
    """States the mean offsets of all detections, of a cascade's last stage."""
    row = [one for one in rows if one["size"] == EVERY][-1]
    parts = []
    for letter, what in (("r", "P_r is moved by"), ("c", "the bins of P_c are moved by")):
        x, y = row[f"delta_{letter}_x"], row[f"delta_{letter}_y"]
        if x is not None:
            parts.append(f"{what} {x:.1%} of P's width and {y:.1%} of its height on average")
    if row["outside"] is not None:
        parts.append(f"{row['outside']:.1%} of the centres of P_c's bins lie outside of P")
    stage = f" (stage {row['stage']})" if row["stage"] > 1 else ""
    counted = f"{row['detections']} detections of {images} images with a score of at least {min_score:g}"
    return f"{counted}{stage}: {', '.join(parts)}."


# --- drawing ------------------------------------------------------------------------------------------------


def drawings(x: dict, found: dict, shown: np.ndarray, *, truth: np.ndarray, names: list[str]) -> dict:
    """Draws the derived proposals of each stage, and the detections with the ground truth.

    Args:
        x:     of one image.
        found: outputs of `DerivedProposals` of this image.
        shown: rows of it, best first.
        truth: (N, 4) px of the network input.
        names: of the classes.
    Returns:
        {title: PIL.Image, CELL px along the longer side}.
    """
    height, width = x[SIZE_HW]
    image, _ = scaled(x[IMAGES][:height, :width], {BOXES: truth}, CELL)
    factor = CELL / max(height, width)
    cells, many = {}, len(found["stages"]) > 1
    for number, stage in enumerate(found["stages"], start=1):
        title = f"stage {number}: P, P_r, P_c" if many else "P, P_r and P_c"
        cells[title] = _draw_stage(image, stage, shown[::-1], factor)  # the best one on top
    boxes, labels, scores = (found[key][shown[::-1]] for key in (BOXES, LABELS, SCORES))
    colors = [WHITE] * len(truth) + [color_of(int(label)) for label in labels]
    texts = [f"{names[label]} {100 * score:.0f}" for label, score in zip(labels, scores, strict=True)]
    boxes = np.concatenate([truth, boxes]) * factor
    cells["detections and ground truth"] = draw_boxes(image, boxes, colors, [""] * len(truth) + texts)
    return cells


def _draw_stage(image, stage, rows, factor):
    moved = stage[OFFSETS].get("box")
    together = moved is not None and moved.shape[1:3] == (1, 1)  # P_r is a box
    boxes = [stage[BOXES][rows], *([stage[MOVED][rows]] if together else [])]
    colors = [YELLOW] * len(rows) + [RED] * (len(rows) if together else 0)
    drawing = draw_boxes(image, np.concatenate(boxes) * factor, colors)
    for task, color in (("box", RED), ("class", PINK)):
        if task in stage[POINTS] and not (task == "box" and together):
            draw_points(drawing, stage[POINTS][task][rows] * factor, color)
    return drawing
