"""The door: reads the command line, hands over to one function, prints, returns an exit code.

0: done. 1: the work ran and found faults. 2: wrong usage, recipe or input, told in one line.
Heavy imports stand inside the commands, so that `kgarden --help` answers at once.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import Annotated

import typer

from kgarden.recipe import load_recipe, packaged_recipes, parse_value
from kgarden.schema import UserError

app = typer.Typer(
    help="An object-detection model garden: train, measure, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make and look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="path of a recipe, or the name of one")]
RunArgument = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="run directory")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set a key of the recipe; may be repeated"),
]
RowOption = Annotated[str | None, typer.Option("--row", help="a row of the recipe's tables")]
JsonOption = Annotated[pathlib.Path | None, typer.Option("--json", help="write the numbers to this file")]


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="recipes, rows, models, backbones or datasets")] = "all",
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="whose rows")] = None,
):
    """Models and recipes, one line each."""
    listings = {"recipes": _recipes, "models": _models, "backbones": _backbones, "datasets": _datasets}
    if what == "rows":
        if recipe is None:
            raise UserError("list rows: whose? `kgarden list rows RECIPE`")
        for line in _rows(load_recipe(recipe)):
            print(line)
    elif what in listings:
        for line in listings[what]():
            print(line)
    elif what == "all":
        for name in ("recipes", "models"):
            print(f"{name}:")
            for line in listings[name]():
                print(f"  {line}")
    else:
        raise UserError(f"list {what}: there are recipes, rows RECIPE, models, backbones, datasets")


def _recipes():
    for stem, path in packaged_recipes().items():
        yield f"{stem:24} {path.read_text().splitlines()[0].lstrip('# ')}"


def _rows(recipe):
    for row_id, row in recipe.rows.items():
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in row.set.items())
        reported = " ".join(f"{name} {value}" for name, value in row.reported.items())
        origin = f"  [scores {row.evaluates} again]" if row.evaluates else ""
        other = f"  [recipe {row.recipe}]" if row.recipe else ""
        yield f"{row_id:20} {reported:28} {changes or 'as it stands'}{origin}{other}"


def _models():
    from kgarden.models import MODELS

    return [f"{name:24} {builder.__doc__.strip().splitlines()[0]}" for name, builder in MODELS.items()]


def _backbones():
    from kgarden.backbones import BACKBONES

    return list(BACKBONES)


def _datasets():
    return [
        "coco      json of images, annotations and categories, and a folder of pictures",
        "shapes    embedded, drawn from a seed: textured backgrounds, six shapes",
    ]


@app.command()
def describe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN")],
    set_: SetOption = None,
    row: RowOption = None,
    classes: Annotated[int | None, typer.Option(help="number of classes, where there is no data yet")] = None,
):
    """The assembled parts: file, output shapes, parameters, multiplications."""
    _start_tensorflow()
    from rich.console import Console
    from rich.table import Table

    from kgarden.build import build_model, canvases
    from kgarden.describe import describe as measure

    chosen = load_recipe(recipe, _settings(set_), row)
    canvas = canvases(chosen)[0]
    rows = measure(build_model(chosen, num_classes=classes), canvas)
    table = Table(title=f"{chosen.name}, one picture of {canvas[0]}x{canvas[1]} px", title_justify="left")
    for column in ("part", "class", "file", "output", "parameters", "trained", "GMACs"):
        numeric = column in ("parameters", "trained", "GMACs")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for one in rows:
        numbers = (f"{one['parameters']:,}", f"{one['trained']:,}", f"{one['gmacs']:.2f}")
        table.add_row(one["part"], one["class"], one["file"], one["output"], *numbers)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def train(
    recipe: RecipeArgument,
    run: Annotated[pathlib.Path | None, typer.Option(help="run directory; default runs/NAME[.ROW]")] = None,
    row: RowOption = None,
    set_: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="move what the directory holds aside, start anew")
    ] = False,
):
    """Train a recipe, or go on with a run that was stopped."""
    chosen = load_recipe(recipe, _settings(set_), row)
    if chosen.rows and row and chosen.rows[row].evaluates:
        raise UserError(
            f"row {row} scores {chosen.rows[row].evaluates} again: train that row, then evaluate its run "
            f"with --set"
        )
    _start_tensorflow()
    from kgarden.train import train as fit

    run = run or pathlib.Path("runs") / (f"{chosen.name}.{row}" if row else chosen.name)
    if fit(chosen, run, fresh=fresh) is None:
        raise typer.Exit(1)
    print(f"left in {run}: evaluation.json, detections.json, best.weights.h5, pictures/")


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option(help="other shards than the recipe's data.val")] = None,
    weights: Annotated[pathlib.Path | None, typer.Option(help="other weights than the run's best")] = None,
    set_: SetOption = None,
    json_: JsonOption = None,
):
    """COCO numbers of a run's best weights."""
    _start_tensorflow()
    from kgarden.evaluate import evaluate_run, write_json
    from kgarden.progress import Reporter

    evaluation, results = evaluate_run(run, data=data, weights=weights, overrides=_settings(set_))
    if json_ is not None:
        write_json(json_, evaluation)
    elif data is None and weights is None and not set_:
        write_json(run / "evaluation.json", evaluation)
        write_json(run / "detections.json", results)
    Reporter().evaluation(evaluation)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|DIR|GLOB...")],
    to: Annotated[pathlib.Path, typer.Option(help="folder for drawn pictures and detections.json")],
    min_score: Annotated[float, typer.Option(help="draw detections from this score on")] = 0.3,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
):
    """Draw a run's detections on pictures."""
    _start_tensorflow()
    from kgarden.evaluate import write_json
    from kgarden.predict import Predictor, draw_files, find_pictures

    paths = find_pictures(images)
    found, faults = draw_files(Predictor.from_run(run, batch_size), paths, to, min_score)
    if not found:
        raise UserError(faults[0])
    write_json(to / "detections.json", found)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(found)} pictures drawn in {to}" + (f", {len(faults)} could not be read" if faults else ""))
    raise typer.Exit(1 if faults else 0)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[pathlib.Path, typer.Option(help="folder of the model; versions are numbered below it")],
):
    """A SavedModel that serves where TensorFlow is and nothing of kgarden."""
    _start_tensorflow()
    from kgarden.export import export_saved_model

    print(f"written {export_saved_model(run, to)}")


