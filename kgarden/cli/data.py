"""The commands on data sets: data build."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import start_tensorflow

data_app = typer.Typer(help="Make and look at data sets.", no_args_is_help=True)
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
