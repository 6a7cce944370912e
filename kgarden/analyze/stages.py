"""Stages of a cascade: AP of each stage alone over the IoU threshold, from one pass over the images.

Li et al. 2019 (FSCascade), arXiv:1907.11914, Figs. 1, 3, 4 and 5: the last stage of a cascade finds better
boxes than the one before, but at IoU 0.5 its AP is lower.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kgarden.analyze.loaded_runs import (
    max_detections_of,
    open_runs,
    progress_of_run,
    require_objects,
)
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.errors import UserError
from kgarden.evaluation import results_of
from kgarden.inference.batching import pad_batch
from kgarden.inference.postprocess import to_original
from kgarden.metrics.arrays import pairs
from kgarden.metrics.coco import IOUS, ap_by_iou
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.figures import COLORS, GRAY, INK, figure_of, style_axes
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.models.faster_rcnn import FUSED
from kgarden.structures import BOXES, IMAGE_ID, LABELS, ORIGINAL_HW, SCORES, SIZE_HW, VALID
from kgarden.utils.files import read_json

ENSEMBLE = "ensemble"  # detections of the run as it is evaluated, where several stages score them
KEPT = (BOXES, SCORES, LABELS, VALID)
LOW, HIGH = 0.5, 0.75  # IoU of the boxes whose scores are compared, Fig. 5
IOU_BINS = 5  # between LOW and HIGH
SCORE_BINS = 20  # between 0 and 1
PRINTED = (0.5, 0.8)  # IoU thresholds of the table of gaps
SHOWN = ("run", "answer", "ap", "ap50", "ap60", "ap70", "ap80", "ap90")  # on 80 columns of a terminal
STYLES = ("-", "--", ":", "-.")  # of the last stage, the one before, ...

READING = (
    "AP of each stage alone: its scores on the boxes that come to it, and the boxes that it makes of them, "
    "with the selection of the recipe. 'ensemble' is the run as it is evaluated, where the recipe combines "
    "the scores of several stages. The last stage minus the one before and minus a detector with one head: "
    "below 0 at low IoU and above 0 at high IoU is the gap of cascades; sharing features is to lift the low "
    "end and keep the high one. Scores are those of detections whose best object of the class has IoU 0.5 to "
    "0.75: scored lower by the last stage than by the one before, they are what it loses at low IoU."
)


class StageDetections(StaticShapeModel):
    """Model that detects with each stage of a cascade alone, or once with any other detector.

    Call:
        x: {"images", "size_hw"}.
    Returns:
        {answer: {"boxes", "scores", "labels", "valid"}}, answers as in `answers_of`, in px of the network
        input.
    """

    def __init__(self, detector):
        super().__init__()
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        detector, raw = self.detector, self.detector(x, training=False)
        if not num_stages(detector):
            return {FUSED: self._selected(x, detector.candidates(x, raw))}
        proposals = detector.proposals(x, raw)
        predictions = detector.refined(x, raw, proposals)
        head, size_hw = detector.roi_head, x[SIZE_HW]
        found = {}
        for answer in answers_of(detector):
            if answer == ENSEMBLE:
                candidates = head.candidates(predictions, proposals, size_hw)
            else:
                of_stage = head.of_stage(predictions, _stage(answer), size_hw)
                candidates = {**of_stage, VALID: proposals[VALID][..., None]}
            found[answer] = self._selected(x, detector.fused(candidates, proposals))
        return found

    def _selected(self, x, candidates):
        found = self.detector.select(x, candidates)
        return {key: found[key] for key in KEPT}


def num_stages(detector) -> int:
    """Returns the number of stages of a cascade; 0 for other detectors."""
    head = getattr(detector, "roi_head", None)
    return len(head.ious) if hasattr(head, "of_stage") else 0


def answers_of(detector) -> list[str]:
    """Lists "stage 1", "stage 2", ... and "ensemble"; of other detectors, "own"."""
    count = num_stages(detector)
    if not count:
        return [FUSED]
    combined = count > 1 and detector.roi_head.ensemble != "last"
    return [f"stage {stage}" for stage in range(1, count + 1)] + [ENSEMBLE] * combined


def _stage(answer):
    return int(answer.split()[1])


def analyze_stages(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    max_detections: int | None = None,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes the AP of every stage of the runs' cascades, and the scores of boxes of moderate IoU.

    Args:
        runs:     run directories, at least one of a cascade; others are curves to compare with.
        to:       folder for stages, differences and scores (.csv, .png, .svg) and reading.txt.
        max_detections: number of detections of a class in an image that count; None: that of the recipes.
        weights:  file to use instead of a run's best weights.
        limit:    number of images, from the first; None: all.
        progress: function of (images done, images in total).
    Returns:
        {"rows": of stages.csv, "differences": of differences.csv, "reading": the paragraph}.
    Raises:
        UserError: no run has a cascade of two stages or more, the runs have different images or limits of
            detections, or there are no objects.
    """
    names = ["stages", "differences", "scores"]
    to = analysis_folder(to, names, names)
    loaded = open_runs(runs, weights)
    if not any(num_stages(run.detector) > 1 for run in loaded):
        raise UserError(f"{runs[0]}: no cascade of two stages or more; name a run of one, others beside it")
    most, ap, scores = max_detections_of(loaded, max_detections), {}, {}
    for run, answer, table in _tables(loaded, most, limit, progress):
        ap[run.name, answer] = ap_by_iou(table)[:, 0]
        scores[run.name, answer] = scores_of(table.arrays())
    gaps = differences(ap)
    tables = {"stages": ap_rows(ap), "differences": difference_rows(gaps), "scores": score_rows(scores)}
    figures = {
        "stages": ap_figure(ap),
        "differences": difference_figure(gaps),
        "scores": score_figure(scores),
    }
    reading = " ".join([READING, *_sentences(gaps)])
    write_analysis(to, reading, tables, figures)
    return {"rows": tables["stages"], "differences": tables["differences"], "reading": reading}


