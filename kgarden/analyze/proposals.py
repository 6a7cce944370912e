"""Proposals of first stages: average recall over their number, calibration of P(O), and pictures.

Zhou et al. 2021 (CenterNet2), arXiv:2103.07461, Table 6 and Fig. 3: a first stage that predicts likelihoods
covers more objects with fewer proposals than RPN. Whether it does predict likelihoods is what the
reliability diagram shows.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kgarden.analyze.compare import CELL, comparison_figure
from kgarden.analyze.loaded_runs import open_runs, progress_of_run, require_objects
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.errors import UserError
from kgarden.metrics.coco import AREAS, average_recall
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.figures import COLORS, GRAY, INK, figure_of, style_axes
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops.boxes import iou
from kgarden.structures import BOXES, IMAGES, LABELS, SCORES, SIZE_HW, VALID
from kgarden.visualization.draw import draw_detections, draw_truth, scaled

COUNTS = (
    16,
    32,
    64,
    128,
    256,
    512,
    1000,
)  # numbers of proposals whose recall is computed; Table 6's and fewer
BINS = 10  # of the reliability diagram, equally wide
PROBABILITY = "probability"  # P(O) of a proposal
OBJECT = {"id": 1, "name": "object"}  # the only class of a first stage
TABLES = ["recall", "calibration"]

READING = (
    "Recall: COCO's average recall (IoU 0.5 to 0.95) of the N best proposals of an image, whatever the "
    "class, as in Table 6. Calibration: proposals in ten bins of P(O), the probability that the first "
    "stage gives them, against the fraction that are objects, which here means an IoU of at least {iou:g} "
    "with one. On the diagonal P(O) is a likelihood; below it the first stage is overconfident. ECE is "
    "the mean distance to the diagonal, weighted by the number of proposals. Several proposals may lie on "
    "one object; each counts. Pictures: proposals with P(O) above {min_score:g}, as in Fig. 3, with P(O) "
    "in percent."
)


class Proposals(StaticShapeModel):
    """Model that returns the proposals of a two-stage detector at inference.

    Call:
        x: {"images", "size_hw"}.
    Returns:
        {"boxes": (B, P, 4) px of the network input, "scores", "probability": (B, P), "valid": (B, P)}.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        found = self.detector.proposals(x, self.detector(x, training=False))
        return {key: found[key] for key in (BOXES, SCORES, PROBABILITY, VALID)}


@dataclasses.dataclass
class Found:
    """What is kept of the proposals of a run; boxes are in px of the network input.

    Attributes:
        objects:     annotations in COCO form, of the class OBJECT; the area is that in the original image.
        results:     proposals in COCO results form, of the same class.
        probability: P(O) of every proposal.
        iou:         of every proposal with its best object; 0 without objects.
        image_ids:   of the images, in order.
        drawn:       {image id: (PIL.Image with objects, PIL.Image with proposals)} of the first images.
    """

    objects: list = dataclasses.field(default_factory=list)
    results: list = dataclasses.field(default_factory=list)
    probability: list = dataclasses.field(default_factory=list)
    iou: list = dataclasses.field(default_factory=list)
    image_ids: list = dataclasses.field(default_factory=list)
    drawn: dict = dataclasses.field(default_factory=dict)


