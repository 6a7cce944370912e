"""IoU sweep: AP at single IoU thresholds by object size, of several detectors, and differences to the first.

Song et al. 2020 (TSD), arXiv:2003.07540, section 3.7: Fig. 6 and Table 9.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from kgarden.analyze.loaded_runs import (
    EVERY,
    SIZES,
    max_detections_of,
    open_runs,
    progress_of_run,
    require_objects,
    size_of,
)
from kgarden.analyze.outputs import analysis_folder, rounded, write_analysis
from kgarden.errors import UserError
from kgarden.evaluation import batches_of, detect
from kgarden.inference.predictor import inference_of
from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.coco import AREAS, IOUS, ap_by_iou
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.figures import COLORS, FAINT, INK, figure_of, style_axes
from kgarden.metrics.report import read_detections
from kgarden.utils.files import read_json

PUBLISHED = (0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds of Table 9

READING = (
    "Top: AP, mean over classes, if a detection has to overlap its object by at least the given IoU. COCO's "
    "AP is the mean over the ten thresholds. A curve that falls late belongs to precise boxes; its height at "
    "0.5 depends mostly on scores and on objects that are found at all."
)
READING_OF_DIFFERENCES = (
    "Bottom: difference to the first, in points of AP. A difference that grows with the threshold is due to "
    "more precise boxes, a level one to classification."
)


def analyze_iou_sweep(
    subjects: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    iou_type: str = "bbox",
    max_detections: int | None = None,
    weights: str | os.PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Computes AP at the IoU thresholds 0.5, 0.55, ..., 0.95 by object size.

    Args:
        subjects:       run directories, whose detectors run on their validation data; or files of
                        detections in any form that `kgarden evaluate` reads.
        to:             folder for iou_sweep.csv, .png, .svg and reading.txt.
        annotations:    COCO ground truth of the files; None for runs.
        iou_type:       "bbox" or "segm".
        max_detections: number of detections of a class in an image that count; None: that of the runs'
                        recipes, for files COCO's 100.
        weights:        file to use instead of the best weights; for a single run only.
        limit:          number of images, from the first; None: all; for runs only.
        progress:       function of (images done, images in total).
    Returns:
        {"rows": of the table, "reading": the paragraph}.
    Raises:
        UserError: runs and files are mixed, ground truth is missing or differs, there are no objects, or
                   masks are wanted and missing.
    """
    to = analysis_folder(to, ["iou_sweep"], ["iou_sweep"])
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"--iou-type {iou_type} is not supported; use bbox or segm")
    if _are_files(subjects):
        if weights or limit:
            raise UserError("--weights, --limit: only valid for runs, not for files of detections")
        tables = _tables_of_files(subjects, annotations, max_detections)
    else:
        if annotations:
            raise UserError("--annotations: only valid for files of detections; a run has its data.val")
        tables = _tables_of_runs(
            subjects, iou_type, max_detections, weights=weights, limit=limit, progress=progress
        )
    counts = count_objects(next(iter(tables.values())), iou_type)
    if annotations and not counts[EVERY]:
        raise UserError(f"{annotations}: the ground truth has no objects")
    require_objects(counts[EVERY], subjects)
    ap = {name: ap_by_iou(table, IOUS, iou_type) for name, table in tables.items()}
    rows = table_of_sweep(ap, counts)
    reading = describe_sweep(ap, counts, iou_type)
    write_analysis(to, reading, {"iou_sweep": rows}, {"iou_sweep": figure(ap, counts)})
    return {"rows": rows, "reading": reading}


# --- detections ---------------------------------------------------------------------------------------------


def _are_files(subjects):
    files = [str(one) for one in subjects if pathlib.Path(one).is_file() or str(one).endswith(".json")]
    if files and len(files) < len(subjects):
        raise UserError(
            f"{files[0]} is a file, another argument is a run; give runs alone, or files alone (a run's "
            "detections.json is one)"
        )
    return bool(files)


def _tables_of_files(files, annotations, max_detections):
    """{name: EvaluationTable} of files with detections on the same ground truth."""
    if annotations is None:
        raise UserError(f"{files[0]}: files of detections need ground truth; use --annotations FILE")
    names = [pathlib.Path(one).stem for one in files]
    if len(set(names)) < len(names):
        names = list(map(str, files))
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)}: the file is given twice; name it once")
    limit = max_detections or COCO_MAX_DETECTIONS
    tables = {}
    for name, path in zip(names, files, strict=True):
        truth, results, _ = read_detections(path, annotations)
        tables[name] = EvaluationTable(truth, results, max_detections=limit)
    return tables


def _tables_of_runs(runs, iou_type, max_detections, *, weights, limit, progress):
    """{name: EvaluationTable} of runs with equal validation data."""
    loaded = open_runs(runs, weights)
    most = max_detections_of(loaded, max_detections)
    for run in loaded:
        if iou_type == "segm" and run.detector.mask_head is None:
            raise UserError(f"{run.name}: {run.recipe.model.name} predicts no masks; use --iou-type bbox")
    tables = {}
    for number, run in enumerate(loaded):
        batches = batches_of(run.data, run.recipe, run.detector, limit)
        model = inference_of(run.detector, run.recipe)
        report = progress_of_run(progress, loaded, number, limit)
        results, image_ids, _ = detect(model, batches, run.categories, report)
        tables[run.name] = EvaluationTable(
            read_json(run.data.annotations),
            results,
            image_ids,
            max_detections=most,
        )
    return tables


