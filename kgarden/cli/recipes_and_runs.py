"""The commands on recipes and runs: describe, train, evaluate, predict, export, bench."""

import difflib
import functools
import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import (
    DrawnOption,
    JsonOption,
    RecipeArgument,
    RowOption,
    RunArgument,
    SetOption,
    say_missing_glyphs,
    settings_of,
    start_tensorflow,
)
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.runs import default_run, load_categories
from kgarden.utils.files import authored, check_report, write_report
from kgarden.utils.text import printable

runs_app = typer.Typer()


@runs_app.command()
def describe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN")],
    set_: SetOption = None,
    row: RowOption = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, if there is no data yet.")] = None,
) -> None:
    """Summarise a model: parts, files, output shapes, parameters, GMACs."""
    start_tensorflow()
    from rich.console import Console
    from rich.table import Table

    from kgarden.build import build_model, canvases
    from kgarden.commands.describe import describe as measure
    from kgarden.commands.describe import published
    from kgarden.metrics.tables import plain

    chosen = load_recipe(recipe, settings_of(set_), row)
    canvas = canvases(chosen)[0]
    detector = build_model(chosen, num_classes=classes)
    rows = measure(detector, canvas)
    title = plain(f"{chosen.name}, one image of {canvas[0]}x{canvas[1]} px")
    table = Table(title=title, title_justify="left")
    for column in ("part", "class", "file", "output", "parameters", "trained", "GMACs"):
        numeric = column in ("parameters", "trained", "GMACs")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for one in rows:
        numbers = (f"{one['parameters']:,}", f"{one['trained']:,}", f"{one['gmacs']:.2f}")
        table.add_row(*map(plain, (one["part"], one["class"], one["file"], one["output"])), *numbers)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for one in published(detector):
        print(f"{one['what']}: {one['here']} here, {one['published']} published ({one['source']})")


@runs_app.command()
def train(
    recipe: RecipeArgument,
    run: Annotated[pathlib.Path | None, typer.Option(help="Run directory; default: runs/NAME[.ROW].")] = None,
    row: RowOption = None,
    set_: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move the existing run aside and start over.")
    ] = False,
) -> None:
    """Train a recipe, or resume an interrupted run."""
    settings = settings_of(set_)
    run = run or default_run(load_recipe(recipe, settings, row).name, row)  # faults are said at once
    start_tensorflow()
    from kgarden.commands.train import train as fit
    from kgarden.training.reporter import Reporter

    reporter = Reporter()
    if fit(recipe, run, settings, row=row, fresh=fresh, reporter=reporter) is None:
        raise typer.Exit(1)
    print(f"saved to {run}: evaluation.json, evaluation/, detections.json, best.weights.h5, pictures/")
    for note in reporter.notes:
        print(f"note: {printable(note)}")


@runs_app.command()
def evaluate(
    subject: Annotated[
        str, typer.Argument(metavar="RUN|DETECTIONS.json", help="Run directory, or COCO results file.")
    ],
    annotations: Annotated[
        pathlib.Path | None, typer.Option(help="COCO ground truth (required for a results file).")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Other shards than data.val (runs only).")] = None,
    weights: Annotated[
        pathlib.Path | None, typer.Option(help="Other weights than the best ones (runs only).")
    ] = None,
    set_: SetOption = None,
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated: coco, voc07, voc_area, open_images, lvis.")
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(min=1, help="Detections per class and image that COCO's metrics judge; COCO: 100."),
    ] = None,
    open_images: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER",
            help="Detections that count for open_images: verified, annotated, release or none; default: "
            "verified if the ground truth has image-level labels, else none.",
        ),
    ] = None,
    iou_type: Annotated[str, typer.Option(help="bbox or segm (results files only).")] = "bbox",
    to: Annotated[
        pathlib.Path | None,
        typer.Option(help="Output directory: evaluation.json, detections.json, analysis, figures."),
    ] = None,
    json_: JsonOption = None,
) -> None:
    """Evaluate a run's best checkpoint, or an existing COCO results file."""
    names = _metric_names(metrics)
    if json_ is not None:
        check_report(json_)
    if pathlib.Path(subject).is_file() or subject.endswith(".json"):
        _refuse(
            {"--data": data, "--weights": weights, "--set": set_},
            "runs, not for results files",
        )
        if annotations is None:
            raise UserError(f"{subject}: a results file needs ground truth; use --annotations FILE")
        settings = {"metrics": names or ["coco"], "iou_type": iou_type}
        settings |= {"max_detections": max_detections} if max_detections else {}
        evaluation = _evaluate_file(subject, annotations, settings, open_images, to=to)
    else:
        _refuse({"--annotations": annotations}, "results files; use --data GLOB for other data of a run")
        if iou_type != "bbox":
            raise UserError(
                "--iou-type segm is for results files only; a run is evaluated on boxes, and also on masks "
                "if its model predicts them"
            )
        changes = settings_of(set_) | ({"evaluate.metrics": names} if names else {})
        changes |= {"evaluate.max_detections": max_detections} if max_detections else {}
        changes |= {"evaluate.open_images.filter": open_images} if open_images else {}
        evaluation = _evaluate_run(pathlib.Path(subject), data, weights, changes, to=to, keep=json_ is None)
    from kgarden.training.reporter import Reporter

    for note in evaluation.get("notes", []):
        print(printable(note), file=sys.stderr)
    if json_ is not None:
        write_report(json_, evaluation)
    Reporter().evaluation(evaluation)


