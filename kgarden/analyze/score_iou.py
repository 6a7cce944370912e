"""Correlation of score and IoU: Pearson's r over sliding windows, proposals and detections.

Wu et al. 2020, arXiv:1904.06493, section 3.2 and appendix A: Figs. 3 and A.2.
"""

import collections
import os
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops
from matplotlib.colors import LogNorm

from kgarden.analyze.curve_styles import sorted_curves
from kgarden.analyze.loaded_runs import (
    EVERY,
    describe_counts,
    describe_groups,
    evaluation_for,
    grouping,
    open_runs,
    require_objects,
    require_roi_heads,
)
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.analyze.statistics import Pearson, bin_of
from kgarden.analyze.windows import Windows, score_of, windows_of_runs
from kgarden.metrics.figures import BLUES, COLORS, INK, figure_of, style_axes
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.models.faster_rcnn import FUSED
from kgarden.ops.boxes import iou as iou_of
from kgarden.structures import BOXES, LABELS, SCORES, SIZE_HW, VALID

CELLS = 40  # of the histograms, along each side
WHICH = ("all", "overlapping")  # all boxes, and those with IoU > 0

READING = (
    "Pearson's r between a box's IoU with an object and its score for that object's class. Higher is "
    "better, because NMS and AP rank boxes by score. Windows are those of `sliding-window`. Proposals are "
    "those of the run's first stage, with the IoU of the object that they overlap most and the score of "
    "its class (without overlap: the highest score of the classes in the image; images without objects "
    "are left out). Detections are the final ones, with the IoU of the best object of the detected class, "
    "or 0 without one. Bottom: number of boxes over IoU and score, on a logarithmic scale."
)


class JointCounts:
    """Pearson's r of IoU and score, of all boxes and of overlapping ones, and their joint histogram."""

    def __init__(self):
        self.pearson = {which: Pearson() for which in WHICH}
        self.counts = np.zeros((CELLS, CELLS), "int64")

    def add(self, iou, score):
        """Adds boxes with iou (N,) and score (N,)."""
        overlapping = np.asarray(iou) > 0
        self.pearson["all"].add(iou, score)
        self.pearson["overlapping"].add(iou[overlapping], score[overlapping])
        cells = bin_of(iou, CELLS) * CELLS + bin_of(score, CELLS)
        self.counts += np.bincount(cells, minlength=CELLS**2).reshape(CELLS, CELLS)


class OwnBoxes(StaticShapeModel):
    """Model that computes IoU and score of a detector's own proposals and detections.

    Call:
        x and "gt_boxes" (1, M, 4), "gt_labels" (1, M), "gt_valid" (1, M).
    Returns:
        {"proposals/iou", "proposals/valid", "proposals/<branch>": (1, P), "detections/iou",
        "detections/valid", "detections/own": (1, K)}
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        detector, truth = self.detector, [x[f"gt_{key}"] for key in (BOXES, LABELS, VALID)]
        x = {key: value for key, value in x.items() if not key.startswith("gt_")}
        raw = detector(x, training=False)
        proposals = detector.proposer.proposals(raw["proposer"], x[SIZE_HW], training=False)
        refined = detector.roi_head(raw["pyramid"], proposals, x[SIZE_HW], training=False)
        scores = {
            name: prediction[SCORES]
            for name, prediction in detector.roi_head.branch_predictions(refined, x[SIZE_HW]).items()
            if SCORES in prediction
        }
        outputs = proposal_iou_and_scores(proposals[BOXES], scores, *truth)
        outputs |= {"proposals/valid": proposals[VALID]}
        detections = detector.detect(x, raw)
        outputs["detections/iou"] = detection_iou(detections[BOXES], detections[LABELS], *truth)
        return outputs | {"detections/own": detections[SCORES], "detections/valid": detections[VALID]}


def proposal_iou_and_scores(boxes, scores, gt_boxes, gt_labels, gt_valid):
    """Computes the IoU of each proposal with the object it overlaps most, and the score of that class.

    The score of a proposal without overlap is the highest one of the classes in the image.

    Args:
        boxes:  (B, P, 4).
        scores: {branch: (B, P, C)}.
        gt_boxes, gt_labels, gt_valid: (B, M, 4), (B, M), (B, M).
    Returns:
        {"proposals/iou": (B, P), "proposals/<branch>": (B, P)}
    """
    overlap = ops.where(gt_valid[:, None], iou_of(boxes, gt_boxes), 0.0)
    best, at = ops.max(overlap, axis=-1), ops.argmax(overlap, axis=-1)
    label = ops.take_along_axis(gt_labels, at, axis=1)
    present = ops.broadcast_to(gt_labels[:, None], overlap.shape)
    outputs = {"proposals/iou": best}
    for name, of_classes in scores.items():
        of_objects = ops.take_along_axis(of_classes, present, axis=-1)
        highest = ops.max(ops.where(gt_valid[:, None], of_objects, 0.0), axis=-1)
        outputs[f"proposals/{name}"] = ops.where(best > 0, score_of(of_classes, label), highest)
    return outputs


def detection_iou(boxes, labels, gt_boxes, gt_labels, gt_valid):
    """Computes the IoU of each detection with the best object of its class, 0 without one.   (B, K)"""
    same = (labels[..., None] == gt_labels[:, None]) & gt_valid[:, None]
    return ops.max(ops.where(same, iou_of(boxes, gt_boxes), 0.0), axis=-1)


def analyze_score_iou(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    windows: Windows | None = None,
    groups: str = "size",
    results: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes the correlation of IoU and score of the runs' heads.

    Args:
        runs, to, ..., progress: see `analyze_sliding_window`.
    Returns:
        {"rows": of the table, "reading": the paragraph}.
    """
    to = analysis_folder(to, ["score_iou"], ["score_iou"])
    evaluation, source = evaluation_for(groups, runs, results)
    loaded = open_runs(runs, weights)
    require_roi_heads(loaded)
    names, groups_of = grouping(groups, loaded[0].categories, evaluation)
    joint, objects = collections.defaultdict(JointCounts), collections.Counter()
    windows = windows or Windows()
    for run, one, iou, predictions in windows_of_runs(loaded, windows, limit, progress):
        for group in groups_of(one):
            objects[group] += run is loaded[0]
            for key, values in predictions.items():
                branch, what = key.split("/")
                if what == "score":
                    joint[run.name, branch, "windows", group].add(iou, values)
    require_objects(objects[EVERY], runs)
    for run in loaded:
        _add_own_boxes(joint, run, limit)
    names = [name for name in names if objects[name]]
    sources = [("windows", name) for name in names] + [("proposals", EVERY), ("detections", EVERY)]
    rows = table(joint, sources)
    reading = (
        f"{READING} {describe_groups(groups, source)} {describe_counts(objects, names, windows.per_object)}"
    )
    write_analysis(to, reading, {"score_iou": rows}, {"score_iou": figure(joint, sources)})
    return {"rows": rows, "reading": reading}