# --- table, figure and reading ------------------------------------------------------------------------------


def count_objects(table: EvaluationTable, iou_type: str = "bbox") -> dict[str, int]:
    """Counts the objects of each size, {"small", "medium", "large", "all": number}; crowds are left out."""
    counts = dict.fromkeys((*SIZES, EVERY), 0)
    truth = table.complete(iou_type)
    images = {one["id"] for one in truth["images"]}
    images = images if table.image_ids is None else images & table.image_ids
    classes = {one["id"] for one in truth["categories"]}
    for one in truth["annotations"]:
        if one["image_id"] in images and one["category_id"] in classes and not one["iscrowd"]:
            counts[size_of(one["area"])] += 1
            counts[EVERY] += 1
    return counts


def table_of_sweep(ap: dict[str, np.ndarray], counts: dict[str, int]) -> list[dict]:
    """Builds a row for each run, size and threshold; `difference` is that to the first run.

    Args:
        ap:     {run: (10, 4) of `ap_by_iou`}.
        counts: of `count_objects`.
    """
    first = next(iter(ap))
    return [
        {
            "run": run,
            "size": size,
            "objects": counts[size],
            "iou": round(float(iou), 2),
            "ap": rounded(values[at, column]),
            "difference": None if run == first else rounded(values[at, column] - ap[first][at, column]),
        }
        for run, values in ap.items()
        for column, size in enumerate(AREAS)
        for at, iou in enumerate(IOUS)
    ]


def describe_sweep(ap, counts, iou_type):
    """The paragraph: how to read the figure, and what it shows."""
    first, *others = ap
    sentences = [READING, READING_OF_DIFFERENCES] if others else [READING]
    low, high = (_position(iou) for iou in (PUBLISHED[0], PUBLISHED[-1]))
    for run, values in ap.items():
        at = {one: values[one, AREAS.index(EVERY)] for one in (low, high)}
        if run == first:
            sentences.append(f"{run}: AP {at[low]:.1f} at IoU 0.5, {at[high]:.1f} at 0.9.")
        else:
            more = {one: at[one] - ap[first][one, AREAS.index(EVERY)] for one in at}
            sentences.append(f"{run} - {first}: {more[low]:+.1f} at IoU 0.5, {more[high]:+.1f} at 0.9.")
    sizes = ", ".join(f"{counts[size]} {size}" for size in SIZES)
    overlap = "masks" if iou_type == "segm" else "boxes"
    sentences.append(
        f"IoU is that of {overlap}. {counts[EVERY]} objects ({sizes}); small, medium and large are COCO's: "
        "an area below 32 x 32 px of the original image, up to 96 x 96, or above."
    )
    return " ".join(sentences)


def _position(iou):
    return int(np.argmin(np.abs(IOUS - iou)))


def published_rows(rows: list[dict]) -> list[list]:
    """Returns the rows of Table 9's form, [run, size, AP at each of PUBLISHED, their COCO AP]."""
    lines = {}
    for row in rows:
        lines.setdefault((row["run"], row["size"]), {})[row["iou"]] = row["ap"]
    return [
        [*key, *(line[iou] for iou in PUBLISHED), rounded(np.mean(list(line.values())))]
        for key, line in lines.items()
        if None not in line.values()
    ]


def figure(ap, counts):
    """Draws a panel for each size with objects: AP, and below the differences to the first run."""
    sizes = [size for size in AREAS if counts[size]]
    first, *others = ap
    lines = 2 if others else 1
    result = figure_of(2.9 * len(sizes) + 2.4, 3.1 * lines + 0.4)
    panels = result.subplots(lines, len(sizes), sharex=True, sharey="row", squeeze=False)
    for column, size in enumerate(sizes):
        at = AREAS.index(size)
        panels[0, column].set_title(f"{size} ({counts[size]} objects)", fontsize=10.5, color=INK)
        panels[-1, column].set_xlabel("IoU threshold", color=INK)
        for number, (run, values) in enumerate(ap.items()):
            look = dict(color=COLORS[number % len(COLORS)], linewidth=1.8, marker="o", markersize=3.5)
            panels[0, column].plot(IOUS, values[:, at], label=run, **look)
            if run != first:
                panels[1, column].plot(IOUS, values[:, at] - ap[first][:, at], **look)
        if others:
            panels[1, column].axhline(0, color=FAINT, linewidth=1.2, zorder=1)
    for ax in panels.ravel():
        ax.set_xticks(PUBLISHED)
        style_axes(ax)
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].set_ylabel("AP (%)", color=INK)
    if others:
        panels[1, 0].set_ylabel(f"difference to {first}", color=INK)
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, frameon=False)
    return result
