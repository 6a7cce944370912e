"""The commands on data sets: data build, data check, data pseudo, data show, data split."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.data_build import bar, build_app, print_report
from kgarden.cli.data_check import check_
from kgarden.cli.options import (
    RowOption,
    RunArgument,
    SetOption,
    say_missing_glyphs,
    settings_of,
    start_tensorflow,
)
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.errors import UserError
from kgarden.utils.text import printable

data_app = typer.Typer(help="Build, check and show data sets.", no_args_is_help=True)
data_app.add_typer(build_app, name="build")


data_app.command("check")(check_)


@data_app.command("show")
def show_(
    what: Annotated[
        str, typer.Argument(metavar="GLOB|RECIPE", help="Shards, or a recipe for its training batches.")
    ],
    to: Annotated[pathlib.Path, typer.Option(help="Output directory for sheet-001.png, ...")],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 24,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the selection of images.")] = None,
    labels: Annotated[str, typer.Option(help="Text at a box: none, or name.")] = "name",
    set_: SetOption = None,
    row: RowOption = None,
) -> None:
    """Draw contact sheets of stored images; for a recipe, beside each the input of the network."""
    start_tensorflow()
    from kgarden.build import prepare_data
    from kgarden.data.sources import open_dataset
    from kgarden.visualization.contact_sheet import show_recipe, show_shards
    from kgarden.visualization.draw import LABELS_OF_TRUTH, check_labels

    check_labels(labels, LABELS_OF_TRUTH)
    if _is_recipe(what):
        chosen = load_recipe(what, settings_of(set_), row)
        chosen = chosen if seed is None else chosen.model_copy(update={"seed": seed})
        with bar() as progress:
            data = prepare_data(chosen, progress=progress, splits=("train",))
        say_missing_glyphs(data.categories)
        sheets = show_recipe(data, to, count, labels=labels)
    elif set_ or row:
        raise UserError(f"{what}: --set and --row are only valid for a recipe, not for shards")
    else:
        dataset = open_dataset(what)
        say_missing_glyphs(dataset.categories)
        sheets = show_shards(dataset, to, count, seed or 0, labels=labels)
    print(f"{len(sheets)} sheets saved to {to}")


def _is_recipe(name):
    """Returns whether this is a YAML file, a run or a packaged recipe; anything else names shards."""
    is_run = (pathlib.Path(name) / "recipe.yaml").is_file()
    return is_run or name in packaged_recipes() or name.endswith((".yaml", ".yml"))


@data_app.command("split")
def split_(
    annotations: Annotated[
        pathlib.Path,
        typer.Argument(
            metavar="ANNOTATIONS",
            help="COCO JSON, CSV table, folder of VOC, data.yaml or folder of label files.",
        ),
    ],
    to: Annotated[pathlib.Path, typer.Option(help="Output directory for train and val.")],
    val: Annotated[float, typer.Option(help="Fraction of the images for val.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    group: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Images with the same match in their names stay together."),
    ] = None,
    images: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of images, for a folder of label files.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="What is split: a list of VOC, train, val or test of data.yaml.")
    ] = None,
) -> None:
    """Split raw data into train and val: stratified by class, repeatable, groups kept together."""
    from tfrecords.converters.split_files import split_data

    parts, paths = split_data(annotations, to, images=images, part=split, val=val, seed=seed, group=group)
    print(f"train {parts.images('train')} images, val {parts.images('val')} images; images of each class:")
    for name, count in parts.classes.items():
        print(f"{count['train']:8} {count['val']:8}  {printable(name) or '(without objects)'}")
    print(f"saved to {', '.join(map(str, paths))}")
    if parts.ungrouped:
        print(f"{parts.ungrouped} images do not match {group!r}: each is a group of its own", file=sys.stderr)
    for part, other in (("train", "val"), ("val", "train")):
        if names := parts.only_in(part):
            print(f"only in {part}, not in {other}: {', '.join(map(printable, names))}", file=sys.stderr)


@data_app.command("pseudo")
def pseudo_(
    run: RunArgument,
    images: Annotated[pathlib.Path, typer.Argument(metavar="IMAGES", help="Folder of unlabelled images.")],
    to: Annotated[pathlib.Path, typer.Option(help="Output directory of the shards.")],
    score: Annotated[float, typer.Option(help="Minimum score of a detection that becomes an object.")] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards.")] = None,
    set_: SetOption = None,
) -> None:
    """Label images with a run's detections, for self-training: shards to train on beside labelled ones."""
    start_tensorflow()
    from kgarden.commands.pseudo_labels import build_pseudo_labels

    with bar() as progress:
        report = build_pseudo_labels(
            run,
            images,
            to,
            score=score,
            batch_size=batch_size,
            overrides=settings_of(set_),
            progress=progress,
            say=lambda line: print(printable(line), file=sys.stderr),
            shards=shards,
        )
    print_report(report, verbose=False)