def _add_own_boxes(joint, run, limit):
    model = ready_to_predict(OwnBoxes(run.detector))
    max_objects = max(map(len, run.objects.values()))
    for x, _, objects, boxes in run.images(limit):
        missing = max_objects - len(objects)
        labels = [one["label"] for one in objects] + [0] * missing
        truth = {
            "gt_boxes": np.pad(boxes, ((0, missing), (0, 0)))[None].astype("float32"),
            "gt_labels": np.array([labels], "int32"),
            "gt_valid": np.arange(max_objects)[None] < len(objects),
        }
        outputs = model.predict_on_batch({**x, **truth})
        outputs = {key: np.asarray(value)[0] for key, value in outputs.items()}
        for source in ("proposals", "detections"):
            if source == "proposals" and not objects:
                continue
            valid = outputs[f"{source}/valid"]
            for key, values in outputs.items():
                if key.startswith(source) and not key.endswith(("/iou", "/valid")):
                    iou = outputs[f"{source}/iou"][valid]
                    joint[run.name, key.split("/")[1], source, EVERY].add(iou, values[valid])


def table(joint, sources):
    """Builds a row for each run, branch, source and group, of all boxes and of overlapping ones."""
    rows = []
    for run, branch in sorted_curves(joint):
        for source, group in sources:
            if (run, branch, source, group) in joint:
                for which, one in joint[run, branch, source, group].pearson.items():
                    row = {"run": run, "answer": branch, "boxes": source, "group": group, "which": which}
                    rows.append({**row, "n": one.count, "r": rounded(one.r)})
    return rows


def figure(joint, bars):
    """Draws r as bars, and below a row of histograms for each run and branch."""
    curves = sorted_curves(joint)
    sources = [("windows", EVERY), ("proposals", EVERY), ("detections", EVERY)]
    result = figure_of(11.5, 3.4 + 2.7 * len(curves))
    above, below = result.subfigures(2, 1, height_ratios=[3.4, 2.7 * len(curves)])
    for ax, which in zip(above.subplots(1, 2, sharey=True), WHICH, strict=True):
        _bars(ax, {key: one.pearson[which].r for key, one in joint.items()}, bars, curves)
        ax.set_title("all boxes" if which == "all" else "boxes with IoU > 0", fontsize=10.5, color=INK)
    above.axes[0].set_ylabel("Pearson's r of score and IoU", color=INK)
    above.axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    panels = below.subplots(len(curves), 3, sharex=True, sharey=True, squeeze=False)
    max_count = max(one.counts.max() for one in joint.values())
    for row, curve in zip(panels, curves, strict=True):
        for ax, (source, group) in zip(row, sources, strict=True):
            one = joint.get((*curve, source, group))
            if one is None:
                ax.set_axis_off()
                continue
            shown = np.ma.masked_equal(one.counts.T, 0)
            norm = LogNorm(1, max(max_count, 2))
            ax.imshow(shown, origin="lower", extent=(0, 1, 0, 1), aspect="auto", cmap=BLUES, norm=norm)
            style_axes(ax)
            ax.set_title(f"{_name(*curve)}: {one.pearson['all'].count:,} {source}", fontsize=9, color=INK)
        row[0].set_ylabel("score", color=INK)
    for column in panels.T:
        for lowest in [ax for ax in column if ax.axison][-1:]:
            lowest.set_xlabel("IoU", color=INK)
            lowest.tick_params(labelbottom=True)
    bar = below.colorbar(panels[0, 0].images[0], ax=panels, shrink=0.8, aspect=30)
    bar.set_label("number of boxes", color=INK)
    bar.outline.set_visible(False)
    return result


def _bars(ax, r_of, bars, curves):
    width = 0.8 / len(curves)
    for number, curve in enumerate(curves):
        r = [r_of.get((*curve, *bar), np.nan) for bar in bars]
        at = np.arange(len(bars)) + (number - (len(curves) - 1) / 2) * width
        color = COLORS[number % len(COLORS)]
        ax.bar(at, r, 0.92 * width, color=color, label=_name(*curve))
    names = [f"windows\n{group}" if source == "windows" else source for source, group in bars]
    ax.set_xticks(range(len(bars)), names, fontsize=9)
    ax.axhline(0, color=INK, linewidth=0.8)
    style_axes(ax)
    ax.grid(False, axis="x")
    ax.tick_params(axis="x", length=0)


def _name(run, branch):
    return run if branch == FUSED else f"{run}: {branch} alone"
