"""Report: one HTML page of one or several runs with tables, curves and photos, which needs no network.

report(["runs/a", "runs/b"], "report.html")
"""

import base64
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from kgarden.build import prepare_data
from kgarden.commands.report_charts import COLOURS, DASHES, HEIGHT, WIDTH, Chart, Line, chart
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.judged import judged_images, mistakes
from kgarden.metrics.report import diagnosis_of
from kgarden.metrics.tables import class_label_of, label_of
from kgarden.metrics.tide import BEYOND, KINDS
from kgarden.runs import load_run_recipe
from kgarden.utils.files import check_writable, read_json, replace_file

PAGE = pathlib.Path(__file__).with_name("report_page")
GENERATOR = "kgarden report"
THUMBNAIL = 360  # px, longer side
QUALITY = 80  # of the JPEGs


class Run(NamedTuple):
    """What a report needs of a run.

    Args:
        name:       of the run directory.
        recipe:     Recipe.
        evaluation: as in evaluation.json.
        analysis:   as in evaluation/analysis.json.
        reports:    lines of metrics.jsonl.
        images:     of `judged_images`.
        categories: [{"id", "name"}, ...] by id.
        data:       kgarden.build.Data, its validation part.
        files:      {image id: file name}.
    """

    name: str
    recipe: Recipe
    evaluation: dict
    analysis: dict
    reports: list
    images: dict
    categories: list
    data: object
    files: dict


def report(runs: Sequence[str | os.PathLike], to: str | os.PathLike, images: int = 60) -> pathlib.Path:
    """Writes the page.

    Args:
        runs:   run directories with the same validation data; their latest evaluation is reported.
        to:     file of the page; replaced only if it is a report.
        images: number of photos, those with most mistakes.
    Returns:
        path of the page.
    Raises:
        UserError: not a run, not evaluated yet, other validation data, or a file that is not a report.
    """
    to = pathlib.Path(to)
    _check_file(to)
    opened = [_open(pathlib.Path(run)) for run in runs]
    for other in opened[1:]:
        if other.images.keys() != opened[0].images.keys() or other.categories != opened[0].categories:
            raise UserError(f"{other.name}: other validation data than {opened[0].name}; report them apart")
    replace_file(to, page_of(opened, images).encode())
    return to


def _check_file(path):
    check_writable(path)
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:2000]:
        raise UserError(f"{path}: exists and is not a report of kgarden; move it away, or use another file")


def _open(folder):
    recipe = load_run_recipe(folder)
    for name in ("evaluation.json", "evaluation/analysis.json", "detections.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; kgarden evaluate {folder} writes it")
    data = prepare_data(recipe, cache=folder / "data", splits=("val",))
    evaluation, analysis = (
        read_json(folder / "evaluation.json"),
        read_json(folder / "evaluation/analysis.json"),
    )
    results = read_json(folder / "detections.json")
    limit = evaluation.get("max_detections", 100)
    truth = read_json(data.annotations)
    table = EvaluationTable(truth, results, max_detections=limit).arrays()
    iou = analysis["iou"]
    return Run(
        name=str(folder),
        recipe=recipe,
        evaluation={**evaluation, **diagnosis_of(analysis)},
        analysis=analysis,
        reports=[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line],
        images=judged_images(table, iou["right"], iou["background_below"]),
        categories=[{"id": one["id"], "name": one["name"]} for one in table.categories],
        data=data,
        files={one["id"]: one.get("file_name") for one in truth["images"]},
    )


def page_of(runs: list[Run], images: int) -> str:
    """Returns the text of the page."""
    loader = jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _shown, "class_label": class_label_of}
    photos = _photos(runs, images)
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        runs=runs,
        metrics=[(name, label_of(name)) for name in runs[0].evaluation["metrics"]],
        kinds=[*KINDS, BEYOND],
        training=_training_charts(runs),
        curves=_curve_charts(runs),
        confusions=[_confusion(run) for run in runs],
        size=(WIDTH, HEIGHT),
        style=(PAGE / "page.css").read_text(),
        script=(PAGE / "page.js").read_text(),
        data=_embedded({"runs": [run.name for run in runs], "classes": runs[0].categories, "photos": photos}),
        shown=len(photos),
        total=len(runs[0].images),
        threshold=_threshold(runs[0]),
    )


def _shown(value, digits=1):
    return "–" if value is None else f"{value:.{digits}f}"


