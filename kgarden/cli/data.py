"""The commands on data sets: data build, data check, data show."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import JsonOption, RowOption, SetOption, settings_of, start_tensorflow
from kgarden.recipe import load_recipe, packaged_recipes
from kgarden.schema import UserError

data_app = typer.Typer(help="Make and look at data sets.", no_args_is_help=True)
EXAMPLES = 5  # places that are named for each kind of fault


@data_app.command("check")
def check_(
    shards: Annotated[str, typer.Argument(metavar="GLOB|DIR", help="shards; commas between several")],
    verbose: Annotated[bool, typer.Option("--verbose", help="name every place of every fault")] = False,
    json_: JsonOption = None,
):
    """Read every record, decode every picture, compare every file; exit code 1 if there is a fault."""
    start_tensorflow()
    from kgarden.progress import progress_of
    from kgarden.scoring import write_json
    from tfrecords.check import check

    with progress_of("shards") as progress:
        found = check(shards, progress)
    if json_ is not None:
        write_json(json_, found.plain())
    print(f"{found.shards} shards, {found.records} records, {found.objects} objects")
    for kind, places in found.faults.items():
        print(f"{len(places):8} x {kind}")
        for place in places if verbose else places[:EXAMPLES]:
            print(f"{'':11}{place}")
    if found.faults:
        raise typer.Exit(1)
    print("no fault")


@data_app.command("show")
def show_(
    what: Annotated[
        str, typer.Argument(metavar="GLOB|RECIPE", help="shards, or a recipe's training batches")
    ],
    to: Annotated[pathlib.Path, typer.Option(help="directory for sheet-001.png, ...")],
    count: Annotated[int, typer.Option(min=1, help="pictures")] = 24,
    seed: Annotated[int | None, typer.Option(min=0, help="another seed, other pictures")] = None,
    set_: SetOption = None,
    row: RowOption = None,
):
    """Contact sheets: pictures as stored; for a recipe beside each what the network gets."""
    start_tensorflow()
    from kgarden.build import prepare_data
    from kgarden.data.pipeline import open_dataset
    from kgarden.show import show_recipe, show_shards

    if _is_recipe(what):
        chosen = load_recipe(what, settings_of(set_), row)
        chosen = chosen if seed is None else chosen.model_copy(update={"seed": seed})
        with _bar() as progress:
            data = prepare_data(chosen, progress=progress, splits=("train",))
        sheets = show_recipe(data, to, count)
    elif set_ or row:
        raise UserError(f"{what}: --set and --row mean something to a recipe, these are shards")
    else:
        sheets = show_shards(open_dataset(what), to, count, seed or 0)
    print(f"{len(sheets)} sheets in {to}")


def _is_recipe(name):
    """A path of a YAML file or the name of a packaged recipe; anything else names shards."""
    is_run = (pathlib.Path(name) / "recipe.yaml").is_file()
    return is_run or name in packaged_recipes() or name.endswith((".yaml", ".yml"))


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
    start_tensorflow()
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
    start_tensorflow()
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
