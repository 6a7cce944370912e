"""The commands on data sets: data build, data check."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import JsonOption, start_tensorflow

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
    from kgarden.scoring import write_json
    from kgarden.progress import progress_of
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