def _embedded(content):
    """JSON inside of a <script>: without a character that could end it."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _threshold(run):
    return run.evaluation["thresholds"]["all"]["score"] or 0.0


# --- charts ---------------------------------------------------------------------------------------


def _training_charts(runs) -> list[Chart]:
    """Loss terms, learning rate and metrics over the steps; runs differ in the dashes of their lines."""
    terms = [name for name in runs[0].reports[0] if name == "loss" or "/" in name]
    rated = [name for name in ("ap", "ap50", "ap75") if any(f"val/{name}" in one for one in runs[0].reports)]
    rated = rated or [runs[0].evaluation["headline"]]
    groups = [
        ("loss", ["loss"], None),
        ("loss terms", [name for name in terms if name != "loss"], None),
        ("learning rate", ["lr"], None),
        ("metrics, percent", [f"val/{name}" for name in rated], (0, 100)),
    ]
    charts = [chart(title, _lines(runs, names), y_range=bounds) for title, names, bounds in groups]
    return [one for one in charts if one]


def _lines(runs, names):
    lines = []
    for number, run in enumerate(runs):
        for name, colour in zip(names, _colours(len(names)), strict=True):
            rows = [one for one in run.reports if name in one]
            xs, ys = [one["step"] for one in rows], [one[name] for one in rows]
            lines.append(Line(_named(runs, run, name), xs, ys, colour, dash=DASHES[number % len(DASHES)]))
    return lines


def _colours(count):
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def _named(runs, run, name):
    return name if len(runs) == 1 else f"{run.name}: {name}"


def _curve_charts(runs) -> list[Chart]:
    """Precision over recall at each IoU, of each class and their mean."""
    charts = []
    for key in (key for key in runs[0].analysis["curves"] if key.startswith("iou")):
        lines = []
        for number, run in enumerate(runs):
            curves = run.analysis["curves"]
            dash = DASHES[number % len(DASHES)]
            for category, colour in zip(run.categories, _colours(len(run.categories)), strict=True):
                if ys := curves[key]["per_class"].get(str(category["id"])):
                    name = _named(runs, run, category["name"])
                    lines.append(Line(name, curves["recall"], ys, colour, dash=dash))
            if mean := curves[key]["mean"]:
                mean_name = _named(runs, run, "mean")
                lines.append(Line(mean_name, curves["recall"], mean, "#000000", dash=dash))
        charts.append(chart(f"precision over recall at IoU 0.{key[3:]}", lines, "recall", (0, 100)))
    return [one for one in charts if one]


def _confusion(run):
    """{"score", "iou", "names", "rows": [(name, [(count, fraction of the row), ...]), ...]}, for a table."""
    confusion = run.analysis["confusion"]
    ids = [*(one["id"] for one in run.categories), None]
    names = [*(one["name"] for one in run.categories), "background"]
    counts = {(row, column): count for row, column, count in confusion["cells"]}
    rows = []
    for name, row in zip(names, ids, strict=True):
        cells = [counts.get((row, column), 0) for column in ids]
        rows.append((name, [(count, count / (sum(cells) or 1)) for count in cells]))
    return {**confusion, "names": names, "rows": rows}


# --- photos ---------------------------------------------------------------------------------------


def _photos(runs, most):
    """The photos with most mistakes, all runs together, at the score of each run's best F1."""

    def worst(image_id):
        return -sum(mistakes(run.images[image_id], _threshold(run)) for run in runs)

    chosen = sorted(runs[0].images, key=lambda one: (worst(one), one))[:most]
    return [_photo(runs, image_id) for image_id in chosen]


def _photo(runs, image_id):
    from kgarden.data.examples import stored_example

    [dataset] = runs[0].data.val
    [row] = np.flatnonzero(dataset.index.image_id == image_id)[:1]
    image = stored_example(dataset, int(row))["image"]
    height, width = image.shape[:2]
    return {
        "id": image_id,
        "name": runs[0].files.get(image_id) or str(image_id),
        "width": width,
        "height": height,
        "jpeg": _jpeg(image),
        "objects": [one[:6] for one in runs[0].images[image_id]["objects"]],
        "runs": [
            {
                "detections": run.images[image_id]["detections"],
                "found": [one[6] for one in run.images[image_id]["objects"]],
            }
            for run in runs
        ],
    }


def _jpeg(image):
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "jpeg", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