def analyze_proposals(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    proposals: int | None = None,
    iou: float = 0.5,
    min_score: float = 0.3,
    pictures: int = 4,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes recall and calibration of the proposals of two-stage detectors, and draws some.

    Args:
        runs:      run directories of two-stage detectors.
        to:        folder for recall, calibration and proposals (.csv, .png, .svg) and reading.txt.
        proposals: number of proposals of an image; None: that of each recipe.
        iou:       smallest IoU with an object at which a proposal counts as one, in the calibration.
        min_score: smallest P(O) of a drawn proposal.
        pictures:  number of images to draw, from the first.
        weights:   file to use instead of a run's best weights.
        limit:     number of images, from the first; None: all.
        progress:  function of (images done, images in total).
    Returns:
        {"recall", "calibration": rows of the tables, "ece": {run: in percent}, "reading": the paragraph}.
    Raises:
        UserError: a run has no first stage, the runs have different images, or there are no objects.
    """
    figures = [*TABLES, "proposals"] if pictures else TABLES
    to = analysis_folder(to, TABLES, figures)
    loaded, found = open_runs(runs, weights), {}
    for run in loaded:
        _prepare(run, proposals)
    for number, run in enumerate(loaded):
        on_image = progress_of_run(progress, loaded, number, limit)
        found[run.name] = proposals_of(run, limit, on_image, min_score=min_score, pictures=pictures)
    require_objects(len(found[loaded[0].name].objects), [loaded[0].name])
    recall = [row for run in loaded for row in recall_rows(run.name, found[run.name], _total(run))]
    bins = {name: bins_of(np.array(one.probability), np.array(one.iou) >= iou) for name, one in found.items()}
    ece = {name: expected_calibration_error(of_run) for name, of_run in bins.items()}
    calibration = [{"run": name, **row} for name, of_run in bins.items() for row in calibration_rows(of_run)]
    drawings = {"recall": recall_figure(recall), "calibration": calibration_figure(bins, iou)}
    if pictures:
        drawings["proposals"] = comparison_figure(_columns(found))
    sentences = [f"{name}: ECE {value:.1f} %." for name, value in ece.items()]
    reading = " ".join([READING.format(iou=iou, min_score=min_score), *sentences])
    write_analysis(to, reading, {"recall": recall, "calibration": calibration}, drawings)
    return {"recall": recall, "calibration": calibration, "ece": ece, "reading": reading}


def _prepare(run, proposals):
    """Checks that a run has a first stage, and sets its number of proposals."""
    if not hasattr(run.detector, "proposer"):
        raise UserError(f"{run.name}: {run.recipe.model.name} has no first stage; use two-stage detectors")
    if proposals is not None:
        run.detector.proposer.test = dataclasses.replace(run.detector.proposer.test, total=proposals)


def _total(run):
    return run.detector.proposer.test.total


def proposals_of(run, limit, on_image, min_score=0.3, pictures=0) -> Found:
    """Runs a detector's first stage on its validation images.

    Args:
        run:       LoadedRun.
        limit:     number of images, from the first; None: all.
        on_image:  called with the number of images done.
        min_score: smallest P(O) of a drawn proposal.
        pictures:  number of images to draw.
    """
    model, found = ready_to_predict(Proposals(run.detector)), Found()
    for x, image_id, objects, boxes in run.images(limit):
        one = {key: np.asarray(value)[0] for key, value in model.predict_on_batch(x).items()}
        valid = one[VALID].astype(bool)
        one = {key: value[valid].astype("float64") for key, value in one.items()}
        areas = [one_object["area"] for one_object in objects]
        found.objects += _annotations(image_id, boxes, areas, first=len(found.objects) + 1)
        found.results += _results(image_id, one)
        found.probability += one[PROBABILITY].tolist()
        found.iou += best_iou(one[BOXES], boxes).tolist()
        found.image_ids.append(image_id)
        if len(found.drawn) < pictures:
            found.drawn[image_id] = _drawn(x, one, boxes, min_score)
        on_image(len(found.image_ids))
    return found


def _annotations(image_id, boxes, areas, first):
    rows = enumerate(zip(_xywh(boxes), areas, strict=True), start=first)
    of_image = {"image_id": image_id, "category_id": OBJECT["id"], "iscrowd": 0}
    return [{"id": number, **of_image, "bbox": box, "area": area} for number, (box, area) in rows]


def _results(image_id, found):
    of_image = {"image_id": image_id, "category_id": OBJECT["id"]}
    rows = zip(_xywh(found[BOXES]), found[SCORES].tolist(), strict=True)
    return [{**of_image, "bbox": box, "score": score} for box, score in rows]


def _xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def best_iou(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns the largest IoU of each box (N, 4) with one of the objects (M, 4), 0 without any.   (N,)"""
    if not len(objects) or not len(boxes):
        return np.zeros(len(boxes))
    return ops.convert_to_numpy(iou(boxes.astype("float32"), objects.astype("float32"))).max(axis=1)


def _drawn(x, found, boxes, min_score):
    """The image with its objects, and with its proposals."""
    height, width = x[SIZE_HW][0]
    image = x[IMAGES][0, :height, :width]
    truth = {BOXES: boxes, LABELS: np.zeros(len(boxes), "int32")}
    shown = {BOXES: found[BOXES], SCORES: found[PROBABILITY], LABELS: np.zeros(len(found[BOXES]), "int32")}
    shown[VALID] = np.ones(len(found[BOXES]), bool)
    names = [OBJECT["name"]]
    return (
        draw_truth(*scaled(image, truth, CELL), names, labels="none"),
        draw_detections(*scaled(image, shown, CELL), names, min_score=min_score, labels="score"),
    )


def _columns(found):
    """{image id: {title of a column: PIL.Image}}."""
    first = next(iter(found.values())).drawn
    return {
        image_id: {"ground truth": truth, **{name: one.drawn[image_id][1] for name, one in found.items()}}
        for image_id, (truth, _) in first.items()
    }


# --- numbers ------------------------------------------------------------------------------------------------


def recall_rows(name: str, found: Found, total: int) -> list[dict]:
    """Computes the average recall of the best 16, 32, ... proposals of an image, and of all.   Table 6

    Args:
        name:  of the run.
        found: of `proposals_of`.
        total: number of proposals that the detector makes of an image, at most.
    """
    truth = {"images": [{"id": one} for one in found.image_ids], "categories": [OBJECT]}
    table = EvaluationTable({**truth, "annotations": found.objects}, found.results)
    limits = [count for count in COUNTS if count < total] + [total]
    mean = len(found.results) / len(found.image_ids)
    return [
        {"run": name, "proposals": count, "mean_proposals": rounded(min(mean, count), 1)}
        | {f"ar_{area}": rounded(value, 3) for area, value in zip(AREAS, values, strict=True)}
        for count, values in zip(limits, average_recall(table, limits), strict=True)
    ]


def bins_of(probability: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Counts proposals in bins of P(O).

    Args:
        probability: (N,) P(O).
        hit:         (N,) bool, whether each is an object.
    Returns:
        (BINS, 3) float64: number, sum of P(O), number of objects. The last bin includes 1.
    """
    number = np.minimum((BINS * probability).astype(int), BINS - 1)
    columns = (None, probability, hit.astype("float64"))
    return np.stack([np.bincount(number, weights=one, minlength=BINS) for one in columns], axis=1)


def expected_calibration_error(bins: np.ndarray) -> float:
    """Returns the ECE of `bins_of` in percent.   Guo et al. 2017, arXiv:1706.04599, Eq. 3."""
    return 100.0 * float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1.0))


def calibration_rows(bins):
    """Builds a row for each bin: number, mean P(O), and the fraction that are objects."""
    rows = []
    for number, (count, total, hits) in enumerate(bins):
        ends = {"from": rounded(number / BINS), "to": rounded((number + 1) / BINS), "n": int(count)}
        means = (rounded(value / count) if count else None for value in (total, hits))
        rows.append(ends | dict(zip(("mean_probability", "fraction_objects"), means, strict=True)))
    return rows


# --- figures ------------------------------------------------------------------------------------------------


def recall_figure(rows):
    """Draws the average recall over the number of proposals."""
    result = figure_of(7.5, 4.4)
    ax = result.subplots()
    for name, color in _colors(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        line = {"color": color, "linewidth": 1.7, "marker": "o", "markersize": 3.5, "label": name}
        ax.plot([row["proposals"] for row in own], [row["ar_all"] for row in own], **line)
    ax.set(xlabel="proposals of an image", ylabel="average recall", xscale="log")
    counts = sorted({row["proposals"] for row in rows})
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    style_axes(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    return result


def calibration_figure(bins, iou):
    """Draws the reliability diagram, and the distribution of P(O)."""
    result = figure_of(11.5, 4.2)
    reliability, counts = result.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color=GRAY, linewidth=1.0, linestyle="--")
    for name, color in _colors(bins):
        of_run = bins[name]
        filled = of_run[of_run[:, 0] > 0]
        label = f"{name}: ECE {expected_calibration_error(of_run):.1f} %"
        line = {"color": color, "linewidth": 1.7, "marker": "o", "markersize": 3.5, "label": label}
        reliability.plot(filled[:, 1] / filled[:, 0], filled[:, 2] / filled[:, 0], **line)
        share = 100 * of_run[:, 0] / max(of_run[:, 0].sum(), 1)
        counts.stairs(share, np.linspace(0, 1, BINS + 1), color=color, linewidth=1.7)
    reliability.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"fraction with an object at IoU {iou:g}")
    counts.set(xlim=(0, 1), yscale="log", ylabel="percent of proposals")
    for ax in (reliability, counts):
        ax.set_xlabel("P(O)", color=INK)
        style_axes(ax)
    figure_legend = {"bbox_to_anchor": (1.02, 1), "fontsize": 9, "frameon": False}
    counts.legend(*reliability.get_legend_handles_labels(), loc="upper left", **figure_legend)
    return result


def _colors(names):
    return [(name, COLORS[n % len(COLORS)]) for n, name in enumerate(dict.fromkeys(names))]
