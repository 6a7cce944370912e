"""Scores and refined boxes over the IoU of the box that went in.

Wu et al. 2020, arXiv:1904.06493, section 3 and appendix A.1: Figs. 2, 6, 7, A.1 and A.3.
"""

import collections
import time

import numpy as np

from kgarden.analyze.curve_styles import curve_styles, sorted_curves
from kgarden.analyze.loaded_runs import (
    counted,
    evaluation_for,
    grouped_by,
    grouping,
    need_objects,
    need_roi_heads,
    open_runs,
)
from kgarden.analyze.outputs import rounded, write_analysis
from kgarden.analyze.statistics import BINS, BinnedMoments, bin_of
from kgarden.analyze.windows import Windows, windows_of_runs
from kgarden.metrics.figures import FAINT, INK, figure_of, plain

WHATS = {"score": "score of the object's class", "iou": "IoU of the refined box"}
MOST_BANDS = 3  # curves of a panel up to which their spread is drawn
MIDDLES = (np.arange(BINS) + 0.5) / BINS

READING = (
    "Around every object lie windows of known IoU with it, and the RoI head is handed these in place of "
    "proposals. Above: the mean score that it gives to the object's class; the steeper it rises, the "
    "better a score tells a whole object from a part of one. Below: the mean IoU with the object of the "
    "box that it refines a window to; above the grey line a window was improved. Bands are one standard "
    "deviation, where there is room for them."
)


def analyze_sliding_window(
    runs, to, windows=None, groups="size", results=None, weights=None, limit=None, progress=None
):
    """Slide windows over the objects of the runs' validation images.

    Args:
        runs:     directories; their curves share one figure.
        to:       folder for sliding_window.csv, .png, .svg and reading.txt.
        windows:  `Windows`; None: the whole grid.
        groups:   "size" or "difficulty".
        results:  file with the AP of the classes; None: evaluation.json of the first run.
        weights:  another file than a run's best weights.
        limit:    only the first so many images.
        progress: function of (images done, images in all).
    Returns:
        {"rows": of the table, "reading": the paragraph, "seconds_per_object"}.
    Raises:
        UserError: a run without a RoI head, runs on different images, no objects.
    """
    evaluation, source = evaluation_for(groups, runs, results)
    subjects = open_runs(runs, weights)
    need_roi_heads(subjects)
    names, groups_of = grouping(groups, subjects[0].categories, evaluation)
    moments, objects = collections.defaultdict(BinnedMoments), collections.Counter()
    started = time.perf_counter()
    windows = windows or Windows()
    for subject, one, iou, found in windows_of_runs(subjects, windows, limit, progress):
        bins = bin_of(iou)
        for group in groups_of(one):
            objects[group] += subject is subjects[0]
            for key, values in found.items():
                moments[subject.name, *key.split("/"), group].add(bins, values)
    seconds = (time.perf_counter() - started) / max(objects["all"] * len(subjects), 1)
    need_objects(objects["all"], runs)
    names = [name for name in names if objects[name]]
    rows = table(moments, names)
    reading = f"{READING} {grouped_by(groups, source)} {counted(objects, names, windows.per_object)}"
    write_analysis(to, reading, {"sliding_window": rows}, {"sliding_window": figure(moments, names, objects)})
    return {"rows": rows, "reading": reading, "seconds_per_object": seconds}


def table(moments, names):
    """A row for each run, answer, group and bin."""
    rows = []
    for run, answer in sorted_curves(moments):
        for group in names:
            of_what = {what: moments.get((run, answer, what, group)) for what in WHATS}
            count = next(one for one in of_what.values() if one is not None).count
            columns, empty = {}, np.full(BINS, np.nan)
            for what, one in of_what.items():
                columns[f"{what}_mean"] = empty if one is None else one.mean()
                columns[f"{what}_std"] = empty if one is None else one.std()
            for number in range(BINS):
                row = {"run": run, "answer": answer, "group": group, "bin": number}
                row |= {"iou_from": number / BINS, "iou_to": (number + 1) / BINS, "n": int(count[number])}
                rows.append(row | {key: rounded(value[number]) for key, value in columns.items()})
    return rows


def figure(moments, names, objects):
    """Two rows of panels, scores and refined boxes, a column for each group."""
    drawn = figure_of(3.1 * len(names) + 2.4, 6.4)
    panels = drawn.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    for row, (what, text) in zip(panels, WHATS.items(), strict=True):
        means = {
            (run, answer): moments[run, answer, what, names[-1]].mean()
            if (run, answer, what, names[-1]) in moments
            else None
            for run, answer in sorted_curves(moments)
        }
        curves = curve_styles(means)
        for ax, group in zip(row, names, strict=True):
            if what == "iou":
                ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
            for (run, answer), (label, color, style) in curves.items():
                one = moments[run, answer, what, group]
                mean, std = one.mean(), one.std()
                ax.plot(MIDDLES, mean, style, color=color, linewidth=1.8, label=label, zorder=3)
                if len(curves) <= MOST_BANDS:
                    ax.fill_between(MIDDLES, mean - std, mean + std, color=color, alpha=0.13, linewidth=0)
            ax.set(xlim=(0, 1), ylim=(0, 1.02))
            plain(ax)
        row[0].set_ylabel(text, color=INK)
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, frameon=False)
    for ax, group in zip(panels[0], names, strict=True):
        ax.set_title(f"{group}, {objects[group]} objects", fontsize=10.5, color=INK)
    for ax in panels[1]:
        ax.set_xlabel("IoU of the window", color=INK)
    return drawn
