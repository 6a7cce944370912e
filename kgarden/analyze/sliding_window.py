"""Sliding-window analysis: a RoI head's scores and refined boxes as functions of its input box's IoU.

Wu et al. 2020, arXiv:1904.06493, section 3 and appendix A.1: Figs. 2, 6, 7, A.1 and A.3.
"""

import collections
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from kgarden.analyze.curve_styles import curve_styles, sorted_curves
from kgarden.analyze.loaded_runs import (
    describe_counts,
    describe_groups,
    evaluation_for,
    grouping,
    open_runs,
    require_objects,
    require_roi_heads,
)
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.analyze.statistics import BINS, BinnedMoments, bin_of
from kgarden.analyze.windows import Windows, windows_of_runs
from kgarden.metrics.figures import FAINT, INK, figure_of, style_axes

WHATS = {"score": "score of the object's class", "iou": "IoU of the refined box"}
MAX_BANDS = 3  # standard deviations are drawn in panels of at most this many curves
BIN_CENTERS = (np.arange(BINS) + 0.5) / BINS

READING = (
    "Around every object, windows of known IoU with it replace the proposals of the RoI head. Top: mean "
    "score of the object's class; the steeper the curve, the better the score separates whole objects "
    "from parts of objects. Bottom: mean IoU of the refined box with the object; above the grey line, "
    "refinement improves the window. Bands show one standard deviation and are omitted in panels with "
    "many curves."
)


def analyze_sliding_window(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    windows: Windows | None = None,
    groups: str = "size",
    results: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes mean score and refined IoU over the IoU of sliding windows.

    Args:
        runs:     run directories; their curves share one figure.
        to:       folder for sliding_window.csv, .png, .svg and reading.txt.
        windows:  `Windows`; None: the whole grid.
        groups:   "size" or "difficulty".
        results:  file with the AP of the classes; None: evaluation.json of the first run.
        weights:  file to use instead of a run's best weights.
        limit:    number of images, from the first; None: all.
        progress: function of (images done, images in total).
    Returns:
        {"rows": of the table, "reading": the paragraph, "seconds_per_object"}.
    Raises:
        UserError: a run has no RoI head, the runs have different images, or there are no objects.
    """
    to = analysis_folder(to, ["sliding_window"], ["sliding_window"])
    evaluation, source = evaluation_for(groups, runs, results)
    loaded = open_runs(runs, weights)
    require_roi_heads(loaded)
    names, groups_of = grouping(groups, loaded[0].categories, evaluation)
    moments, objects = collections.defaultdict(BinnedMoments), collections.Counter()
    started = time.perf_counter()
    windows = windows or Windows()
    for run, one, iou, predictions in windows_of_runs(loaded, windows, limit, progress):
        bins = bin_of(iou)
        for group in groups_of(one):
            objects[group] += run is loaded[0]
            for key, values in predictions.items():
                moments[run.name, *key.split("/"), group].add(bins, values)
    seconds = (time.perf_counter() - started) / max(objects["all"] * len(loaded), 1)
    require_objects(objects["all"], runs)
    names = [name for name in names if objects[name]]
    rows = table(moments, names)
    reading = (
        f"{READING} {describe_groups(groups, source)} {describe_counts(objects, names, windows.per_object)}"
    )
    write_analysis(to, reading, {"sliding_window": rows}, {"sliding_window": figure(moments, names, objects)})
    return {"rows": rows, "reading": reading, "seconds_per_object": seconds}


def table(moments, names):
    """Builds a row for each run, branch, group and bin."""
    rows = []
    for run, branch in sorted_curves(moments):
        for group in names:
            of_group = {what: moments.get((run, branch, what, group)) for what in WHATS}
            count = next(one for one in of_group.values() if one is not None).count
            columns, empty = {}, np.full(BINS, np.nan)
            for what, one in of_group.items():
                columns[f"{what}_mean"] = empty if one is None else one.mean()
                columns[f"{what}_std"] = empty if one is None else one.std()
            for number in range(BINS):
                row = {"run": run, "answer": branch, "group": group, "bin": number}
                row |= {"iou_from": number / BINS, "iou_to": (number + 1) / BINS, "n": int(count[number])}
                rows.append(row | {key: rounded(value[number]) for key, value in columns.items()})
    return rows


def figure(moments, names, objects):
    """Draws two rows of panels, scores and refined boxes, with a column for each group."""
    result = figure_of(3.1 * len(names) + 2.4, 6.4)
    panels = result.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    for row, (what, text) in zip(panels, WHATS.items(), strict=True):
        means = {
            (run, branch): moments[run, branch, what, names[-1]].mean()
            if (run, branch, what, names[-1]) in moments
            else None
            for run, branch in sorted_curves(moments)
        }
        curves = curve_styles(means)
        for ax, group in zip(row, names, strict=True):
            if what == "iou":
                ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
            for (run, branch), (label, color, style) in curves.items():
                one = moments[run, branch, what, group]
                mean, std = one.mean(), one.std()
                ax.plot(BIN_CENTERS, mean, style, color=color, linewidth=1.8, label=label, zorder=3)
                if len(curves) <= MAX_BANDS:
                    ax.fill_between(BIN_CENTERS, mean - std, mean + std, color=color, alpha=0.13, linewidth=0)
            ax.set(xlim=(0, 1), ylim=(0, 1.02))
            style_axes(ax)
        row[0].set_ylabel(text, color=INK)
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, frameon=False)
    for ax, group in zip(panels[0], names, strict=True):
        ax.set_title(f"{group} ({objects[group]} objects)", fontsize=10.5, color=INK)
    for ax in panels[1]:
        ax.set_xlabel("IoU of the window", color=INK)
    return result