def _tables(runs, max_detections, limit, progress):
    """Yields (run, answer, EvaluationTable) of all curves, with the results of one of them in memory."""
    for number, run in enumerate(runs):
        found, image_ids = _detections(run, limit, progress_of_run(progress, runs, number, limit))
        require_objects(sum(len(run.objects.get(one, ())) for one in image_ids), [run.name])
        ground_truth = read_json(run.data.annotations)
        for answer, batches in found.items():
            results = [one for batch in batches for one in results_of(*batch, run.categories)]
            limits = dict(max_detections=max_detections)
            yield run, answer, EvaluationTable(ground_truth, results, image_ids, **limits)


def _detections(run, limit, on_batch):
    """{answer: [arguments of `results_of`, but the categories, for each batch]}, ids of all images."""
    if num_stages(run.detector):
        run.detector.roi_head.test_stage = None  # all of them
    model, found, image_ids, size = ready_to_predict(StageDetections(run.detector)), {}, [], None
    for x, meta in run.data.val_batches(limit):
        ids, original_hw = np.asarray(meta[IMAGE_ID]), np.asarray(meta[ORIGINAL_HW])
        size = size or len(ids)
        x = pad_batch(x, size)
        outputs = model.predict_on_batch(x)
        for answer in answers_of(run.detector):
            detections = {key: value[: len(ids)] for key, value in outputs[answer].items()}
            detections = to_original(detections, x[SIZE_HW][: len(ids)], original_hw)
            detections = {key: ops.convert_to_numpy(value) for key, value in detections.items()}
            found.setdefault(answer, []).append((detections, ids, original_hw))
        image_ids += [int(one) for one in ids if one >= 0]
        on_batch(len(image_ids))
    return found, image_ids


# --- numbers ------------------------------------------------------------------------------------------------


