"""Figures of an error analysis as PNG: precision-recall curves, confusion matrix, error types."""

import io

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text

from kgarden.metrics.tables import shown
from kgarden.metrics.tide import BEYOND, KINDS
from kgarden.utils.fonts import families_of, shown_name
from kgarden.utils.text import in_one_line

NAMED_CURVES = 8  # classes with a colour of their own; the others are thin and grey
NAMED_CLASSES = 24  # rows of the confusion matrix; the others are merged
INK, GRAY, FAINT = "#22303c", "#7a8793", "#d5dbe0"
COLORS = ("#1f6f8b", "#d1603d", "#6a994e", "#8e5572", "#e0a030", "#3a5a9b", "#a44a3f", "#4a9c8c")
KIND_COLORS = dict(
    zip(
        (*KINDS, BEYOND),
        ("#3a5a9b", "#d1603d", "#e0a030", "#8e5572", "#7a8793", "#a44a3f", "#b5bcc4"),
        strict=True,
    )
)
BLUES = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#8fb8ca", "#1f6f8b", "#123f52"])


FIGURES = ("pr_curves.png", "confusion_matrix.png", "errors.png")


def all_figures(analysis: dict) -> dict[str, bytes]:
    """Draws all figures of an analysis.   {file name: PNG bytes}"""
    drawings = pr_curves(analysis), confusion_matrix(analysis), errors(analysis)
    return dict(zip(FIGURES, drawings, strict=True))


# --- precision-recall curves ----------------------------------------------------------------------------


def pr_curves(analysis):
    """Draws precision-recall curves at IoU 0.5 and 0.75: the mean over classes, and every class."""
    figure = figure_of(13.5, 5)
    axes = figure.subplots(1, 2, sharey=True)
    rows = sorted(analysis["per_class"], key=lambda row: -row["objects"])
    ids = [str(row["id"]) for row in rows if row["objects"]]
    names = {str(row["id"]): shown_name(row) for row in rows}
    recall = analysis["curves"]["recall"]
    for ax, key, title in zip(axes, ("iou50", "iou75"), ("IoU 0.50", "IoU 0.75"), strict=True):
        curves = analysis["curves"][key]
        for one in ids[NAMED_CURVES:]:
            ax.plot(
                recall, _until_last_recall(curves["per_class"][one]), color=FAINT, linewidth=0.8, zorder=1
            )
        if len(ids) > 1:
            for one, color in zip(ids[:NAMED_CURVES], COLORS, strict=False):
                line = curves["per_class"][one]
                label = _label(names[one], line)
                ax.plot(recall, _until_last_recall(line), color=color, linewidth=1.4, label=label)
        if ids:
            name = "mean" if len(ids) > 1 else names[ids[0]]
            label = _label(name, curves["mean"])
            ax.plot(recall, curves["mean"], color=INK, linewidth=2.6, label=label, zorder=3)
        if len(ids) > NAMED_CURVES:
            ax.plot([], [], color=FAINT, label=f"{len(ids) - NAMED_CURVES} other classes")
        ax.set(title=title, xlabel="recall (%)", xlim=(0, 100), ylim=(0, 102))
        style_axes(ax)
        if ids:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
        else:
            _center_text(ax, "no objects")
    axes[0].set_ylabel("precision (%)")
    return png_of(figure)


def _until_last_recall(line):
    """The curve up to the highest recall, without its fall to 0."""
    return np.where(np.array(line) > 0, line, np.nan)


def _label(name, line):
    return f"{short(name, 18)}  {np.mean(line):.1f}"


# --- confusion matrix -----------------------------------------------------------------------------------


def confusion_matrix(analysis):
    """Draws the confusion matrix: rows are true classes, columns are predicted classes."""
    matrix, names = _merge_rare(*_dense(analysis))
    size = max(5.0, 2.6 + 0.34 * len(names))
    figure = figure_of(size + 0.8, size)
    ax = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    percentages = 100 * matrix / np.maximum(totals, 1)
    ax.imshow(percentages, cmap=BLUES, norm=PowerNorm(0.6, 0, 100), aspect="equal")
    small = len(names) > 12
    for row, column in np.argwhere(matrix):
        percentage = percentages[row, column]
        text = f"{matrix[row, column]}" if not small else f"{percentage:.0f}"
        if small and percentage < 0.5:
            continue
        color = "white" if percentage > 45 else INK
        ax.text(column, row, text, ha="center", va="center", fontsize=6.5 if small else 8.5, color=color)
    columns, rows = [*names, "missed"], [*names, "background"]
    fontsize = 7.5 if small else 9
    ax.set_xticks(range(len(columns)), columns, rotation=90 if len(names) > 5 else 0, fontsize=fontsize)
    ax.set_yticks(range(len(rows)), rows, fontsize=fontsize)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.axhline(len(names) - 0.5, color=INK, linewidth=0.8)
    ax.axvline(len(names) - 0.5, color=INK, linewidth=0.8)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_color(FAINT)
    score = analysis["confusion"]["score"]
    scores = "all scores" if score is None else f"score ≥ {score:.3g}"
    unit = "percent of each row" if small else "counts; colour: percent of the row"
    if beyond := analysis["errors"][BEYOND]["count"]:
        unit += f"; without {beyond:,} objects beyond the limit"
    ax.set_title(f"{scores}, IoU {analysis['confusion']['iou']:g}; {unit}", fontsize=9.5, color=INK)
    return png_of(figure)


