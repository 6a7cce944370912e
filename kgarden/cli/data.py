"""The commands on data sets: data build, data check, data show."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import JsonOption, RowOption, SetOption, settings_of, start_tensorflow
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.errors import UserError

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
    from kgarden.utils.files import write_json
    from kgarden.utils.progress import progress_of
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
    from kgarden.data.sources import open_dataset
    from kgarden.visualization.contact_sheet import show_recipe, show_shards

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
NAMED = 10  # faults that are named without --verbose
ImagesOption = Annotated[pathlib.Path, typer.Option(help="folder of pictures")]
ToOption = Annotated[pathlib.Path, typer.Option(help="directory to make")]
ClassesOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="list of classes in label order: lines, or .pbtxt, .json, .csv; default: the alphabet"),
]
ShardsOption = Annotated[int | None, typer.Option(min=1, help="number of files")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="processes")]
StrictOption = Annotated[bool, typer.Option("--strict", help="stop at the first fault")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="name every fault")]


@build_app.command("coco")
def build_coco(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="json of instances")],
    to: ToOption,
    masks: Annotated[bool, typer.Option(help="put masks into the records, where the json has them")] = True,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
):
    """A COCO json and its pictures."""
    given = {"images": images, "annotations": annotations, "with_masks": masks}
    _build("coco", verbose, to, **given, shards=shards, workers=workers, strict=strict)


@build_app.command("voc")
def build_voc(
    to: ToOption,
    root: Annotated[
        pathlib.Path | None, typer.Option(help="folder with JPEGImages, Annotations, ImageSets; or:")
    ] = None,
    images: Annotated[pathlib.Path | None, typer.Option(help="folder of pictures")] = None,
    annotations: Annotated[pathlib.Path | None, typer.Option(help="folder of XML files")] = None,
    split: Annotated[
        str | None, typer.Option(help="a list in ImageSets/Main, as train; or a file of names")
    ] = None,
    classes: ClassesOption = None,
    one_based: Annotated[
        bool, typer.Option("--one-based", help="the first pixel has the number 1, as Pascal wrote it")
    ] = False,
    ignore_difficult: Annotated[
        bool, typer.Option("--ignore-difficult", help="difficult objects are not learned, nor judged")
    ] = False,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
):
    """Pascal VOC: an XML file for every picture."""
    given = {"root": root, "images": images, "annotations": annotations, "split": split}
    given |= {"classes": classes, "one_based": one_based, "ignore_difficult": ignore_difficult}
    _build("voc", verbose, to, **given, shards=shards, workers=workers, strict=strict)


@build_app.command("csv")
def build_csv(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="table with a line for every box")],
    to: ToOption,
    classes: ClassesOption = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
):
    """A table (csv) of boxes and the pictures it names."""
    given = {"images": images, "annotations": annotations, "classes": classes}
    _build("csv", verbose, to, **given, shards=shards, workers=workers, strict=strict)


@build_app.command("shapes")
def build_shapes(
    to: ToOption,
    count: Annotated[int, typer.Option(min=1, help="pictures")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
):
    """The embedded set: pictures drawn from a seed."""
    _build("shapes", False, to, count=count, seed=seed, shards=shards, workers=workers)


def _build(name, verbose, to, **arguments):
    start_tensorflow()
    from tfrecords.converters.formats import FORMATS

    with _bar() as progress:
        report = FORMATS[name](to, progress=progress, **arguments)
    _print_report(report, verbose)


def _bar():
    from kgarden.utils.progress import progress_of

    return progress_of("pictures")


def _print_report(report, verbose):
    print(
        f"{report.to}: {report.images} of {report.images_total} pictures, {report.boxes} of "
        f"{report.boxes_total} boxes, {len(report.categories)} classes, {len(report.shards)} shards"
    )
    kinds = {"crowds": report.crowds, "difficult": report.difficult, "with a mask": report.masks}
    kinds["cut at the border of their picture"] = report.clipped
    if told := [f"{count} {kind}" for kind, count in kinds.items() if count]:
        print(f"boxes: {', '.join(told)}")
    lines = [f"{count} boxes left out: {reason}" for reason, count in report.dropped.items()]
    lines += [f"{report.faulty_pictures} pictures left out"] if report.faulty_pictures else []
    lines += [f"{count} times: {reason}" for reason, count in report.remarks.items()]
    named = report.faults if verbose else report.faults[:NAMED]
    for line in (*lines, *map(str, named)):
        print(line, file=sys.stderr)
    if len(named) < len(report.faults):
        print(f"{len(report.faults) - len(named)} more: name them with --verbose", file=sys.stderr)