def _metric_names(text):
    """The names of `--metrics`; None without any."""
    from kgarden.metrics.registry import HEADLINES

    names = [name.strip() for name in text.split(",")] if text else None
    unknown = [name for name in names or () if name not in HEADLINES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], HEADLINES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--metrics {unknown[0]}: {hint}There are {', '.join(HEADLINES)}")
    return names


def _refuse(options, scope):
    used = [name for name, value in options.items() if value]
    if used:
        raise UserError(f"{', '.join(used)}: only valid for {scope}")


def _evaluate_file(detections, annotations, settings, open_images, to):
    """Evaluates a results file, without importing TensorFlow or Keras."""
    from kgarden.metrics.open_images import Rules
    from kgarden.metrics.report import report_folder, score_file, write_folder

    folder = None if to is None else report_folder(to)
    if folder is not None:
        folder.check("evaluation.json")
    evaluation, analysis = score_file(detections, annotations, open_images=Rules(open_images), **settings)
    if folder is not None:
        say_missing_glyphs(evaluation["per_class"])
        write_folder(folder, evaluation, analysis)
        folder.write_json("evaluation.json", authored(evaluation))
    return evaluation


def _evaluate_run(run, data, weights, changes, to, keep):
    """Evaluates a run; the results are stored in the folder of `--to`.

    They are also those of the run if nothing was overridden.
    """
    start_tensorflow()
    from kgarden.commands.evaluate import evaluate as measure
    from kgarden.training.reporter import Reporter

    keep = keep and not (data or weights or changes)
    say = functools.partial(print, file=sys.stderr)
    with Reporter().evaluating(None) as on_batch:
        more = dict(store=keep, on_batch=on_batch, say=say)
        evaluation = measure(run, data or None, weights, changes, to=to, **more)
    if to or keep:
        say_missing_glyphs(evaluation["per_class"])
    return evaluation


@runs_app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|DIR|GLOB|LIST.txt...")],
    to: Annotated[pathlib.Path, typer.Option(help="Output directory for drawings and detections.json.")],
    min_score: Annotated[float, typer.Option(help="Minimum score of drawn detections.")] = 0.3,
    labels: DrawnOption = "name",
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    set_: SetOption = None,
) -> None:
    """Detect objects in images and draw the detections."""
    start_tensorflow()
    from rich.console import Console

    from kgarden.commands.detection_summary import summary_table
    from kgarden.commands.predict import predict as detect

    faults = []
    results = detect(
        run,
        images,
        to,
        min_score=min_score,
        labels=labels,
        batch_size=batch_size,
        overrides=settings_of(set_),
        say=lambda line: print(printable(line), file=sys.stderr),
        on_fault=faults.append,
    )
    for fault in faults:
        print(printable(fault), file=sys.stderr)
    Console().print(summary_table(results, load_categories(run), min_score))
    print(f"{len(results)} images saved to {to}" + (f", {len(faults)} could not be read" if faults else ""))
    raise typer.Exit(1 if faults else 0)


@runs_app.command()
def export(
    run: RunArgument,
    to: Annotated[
        pathlib.Path, typer.Option(help="Output directory; each export is a numbered version in it.")
    ],
    form: Annotated[str, typer.Option("--format", help="saved_model, onnx or litert.")] = "saved_model",
    canvas: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="Canvas of the recipe (onnx, litert); default: all of them."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size (onnx, litert).")] = None,
) -> None:
    """Export a run to SavedModel, ONNX or LiteRT; serving needs no kgarden."""
    start_tensorflow()
    from kgarden.commands.export import export as write

    version = write(run, to, form, canvases=[_canvas(text) for text in canvas or []], batch=batch, say=print)
    print(f"saved to {version}")


def _canvas(text):
    high, _, wide = text.partition("x")
    if not (high.isdigit() and wide.isdigit()):
        raise UserError(f"--canvas {text}: use HEIGHTxWIDTH, for example 800x1344")
    return int(high), int(wide)


@runs_app.command()
def bench(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN")],
    what: Annotated[
        str,
        typer.Option(
            help="Comma-separated: train, settings, infer, nms, heads, stages, deform, pool, tsd, data, "
            "memory, eval."
        ),
    ] = "train,infer",
    set_: SetOption = None,
    row: RowOption = None,
    json_: JsonOption = None,
) -> None:
    """Benchmark speed and peak memory on this machine."""
    start_tensorflow(keep_programs=False)
    from kgarden.bench import bench as measure
    from kgarden.build import prepare_data

    if json_ is not None:
        check_report(json_)
    chosen, kinds = load_recipe(recipe, settings_of(set_), row), [kind.strip() for kind in what.split(",")]
    data = prepare_data(chosen) if {"data", "memory", "eval"} & set(kinds) else None
    figures = measure(chosen, kinds, data=data, report=print)
    if json_ is not None:
        write_report(json_, figures)