def scores_of(table) -> tuple[np.ndarray, np.ndarray]:
    """Finds detections whose best object of their class has an IoU of 0.5 to 0.75, crowds left out.   Fig. 5

    Args:
        table: kgarden.metrics.arrays.Table.
    Returns:
        (their IoU (n,), their score (n,))
    """
    objects, detections = table.objects, table.detections
    near = pairs(table, least=LOW)
    same = detections.label[near.detection] == objects.label[near.object]
    near = near.where(same & ~objects.crowd[near.object])
    best = np.zeros(len(detections))
    np.maximum.at(best, near.detection, near.iou)
    chosen = (best >= LOW) & (best <= HIGH)
    return best[chosen], detections.score[chosen]


def differences(ap: dict) -> dict[tuple[str, str, str], np.ndarray]:
    """Subtracts from the AP of each cascade's last stage that of the stage before, and of each other run.

    Args:
        ap: {(run, answer): (T,)}.
    Returns:
        {(run, "stage N", what is subtracted: "stage N - 1" or the name of a run): (T,)}
    """
    stages, single = {}, [run for run, answer in ap if answer == FUSED]
    for run, answer in ap:
        if answer.startswith("stage"):
            stages.setdefault(run, []).append(answer)
    found = {}
    for run, answers in stages.items():
        last = ap[run, answers[-1]]
        if len(answers) > 1:
            found[run, answers[-1], answers[-2]] = last - ap[run, answers[-2]]
        for other in single:
            found[run, answers[-1], other] = last - ap[other, FUSED]
    return found


def ap_rows(ap):
    """Builds a row for each curve: AP and AP at each threshold."""
    return [
        {"run": run, "answer": answer, "ap": rounded(values.mean(), 3), **_by_threshold(values)}
        for (run, answer), values in ap.items()
    ]


def difference_rows(gaps):
    """Builds a row for each difference, at each threshold."""
    return [
        {"run": run, "answer": last, "minus": minus, "ap": rounded(values.mean(), 3), **_by_threshold(values)}
        for (run, last, minus), values in gaps.items()
    ]


def _by_threshold(values):
    return {_column(iou): rounded(one, 3) for iou, one in zip(IOUS, values, strict=True)}


def _column(iou):
    return f"ap{round(100 * iou)}"


def gap_table(rows: Sequence[dict]) -> tuple[tuple[str, ...], list[list]]:
    """Returns head and lines of the differences at IoU 0.5 and 0.8.

    Args:
        rows: of differences.csv.
    """
    lines = [
        [row["run"], f"{row['answer']} - {row['minus']}", *(row[_column(iou)] for iou in PRINTED)]
        for row in rows
    ]
    return ("run", "difference of AP", *(f"at IoU {iou}" for iou in PRINTED)), lines


def score_rows(scores):
    """Builds a row for each curve and bin of IoU: number, mean and quartiles of the scores."""
    rows = []
    for (run, answer), (iou, score) in scores.items():
        edges = np.linspace(LOW, HIGH, IOU_BINS + 1)
        for number, inside in enumerate(_in_iou_bins(iou)):
            quartiles = np.quantile(score[inside], [0.25, 0.5, 0.75]) if inside.any() else [np.nan] * 3
            mean = score[inside].mean() if inside.any() else np.nan
            of_bin = {"iou_from": rounded(edges[number]), "iou_to": rounded(edges[number + 1])}
            named = zip(("mean", "q25", "median", "q75"), (mean, *quartiles), strict=True)
            row = {"run": run, "answer": answer, **of_bin, "n": int(inside.sum())}
            rows.append(row | {f"score_{name}": rounded(value) for name, value in named})
    return rows


def _in_iou_bins(iou):
    """A mask of each bin; the last includes its upper end."""
    number = np.minimum((IOU_BINS * (iou - LOW) / (HIGH - LOW)).astype(int), IOU_BINS - 1)
    return [number == one for one in range(IOU_BINS)]


def _sentences(gaps):
    """What the differences of each cascade are, in words."""
    for (run, last, minus), values in gaps.items():
        parts = (f"{one:+.1f} at IoU {iou:g}" for iou, one in zip(IOUS, values, strict=True) if _printed(iou))
        yield f"{run}: {last} minus {minus} is {' and '.join(parts)}."