def _dense(analysis):
    """(C + 1, C + 1) counts and C names, from the cells of the analysis."""
    rows = analysis["per_class"]
    index = {row["id"]: n for n, row in enumerate(rows)} | {None: len(rows)}
    matrix = np.zeros((len(rows) + 1, len(rows) + 1), np.int64)
    for gt_class, predicted, count in analysis["confusion"]["cells"]:
        matrix[index[gt_class], index[predicted]] = count
    return matrix, [shown_name(row) for row in rows]


def _merge_rare(matrix, names):
    """Keeps the classes with most objects and detections and merges the others; drops empty classes."""
    weight = matrix[:-1].sum(axis=1) + matrix[:, :-1].sum(axis=0)
    present = np.flatnonzero(weight)
    chosen = np.sort(present[np.argsort(-weight[present], kind="stable")][:NAMED_CLASSES])
    rest = np.setdiff1d(present, chosen)
    groups = [[one] for one in chosen] + ([rest] if len(rest) else []) + [[len(names)]]
    merged = np.array([[matrix[np.ix_(a, b)].sum() for b in groups] for a in groups])
    shown = [short(names[one], 16) for one in chosen]
    return merged, shown + ([f"{len(rest)} other classes"] if len(rest) else [])


# --- error types ----------------------------------------------------------------------------------------


def errors(analysis):
    """Draws the AP cost and the count of each error type, and the scores of correct and wrong detections."""
    figure = figure_of(12.5, 4.4)
    cost, count, scores = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1, 1, 1.15]})
    kinds = {kind: row for kind, row in analysis["errors"].items() if kind != BEYOND or row["count"]}
    names, colors = [kind.replace("_", " ") for kind in kinds], [KIND_COLORS[kind] for kind in kinds]
    iou = analysis["iou"]["right"]
    gained = [row["dap"] for row in kinds.values()]  # None: not measured
    texts = list(map(shown, gained))
    _bars(cost, [value or 0.0 for value in gained], names=names, colors=colors, texts=texts)
    cost.set_title(f"gain in AP at IoU {iou:g} if corrected (now {shown(analysis['ap'])})")
    counts = [row["count"] for row in kinds.values()]
    _bars(count, counts, names=names, colors=colors, texts=[f"{value:,}" for value in counts])
    count.set_title(f"count ({analysis['right']:,} correct, {analysis['objects']:,} objects)")
    count.set_yticklabels([])
    _score_bars(scores, analysis["scores"], analysis["best_f1"]["score"])
    for ax in (cost, count, scores):
        ax.title.set_fontsize(10)
    return png_of(figure)


def _bars(ax, values, *, names, colors, texts):
    rows = np.arange(len(values))[::-1]
    ax.barh(rows, values, color=colors, height=0.66)
    most = max(values) or 1
    for row, value, text in zip(rows, values, texts, strict=True):
        ax.text(max(value, 0) + 0.02 * most, row, text, va="center", fontsize=9, color=INK)
    ax.set_yticks(rows, names, fontsize=9.5)
    ax.set_xlim(min([0, *values]) * 1.1, 1.22 * most)
    style_axes(ax)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def _score_bars(ax, scores, best):
    edges, right, wrong = (np.array(scores[name]) for name in ("edges", "right", "wrong"))
    ax.stairs(wrong, edges, fill=True, color=FAINT, label="wrong")
    ax.stairs(right, edges, color="#1f6f8b", linewidth=2, label="correct")
    if best is not None:
        ax.axvline(best, color=INK, linewidth=1, linestyle="--", label=f"best F1: {best:.2f}")
    ax.set(xlabel="score", title="number of detections by score", xlim=(0, 1))
    most = max(*right, *wrong)
    if most > 20 * max(right.max(), 1) and right.any():
        ax.set_yscale("symlog", linthresh=10)  # else the correct ones would be invisible
    ax.set_ylim(0, 1.3 * max(most, 1) if ax.get_yscale() == "linear" else 10 * most)
    if most:
        ax.legend(fontsize=8.5, frameon=False, loc="upper center", ncols=3)
    else:
        _center_text(ax, "no detections")
    style_axes(ax)


# --- shared helpers ---------------------------------------------------------------------------------------


def figure_of(width: float, height: float) -> Figure:
    """Creates an empty figure without a window; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(ax):
    """Sets the common style of axes: a faint grid, and no top and right spines."""
    ax.grid(True, color="#eceff1", linewidth=0.8)
    ax.set_axisbelow(True)
    for name, side in ax.spines.items():
        side.set_visible(name in ("left", "bottom"))
        side.set_color(GRAY)
    ax.tick_params(colors=INK, labelsize=9)


def _center_text(ax, text):
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GRAY)


def short(name: str, most: int) -> str:
    """Shortens a name to one line and escapes dollar signs, which would start a formula."""
    return in_one_line(name, most).replace("$", r"\$")


def png_of(figure: Figure) -> bytes:
    """Returns the figure as bytes of a PNG file."""
    return _saved(figure, "png")


def svg_of(figure: Figure) -> bytes:
    """Returns the figure as bytes of an SVG file, equal for equal figures."""
    with matplotlib.rc_context({"svg.hashsalt": "kgarden"}):
        return _saved(figure, "svg", metadata={"Date": None})


def _saved(figure, form, **settings):
    """Texts are drawn in DejaVu Sans, and in other fonts of the system where it has no glyphs."""
    content = io.BytesIO()
    ticks = [one for ax in figure.axes for one in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    texts = [*figure.findobj(Text), *ticks]
    if len(families := families_of([one.get_text() for one in texts])) > 1:
        for one in texts:
            one.set_fontfamily(families)
    figure.savefig(content, format=form, **settings)
    return content.getvalue()
