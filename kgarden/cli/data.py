"""The commands on data sets: data build, data check, data pseudo, data show, data split."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.data_check import check_
from kgarden.cli.options import (
    RowOption,
    RunArgument,
    SetOption,
    renaming_of,
    say_missing_glyphs,
    settings_of,
    start_tensorflow,
)
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.errors import UserError
from kgarden.utils.text import printable

data_app = typer.Typer(help="Build, check and show data sets.", no_args_is_help=True)


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
        with _bar() as progress:
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

    with _bar() as progress:
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
    _print_report(report, verbose=False)


build_app = typer.Typer(help="Convert raw data to TFRecord shards with a manifest.", no_args_is_help=True)
data_app.add_typer(build_app, name="build")
LISTED = 10  # faults that are listed without --verbose
ImagesOption = Annotated[pathlib.Path, typer.Option(help="Folder of images.")]
ToOption = Annotated[pathlib.Path, typer.Option(help="Output directory.")]
ClassesOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Class list that chooses and orders the classes: text, .pbtxt, .json (COCO too) or .csv; "
        "default: all classes."
    ),
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Rename a class, or join it with another; can be repeated."),
]
ShardsOption = Annotated[int | None, typer.Option(min=1, help="Number of shards.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Number of processes.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first fault.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="List every fault.")]


@build_app.command("coco")
def build_coco(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="COCO instances JSON.")],
    to: ToOption,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    masks: Annotated[bool, typer.Option(help="Store masks, if the annotations have them.")] = True,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a COCO data set."""
    arguments = {"images": images, "annotations": annotations, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    _build("coco", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("voc")
def build_voc(
    to: ToOption,
    root: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder with JPEGImages, Annotations, ImageSets; or use --images and --annotations."
        ),
    ] = None,
    images: Annotated[pathlib.Path | None, typer.Option(help="Folder of images.")] = None,
    annotations: Annotated[pathlib.Path | None, typer.Option(help="Folder of XML files.")] = None,
    split: Annotated[
        str | None, typer.Option(help="List in ImageSets/Main, for example train; or a file of names.")
    ] = None,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    one_based: Annotated[
        bool, typer.Option("--one-based", help="Coordinates start at 1 (original PASCAL VOC files).")
    ] = False,
    ignore_difficult: Annotated[
        bool,
        typer.Option("--ignore-difficult", help="Exclude difficult objects from training and evaluation."),
    ] = False,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a PASCAL VOC data set: one XML file for each image."""
    arguments = {"root": root, "images": images, "annotations": annotations, "split": split}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    arguments |= {"one_based": one_based, "ignore_difficult": ignore_difficult}
    _build("voc", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("csv")
def build_csv(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="CSV table with one row for each box.")],
    to: ToOption,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a CSV table of boxes and its images."""
    arguments = {"images": images, "annotations": annotations, "classes": classes}
    arguments |= {"rename": renaming_of(rename)}
    _build("csv", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("yolo")
def build_yolo(
    annotations: Annotated[
        pathlib.Path, typer.Option(help="data.yaml, or a folder of label files (with --images).")
    ],
    to: ToOption,
    images: Annotated[pathlib.Path | None, typer.Option(help="Folder of images.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test of data.yaml; with --images, a file that lists images."),
    ] = None,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    masks: Annotated[bool, typer.Option(help="Store masks, if the labels are polygons.")] = True,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a YOLO data set: data.yaml, or one text file for each image."""
    arguments = {"annotations": annotations, "images": images, "split": split, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    _build("yolo", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("openimages")
def build_openimages(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="Table of boxes, ...-annotations-bbox.csv.")],
    descriptions: Annotated[
        pathlib.Path, typer.Option(help="Class descriptions, class-descriptions-boxable.csv.")
    ],
    to: ToOption,
    image_labels: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Table of image-level labels verified by people, ...-human-imagelabels-boxable.csv."
        ),
    ] = None,
    hierarchy: Annotated[
        pathlib.Path | None, typer.Option(help="Class tree, bbox_labels_600_hierarchy.json.")
    ] = None,
    classes: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Class list that chooses and orders the classes: a table with a column of codes (the "
            "challenge's), or names as text, .pbtxt, .json or .csv; default: all classes of the descriptions."
        ),
    ] = None,
    rename: RenameOption = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a part of Open Images: train, validation or test."""
    arguments = {"images": images, "annotations": annotations, "descriptions": descriptions}
    arguments |= {"image_labels": image_labels, "hierarchy": hierarchy}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    _build("openimages", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("lvis")
def build_lvis(
    images: Annotated[
        pathlib.Path, typer.Option(help="Folder with train2017 and val2017 of COCO, or of the images.")
    ],
    annotations: Annotated[pathlib.Path, typer.Option(help="JSON of version 0.5 or 1, lvis_v1_train.json.")],
    to: ToOption,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    masks: Annotated[bool, typer.Option(help="Store masks.")] = True,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert LVIS: as COCO, with the classes that people looked for and how frequent they are."""
    arguments = {"images": images, "annotations": annotations, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    _build("lvis", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("objects365")
def build_objects365(
    images: Annotated[pathlib.Path, typer.Option(help="Folder with patch0, patch1, ... of train or val.")],
    annotations: Annotated[pathlib.Path, typer.Option(help="JSON, zhiyuan_objv2_train.json.")],
    to: ToOption,
    name_fixes: Annotated[
        pathlib.Path | None,
        typer.Option(help="Table of corrected class names, Objects365_names_fix.csv; default: as they are."),
    ] = None,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a part of Objects365: train or val."""
    arguments = {"images": images, "annotations": annotations, "name_fixes": name_fixes}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    _build("objects365", verbose, to, **arguments, shards=shards, workers=workers, strict=strict)


@build_app.command("shapes")
def build_shapes(
    to: ToOption,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images.")] = 0,
    classes: Annotated[
        int | None, typer.Option(min=2, max=216, help="Classes of a long-tailed set; default: six shapes.")
    ] = None,
    zipf: Annotated[
        float | None, typer.Option(min=0, help="Frequencies of --classes: 1 / rank^ZIPF; default: 1.")
    ] = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
) -> None:
    """Generate the built-in synthetic data set of shapes."""
    arguments = {"count": count, "seed": seed, "num_classes": classes, "zipf": zipf}
    _build("shapes", False, to, **arguments, shards=shards, workers=workers)


def _build(name, verbose, to, **arguments):
    start_tensorflow()
    from tfrecords.converters.formats import FORMATS

    with _bar() as progress:
        report = FORMATS[name](to, progress=progress, **arguments)
    _print_report(report, verbose)


def _bar():
    from kgarden.utils.progress import progress_of

    return progress_of("images")


def _print_report(report, verbose):
    from tfrecords.plausibility import TOLD, findings

    print(
        f"{report.to}: {report.images} of {report.images_total} images, {report.boxes} of "
        f"{report.boxes_total} boxes, {len(report.categories)} classes, {len(report.shards)} shards"
    )
    kinds = {"crowds": report.crowds, "difficult": report.difficult, "with a mask": report.masks}
    kinds |= {"around groups": report.groups, "clipped at the image border": report.clipped}
    if report.verified:
        print(f"verified image-level labels: {report.verified}")
    if report.images_without_objects:
        print(f"images without objects: {report.images_without_objects}")
    if counts := [f"{count} {kind}" for kind, count in kinds.items() if count]:
        print(f"boxes: {', '.join(counts)}")
    sys.stdout.flush()  # before what follows on standard error
    missing = (
        f", {report.missing_files} of them because there is no such file" if report.missing_files else ""
    )
    lines = [f"{report.faulty_pictures} images dropped{missing}"] if report.faulty_pictures else []
    lines += [f"{count} boxes dropped: {reason}" for reason, count in report.dropped.items()]
    lines += [f"{count} times: {reason}" for reason, count in report.remarks.items() if reason not in TOLD]
    listed = report.faults if verbose else report.faults[:LISTED]
    for line in (*lines, *map(str, listed)):
        print(printable(line), file=sys.stderr)
    if len(listed) < len(report.faults):
        print(f"{len(report.faults) - len(listed)} more; list them with --verbose", file=sys.stderr)
    for finding in findings(report.facts):
        print(printable(finding.sentence), file=sys.stderr)