def _printed(iou):
    return any(np.isclose(iou, one) for one in PRINTED)


# --- figures ------------------------------------------------------------------------------------------------


def styles_of(keys) -> dict[tuple[str, str], dict]:
    """Chooses label, colour, line style and marker of each (run, answer).

    A colour for each run, or with one run for each answer; the last stage is solid, the ones before dashed,
    dotted and dash-dotted; ensembles have points.
    """
    runs = list(dict.fromkeys(run for run, _ in keys))
    styles = {}
    for run in runs:
        answers = [answer for one, answer in keys if one == run]
        stages = [answer for answer in answers if answer.startswith("stage")]
        for number, answer in enumerate(answers):
            color = COLORS[(runs.index(run) if len(runs) > 1 else number) % len(COLORS)]
            back = len(stages) - 1 - stages.index(answer) if answer in stages else 0
            styles[run, answer] = {
                "label": run if answer == FUSED else f"{run}: {answer}",
                "color": color,
                "linestyle": STYLES[back % len(STYLES)],
                "marker": "o" if answer == ENSEMBLE else None,
                "markersize": 3.5,
            }
    return styles


def ap_figure(ap):
    """Draws AP over the IoU threshold, all of them and up to 0.75.   Fig. 4"""
    result = figure_of(11.5, 4.2)
    for ax, shown in zip(result.subplots(1, 2), (len(IOUS), 6), strict=True):
        for key, style in styles_of(ap).items():
            ax.plot(IOUS[:shown], ap[key][:shown], linewidth=1.7, **style)
        ax.set_xlabel("IoU threshold", color=INK)
        style_axes(ax)
    result.axes[0].set_ylabel("AP", color=INK)
    result.axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    return result


def difference_figure(gaps):
    """Draws the last stage minus the stage before, and minus each other run.   Figs. 1 and 3"""
    colors = styles_of([(run, FUSED) for run in dict.fromkeys(run for run, _, _ in gaps)])
    panels = list(dict.fromkeys(_panel(*key) for key in gaps))
    result = figure_of(4.2 * len(panels) + 2.6, 4.0)
    axes = result.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        ax.axhline(0, color=GRAY, linewidth=1.0)
        for (run, last, minus), values in gaps.items():
            if _panel(run, last, minus) == panel:
                color = colors[run, FUSED]["color"]
                ax.plot(IOUS, values, color=color, linewidth=1.7, marker="o", markersize=3.5, label=run)
        ax.set_title(panel, fontsize=10.5, color=INK)
        ax.set_xlabel("IoU threshold", color=INK)
        style_axes(ax)
    axes[0].set_ylabel("difference of AP", color=INK)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    return result


def _panel(run, last, minus):
    return f"{last} minus {minus}" if minus.startswith("stage ") else f"last stage minus {minus}"


def score_figure(scores):
    """Draws the distribution of the scores, and their mean over the IoU.   Fig. 5"""
    result = figure_of(11.5, 4.2)
    shares, means = result.subplots(1, 2)
    edges, centers = (
        np.linspace(0, 1, SCORE_BINS + 1),
        LOW + (np.arange(IOU_BINS) + 0.5) * (HIGH - LOW) / IOU_BINS,
    )
    for key, style in styles_of(scores).items():
        iou, score = scores[key]
        line = {name: style[name] for name in ("color", "linestyle", "label")}
        share = 100 * np.histogram(score, edges)[0] / max(len(score), 1)
        shares.stairs(share, edges, linewidth=1.7, **line)
        mean = [score[inside].mean() if inside.any() else np.nan for inside in _in_iou_bins(iou)]
        means.plot(centers, mean, linewidth=1.7, **style)
    shares.set(xlabel="score", ylabel=f"percent of detections with IoU {LOW} to {HIGH}", xlim=(0, 1))
    means.set(xlabel="IoU with the best object of the class", ylabel="mean score", xlim=(LOW, HIGH))
    for ax in (shares, means):
        style_axes(ax)
    means.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    return result
