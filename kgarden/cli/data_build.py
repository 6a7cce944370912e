"""The commands data build: raw data of several formats to TFRecord shards."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.options import renaming_of, start_tensorflow
from kgarden.errors import UserError
from kgarden.utils.text import printable

build_app = typer.Typer(help="Convert raw data to TFRecord shards with a manifest.", no_args_is_help=True)
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
RunnerOption = Annotated[
    str,
    typer.Option(help="Where shards are written: pool (processes here), or beam (Apache Beam, an extra)."),
]
BeamOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="--NAME=VALUE",
        help="Option of Beam's pipeline, for example --beam-option=--runner=FlinkRunner; can be repeated.",
    ),
]
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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a COCO data set."""
    arguments = {"images": images, "annotations": annotations, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("coco", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a PASCAL VOC data set: one XML file for each image."""
    arguments = {"root": root, "images": images, "annotations": annotations, "split": split}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    arguments |= {"one_based": one_based, "ignore_difficult": ignore_difficult}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("voc", verbose, to, **arguments, **how)


@build_app.command("csv")
def build_csv(
    images: ImagesOption,
    annotations: Annotated[pathlib.Path, typer.Option(help="CSV table with one row for each box.")],
    to: ToOption,
    classes: ClassesOption = None,
    rename: RenameOption = None,
    shards: ShardsOption = None,
    workers: WorkersOption = None,
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a CSV table of boxes and its images."""
    arguments = {"images": images, "annotations": annotations, "classes": classes}
    arguments |= {"rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("csv", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a YOLO data set: data.yaml, or one text file for each image."""
    arguments = {"annotations": annotations, "images": images, "split": split, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("yolo", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a part of Open Images: train, validation or test."""
    arguments = {"images": images, "annotations": annotations, "descriptions": descriptions}
    arguments |= {"image_labels": image_labels, "hierarchy": hierarchy}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("openimages", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert LVIS: as COCO, with the classes that people looked for and how frequent they are."""
    arguments = {"images": images, "annotations": annotations, "with_masks": masks}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("lvis", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a part of Objects365: train or val."""
    arguments = {"images": images, "annotations": annotations, "name_fixes": name_fixes}
    arguments |= {"classes": classes, "rename": renaming_of(rename)}
    how = {"shards": shards, "workers": _workers(workers, runner, beam_option), "strict": strict}
    _build("objects365", verbose, to, **arguments, **how)


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
    runner: RunnerOption = "pool",
    beam_option: BeamOption = None,
) -> None:
    """Generate the built-in synthetic data set of shapes."""
    arguments = {"count": count, "seed": seed, "num_classes": classes, "zipf": zipf}
    _build("shapes", False, to, **arguments, shards=shards, workers=_workers(workers, runner, beam_option))


def _workers(workers, runner, beam_options):
    """Number of processes, or Beam's workers."""
    from tfrecords.beam import BeamWorkers

    if runner not in ("pool", "beam"):
        raise UserError(f"--runner {runner}: use pool or beam")
    if runner == "pool":
        if beam_options:
            raise UserError("--beam-option applies to --runner beam")
        return workers
    if workers is not None:
        raise UserError("--workers applies to --runner pool; Beam's is --beam-option=--direct_num_workers=4")
    return BeamWorkers(tuple(beam_options or ()))


def _build(name, verbose, to, **arguments):
    start_tensorflow()
    from tfrecords.converters.formats import FORMATS

    with bar() as progress:
        report = FORMATS[name](to, progress=progress, **arguments)
    print_report(report, verbose)


def bar():
    """Progress over images."""
    from kgarden.utils.progress import progress_of

    return progress_of("images")


def print_report(report, verbose):
    """Prints what was converted, and what was dropped."""
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
