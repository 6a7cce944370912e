"""Side-by-side comparison: detections of several heads, or several runs, on the same images.

Wu et al. 2020, arXiv:1904.06493, Figs. A.4 and A.5: fc-head, conv-head and both, side by side.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from kgarden.analyze.loaded_runs import open_runs
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.errors import UserError
from kgarden.inference.predictor import compiled_inference
from kgarden.metrics.figures import INK, figure_of
from kgarden.models.double_head import FIG_8
from kgarden.structures import BOXES, IMAGES, LABELS, SCORES, SIZE_HW, VALID
from kgarden.utils.fonts import missing_glyphs, shown_name
from kgarden.visualization.draw import LABELS_OF_TRUTH, check_labels, draw_detections, draw_truth, scaled

CELL = 440  # px of an image's longer side in the figure
DPI = 110  # of figures

# Predictions of a model with two branches, Fig. 8 (a), (b) and (d); the last one combines both.
COLUMNS = {
    "fc-head alone": FIG_8["b"],
    "conv-head alone": FIG_8["a"],
    "both: classes fused, boxes of conv": FIG_8["d"],
}

READING = (
    "Rows are images; columns are the ground truth and the detections of each head or run, with scores in "
    "percent. Look for objects that one head detects and the other misses, for parts detected as whole "
    "objects (their scores should be low), and for inaccurate boxes."
)


def analyze_compare(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    count: int = 6,
    ids: Sequence[int] | None = None,
    min_score: float = 0.3,
    weights: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
    labels: str = "name",
) -> dict:
    """Draws detections on the same images side by side.

    Args:
        runs:      run directories; several: a column for each. One: a column for each branch of its head.
        to:        folder for compare.csv, compare.png, compare.svg and reading.txt.
        count:     number of validation images, from the first.
        ids:       image ids, instead of the first images.
        min_score: smallest score of a drawn detection.
        weights:   file to use instead of a run's best weights.
        progress:  function of (images done, images in total).
        labels:    what is written at a box: "none", "score", or "name" and score.
    Returns:
        {"rows": of the table, "reading": the paragraph}.
    Raises:
        UserError: an image does not exist, or the runs have different images.
    """
    check_labels(labels)
    truth_labels = labels if labels in LABELS_OF_TRUTH else "name"
    to = analysis_folder(to, ["compare"], ["compare"])
    loaded = open_runs(runs, weights)
    missing = [str(one) for one in ids or [] if one not in loaded[0].image_ids()]
    if missing:
        raise UserError(f"--ids {','.join(missing)}: no such image in data.val of {runs[0]}")
    columns = _columns(loaded, runs, weights)
    names = [category["name"] for category in loaded[0].categories]
    legible = [shown_name(category) for category in loaded[0].categories]
    drawn, rows, done = {}, [], 0
    total = len(columns) * (len(ids) if ids else min(count, loaded[0].num_images()))
    for column, run in columns.items():
        model = compiled_inference(run.detector)
        for x, image_id, objects, boxes in _chosen(run, count, ids):
            detections = {key: np.asarray(value)[0] for key, value in model.predict_on_batch(x).items()}
            height, width = x[SIZE_HW][0]
            image = x[IMAGES][0, :height, :width]
            truth = {BOXES: boxes, LABELS: np.array([one["label"] for one in objects], "int32")}
            cells = drawn.setdefault(image_id, {})
            if not cells:
                cells["ground truth"] = draw_truth(*scaled(image, truth, CELL), legible, truth_labels)
            shown = scaled(image, _without_masks(detections), CELL)
            cells[column] = draw_detections(*shown, legible, min_score=min_score, labels=labels)
            rows += [[image_id, column, *row] for row in _rows(detections, names, min_score)]
            done += 1
            if progress:
                progress(done, total)
    head = ("image_id", "column", "class", "score", "x0", "y0", "x1", "y1")
    reading = " ".join(filter(None, (READING, missing_glyphs(loaded[0].categories))))
    write_analysis(to, reading, {"compare": (head, rows)}, {"compare": comparison_figure(drawn)})
    return {"rows": rows, "reading": reading}


def _columns(loaded, runs, weights):
    """{title of a column: LoadedRun}."""
    if len(loaded) > 1:
        return {run.name: run for run in loaded}
    head = getattr(loaded[0].detector, "roi_head", None)
    trained_for = getattr(head, "is_trained_for", lambda **_: False)
    columns = {name: settings for name, settings in COLUMNS.items() if trained_for(**settings)}
    if len(columns) < 2:
        return {loaded[0].name: loaded[0]}

    def with_settings(settings):
        overrides = {f"model.roi_head.{key}": value for key, value in settings.items()}
        return open_runs(runs, weights, overrides)[0]

    return {name: with_settings(settings) for name, settings in columns.items()}


def _chosen(run, count, ids):
    """Items of `LoadedRun.images`, the first ones or those of the given ids."""
    left = set(ids) if ids else None
    for item in run.images(None if ids else count):
        if left is None or item[1] in left:
            yield item
            left = left and left - {item[1]}
            if left is not None and not left:
                return


def _without_masks(detections):
    return {key: detections[key] for key in (BOXES, SCORES, LABELS, VALID)}


def _rows(detections, names, min_score):
    """[[class, score, x0, y0, x1, y1], ...] of one image."""
    shown = np.flatnonzero(detections[VALID] & (detections[SCORES] >= min_score))
    return [
        [names[detections[LABELS][row]], rounded(detections[SCORES][row])]
        + [rounded(side, 2) for side in detections[BOXES][row]]
        for row in shown
    ]


def comparison_figure(drawn):
    """Draws a row for each image.   drawn: {image id: {column: PIL.Image}}."""
    columns = list(next(iter(drawn.values())))
    heights = [max(image.height for image in cells.values()) for cells in drawn.values()]
    result = figure_of((CELL + 16) * len(columns) / DPI, (sum(heights) + 26 * len(heights) + 24) / DPI)
    grid = result.subplots(len(drawn), len(columns), squeeze=False, height_ratios=heights)
    for axes, (image_id, cells) in zip(grid, drawn.items(), strict=True):
        for ax, column in zip(axes, columns, strict=True):
            ax.imshow(cells[column], interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            for edge in ax.spines.values():
                edge.set_visible(False)
        axes[0].set_ylabel(f"image {image_id}", fontsize=9, color=INK)
    for ax, column in zip(grid[0], columns, strict=True):
        ax.set_title(column, fontsize=11, color=INK, loc="left")
    return result
