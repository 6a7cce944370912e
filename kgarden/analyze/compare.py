"""The same images as several heads, or several runs, see them.

Wu et al. 2020, arXiv:1904.06493, Figs. A.4 and A.5: fc-head, conv-head and both, side by side.
"""

import numpy as np

from kgarden.analyze.loaded_runs import open_runs
from kgarden.analyze.outputs import rounded, write_analysis
from kgarden.errors import UserError
from kgarden.inference.predictor import compiled_inference
from kgarden.metrics.figures import INK, figure_of
from kgarden.structures import BOXES, IMAGES, LABELS, SCORES, SIZE_HW, VALID
from kgarden.visualization.draw import draw_detections, draw_truth, scaled

CELL = 440  # px of an image's longer side in the figure
DPI = 110  # of figures

# Answers of one model with two branches, Fig. 8 (a), (b) and (d): the last one is theirs together.
ANSWERS = {"fc": "fc-head alone", "conv": "conv-head alone", "fused": "both: classes fused, boxes of conv"}

READING = (
    "Rows are images, columns the ground truth and what each head or run answers, with scores in "
    "percent. Look for objects that one head finds and the other one misses, for parts of objects taken "
    "for whole ones (the score should be low), and for boxes that end beside their object."
)


def analyze_compare(runs, to, images=6, ids=None, min_score=0.3, weights=None, progress=None):
    """Draw images side by side.

    Args:
        runs:      directories; several: one column for each. One: a column for each answer that it can give.
        to:        folder for compare.csv, compare.png, compare.svg and reading.txt.
        images:  the first so many of the validation data.
        ids:       image ids instead.
        min_score: detections below are left out.
        weights:   another file than a run's best weights.
        progress:  function of (images done, images in all).
    Returns:
        {"rows": of the table, "reading": the paragraph}.
    Raises:
        UserError: no such image, or runs on different ones.
    """
    opened = open_runs(runs, weights)
    missing = [str(one) for one in ids or [] if one not in opened[0].image_ids()]
    if missing:
        raise UserError(f"--ids {','.join(missing)}: no such image in data.val of {runs[0]}")
    subjects = _columns(opened, runs, weights)
    names = [category["name"] for category in opened[0].categories]
    drawn, rows, done = {}, [], 0
    in_all = len(subjects) * (len(ids) if ids else min(images, opened[0].known()))
    for column, subject in subjects.items():
        model = compiled_inference(subject.detector)
        for x, image_id, objects, boxes in _chosen(subject, images, ids):
            found = {key: np.asarray(value)[0] for key, value in model.predict_on_batch(x).items()}
            height, width = x[SIZE_HW][0]
            image = x[IMAGES][0, :height, :width]
            truth = {BOXES: boxes, LABELS: np.array([one["label"] for one in objects], "int32")}
            cells = drawn.setdefault(image_id, {})
            if not cells:
                cells["ground truth"] = draw_truth(*scaled(image, truth, CELL), names)
            cells[column] = draw_detections(*scaled(image, _boxes_alone(found), CELL), names, min_score)
            rows += _rows(image_id, column, found, names, min_score)
            done += 1
            if progress:
                progress(done, in_all)
    head = ("image_id", "column", "class", "score", "x0", "y0", "x1", "y1")
    write_analysis(to, READING, {"compare": (head, rows)}, {"compare": figure(drawn)})
    return {"rows": rows, "reading": READING}


def _columns(subjects, runs, weights):
    """{what a column shows: LoadedRun}."""
    if len(subjects) > 1:
        return {subject.name: subject for subject in subjects}
    head = getattr(subjects[0].detector, "roi_head", None)
    can_answer = getattr(head, "can_answer", lambda answer: False)
    answers = [answer for answer in ANSWERS if can_answer(answer)]
    if len(answers) < 2:
        return {subjects[0].name: subjects[0]}
    return {ANSWERS[one]: open_runs(runs, weights, {"model.roi_head.answer": one})[0] for one in answers}


def _chosen(subject, images, ids):
    """Items of `LoadedRun.images` that were asked for."""
    left = set(ids) if ids else None
    for item in subject.images(None if ids else images):
        if left is None or item[1] in left:
            yield item
            left = left and left - {item[1]}
            if left is not None and not left:
                return


def _boxes_alone(found):
    return {key: found[key] for key in (BOXES, SCORES, LABELS, VALID)}


def _rows(image_id, column, found, names, min_score):
    shown = np.flatnonzero(found[VALID] & (found[SCORES] >= min_score))
    return [
        [image_id, column, names[found[LABELS][row]], rounded(found[SCORES][row])]
        + [rounded(side, 2) for side in found[BOXES][row]]
        for row in shown
    ]


def figure(drawn):
    """One row for each image.   drawn: {image id: {column: PIL.Image}}."""
    columns = list(next(iter(drawn.values())))
    heights = [max(image.height for image in cells.values()) for cells in drawn.values()]
    made = figure_of((CELL + 16) * len(columns) / DPI, (sum(heights) + 26 * len(heights) + 24) / DPI)
    grid = made.subplots(len(drawn), len(columns), squeeze=False, height_ratios=heights)
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
    return made