@app.command()
def bench(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN")],
    what: Annotated[str, typer.Option(help="of train, infer, data, eval; commas between")] = "train,infer",
    set_: SetOption = None,
    row: RowOption = None,
    json_: JsonOption = None,
):
    """Times and peak memory on this machine."""
    _start_tensorflow()
    from kgarden.bench import bench as measure
    from kgarden.build import prepare_data
    from kgarden.evaluate import write_json

    chosen, kinds = load_recipe(recipe, _settings(set_), row), [kind.strip() for kind in what.split(",")]
    data = prepare_data(chosen) if {"data", "eval"} & set(kinds) else None
    found = measure(chosen, kinds, data=data, report=print)
    if json_ is not None:
        write_json(json_, found)


build_app = typer.Typer(help="Raw data -> TFRecord shards with manifest.", no_args_is_help=True)
data_app.add_typer(build_app, name="build")
ToOption = Annotated[pathlib.Path, typer.Option(help="directory to make")]
ShardsOption = Annotated[int | None, typer.Option(min=1, help="number of files")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="processes")]


@build_app.command("coco")
def build_coco(
    images: Annotated[pathlib.Path, typer.Option(help="folder of pictures")],
    annotations: Annotated[pathlib.Path, typer.Option(help="json of instances")],
    to: ToOption,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first fault")] = False,
):
    """A COCO json and its pictures."""
    _start_tensorflow()
    from tfrecords import coco

    with _bar() as progress:
        report = coco.build(
            to,
            images=images,
            annotations=annotations,
            shards=shards,
            workers=workers,
            strict=strict,
            progress=progress,
        )
    _print_report(report)


@build_app.command("shapes")
def build_shapes(
    to: ToOption,
    count: Annotated[int, typer.Option(min=1, help="pictures")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
):
    """The embedded set: pictures drawn from a seed."""
    _start_tensorflow()
    from tfrecords import shapes

    with _bar() as progress:
        report = shapes.build(to, count=count, seed=seed, shards=shards, workers=workers, progress=progress)
    _print_report(report)


def _bar():
    from kgarden.progress import progress_of

    return progress_of("pictures")


def _print_report(report):
    print(
        f"{report.to}: {report.images} pictures, {report.boxes} boxes, {len(report.categories)} classes, "
        f"{len(report.shards)} shards"
    )
    left_out = [f"{count} boxes left out: {reason}" for reason, count in report.dropped.items()]
    if report.faulty_pictures:
        left_out.append(f"{report.faulty_pictures} pictures left out")
    for line in (*left_out, *map(str, report.faults[:10])):
        print(line, file=sys.stderr)
    if left_out:
        print(f"all of them in {report.to}/manifest.json", file=sys.stderr)


def _start_tensorflow():
    """Import TensorFlow without the page of hints that its libraries print before they can be told not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules or "--debug" in sys.argv:
        return
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        importlib.import_module("tensorflow")
    except ModuleNotFoundError:  # on JAX much works without; the rest says what it lacks
        pass
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)


def _settings(assignments):
    """["a.b=c", ...] -> {"a.b": value}."""
    settings = {}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}: write it as KEY=VALUE, for example schedule.steps=20")
        settings[key.strip()] = parse_value(text)
    return settings


def _version(wanted):
    if wanted:
        from kgarden import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show where an error came from")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
):
    pass


def main(arguments=None):
    """Run a command line; the exit code is what the process should return."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = ["--debug", *(one for one in arguments if one != "--debug")] if debug else arguments
    try:
        return app(arguments, prog_name="kgarden", standalone_mode=False) or 0
    except Exception as error:
        code = _exit_code(error)
        if code is None or (debug and not _is_usage(error)):
            raise
        _complain(error)
        return code


def _exit_code(error):
    """2 for what the caller did wrong, 1 for work that went wrong, None for a fault of ours."""
    from tfrecords.schema import DataError

    if isinstance(error, UserError | DataError) or _is_usage(error):
        return 2
    return 1 if type(error).__name__ == "TrainingFailed" else None


def _is_usage(error):
    # the base of typer's usage errors has no public name in every version, its method has
    return hasattr(error, "format_message") or isinstance(error, typer.Abort)


def _complain(error):
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    print(f"kgarden: {text or 'aborted'}", file=sys.stderr)
