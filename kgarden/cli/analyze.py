"""`kgarden analyze`: the diagnostic figures of the papers for any run."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import DrawnOption, RunArgument, start_tensorflow
from kgarden.errors import UserError

analyze_app = typer.Typer(help="Reproduce the papers' diagnostic figures for one or more runs.")


RunsArgument = Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Run directories.")]
ToOption = Annotated[pathlib.Path, typer.Option(help="Output directory for figures and numbers.")]
WeightsOption = Annotated[
    pathlib.Path | None, typer.Option(help="Other weights than the best ones; requires a single run.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first N images.")]
PerObjectOption = Annotated[
    int | None, typer.Option(min=1, help="Random windows for each object; default: the grid of 13,689.")
]
MaxDetectionsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Detections per class and image that count; default: the runs', or 100."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the random windows.")]
GroupsOption = Annotated[str, typer.Option(help="Group objects by: size or difficulty.")]
ResultsOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="AP by class for --groups difficulty; default: evaluation.json of the first run."),
]


@analyze_app.command()
def duplicates(
    run: RunArgument,
    to: ToOption,
    weights: WeightsOption = None,
    limit: LimitOption = None,
    pictures: Annotated[int, typer.Option(min=0, help="Number of score maps to draw.")] = 4,
) -> None:
    """Count duplicate detections, and draw score maps before and after the selection."""
    start_tensorflow()
    from rich.console import Console
    from rich.table import Table

    from kgarden.analyze.duplicates import READING, analyze_duplicates
    from kgarden.metrics.tables import plain

    rows = analyze_duplicates(run, to, weights, limit=limit, num_maps=pictures)
    table = Table(title=plain(f"{run}, {rows[0]['images']} images"), title_justify="left")
    for column in ("way", "detections per image", "duplicates per image"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(row["way"], f"{row['detections_per_image']:.2f}", f"{row['duplicates_per_image']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(READING)
    print(f"saved to {to}")


@analyze_app.command()
def sliding_window(
    runs: RunsArgument,
    to: ToOption,
    per_object: PerObjectOption = None,
    seed: SeedOption = 0,
    groups: GroupsOption = "size",
    results: ResultsOption = None,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Plot scores and refined boxes of RoI heads against the IoU of their input boxes."""
    start_tensorflow()
    from kgarden.analyze.sliding_window import analyze_sliding_window
    from kgarden.analyze.windows import Windows
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        windows = Windows(per_object, seed)
        arguments = {"results": results, "weights": weights, "limit": limit, "progress": progress}
        result = analyze_sliding_window(runs, to, windows, groups, **arguments)
    print(f"{result['seconds_per_object']:.2f} s per object and run")
    _print_reading(result, to)


@analyze_app.command()
def score_iou(
    runs: RunsArgument,
    to: ToOption,
    per_object: PerObjectOption = None,
    seed: SeedOption = 0,
    groups: GroupsOption = "size",
    results: ResultsOption = None,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Compute the correlation of IoU and score for windows around objects, proposals and detections."""
    start_tensorflow()
    from kgarden.analyze.score_iou import analyze_score_iou
    from kgarden.analyze.windows import Windows
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        windows = Windows(per_object, seed)
        arguments = {"results": results, "weights": weights, "limit": limit, "progress": progress}
        result = analyze_score_iou(runs, to, windows, groups, **arguments)
    columns = ("run", "answer", "boxes", "group", "which", "n", "r")
    _print_table(columns, [[row[column] for column in columns] for row in result["rows"]])
    _print_reading(result, to)


@analyze_app.command()
def spatial_correlation(
    runs: RunsArgument, to: ToOption, weights: WeightsOption = None, limit: LimitOption = None
) -> None:
    """Compute the spatial correlation of RoI features: conv head, fc head, and fc weights."""
    start_tensorflow()
    from kgarden.analyze.spatial_correlation import analyze_spatial_correlation
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        result = analyze_spatial_correlation(runs, to, weights, limit, progress=progress)
    rows = [[row["run"], row["map"], row["off_diagonal"]] for row in result["rows"]]
    _print_table(("run", "map", "mean cosine of distinct cells"), rows)
    _print_reading(result, to)


@analyze_app.command()
def stages(
    runs: RunsArgument,
    to: ToOption,
    max_detections: MaxDetectionsOption = None,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Compute AP over the IoU threshold of every stage of a cascade, beside detectors with one head."""
    start_tensorflow()
    from kgarden.analyze.stages import SHOWN, analyze_stages, gap_table
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        options = {"weights": weights, "limit": limit, "progress": progress}
        result = analyze_stages(runs, to, max_detections, **options)
    _print_table(SHOWN, [[row[column] for column in SHOWN] for row in result["rows"]], digits=1)
    _print_table(*gap_table(result["differences"]), digits=1)
    _print_reading(result, to)


@analyze_app.command()
def proposals(
    runs: RunsArgument,
    to: ToOption,
    count: Annotated[
        int | None, typer.Option("--proposals", min=1, help="Proposals of an image; default: the recipes'.")
    ] = None,
    iou: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="IoU with an object at which a proposal counts as one.")
    ] = 0.5,
    min_score: Annotated[float, typer.Option(help="Minimum P(O) of drawn proposals.")] = 0.3,
    pictures: Annotated[int, typer.Option(min=0, help="Number of images to draw, from the first.")] = 4,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Measure first stages: recall over the number of proposals, calibration of P(O); draw proposals."""
    start_tensorflow()
    from kgarden.analyze.proposals import analyze_proposals
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        options = {"weights": weights, "limit": limit, "progress": progress}
        drawing = {"min_score": min_score, "pictures": pictures}
        result = analyze_proposals(runs, to, count, iou, **drawing, **options)
    columns = ("run", "proposals", "ar_all", "ar_small", "ar_medium", "ar_large")
    _print_table(columns, [[row[column] for column in columns] for row in result["recall"]], digits=1)
    columns = ("run", "from", "to", "n", "mean_probability", "fraction_objects")
    _print_table(columns, [[row[column] for column in columns] for row in result["calibration"]])
    _print_reading(result, to)


@analyze_app.command()
def compare(
    runs: RunsArgument,
    to: ToOption,
    pictures: Annotated[int, typer.Option(min=1, help="Number of images, from the first.")] = 6,
    ids: Annotated[
        str | None, typer.Option(help="Comma-separated image ids, instead of the first ones.")
    ] = None,
    min_score: Annotated[float, typer.Option(help="Minimum score of drawn detections.")] = 0.3,
    labels: DrawnOption = "name",
    weights: WeightsOption = None,
) -> None:
    """Draw images side by side: ground truth, and each branch of a Double-Head run or each run."""
    chosen = _ids(ids)
    start_tensorflow()
    from kgarden.analyze.compare import analyze_compare
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        drawing = {"min_score": min_score, "labels": labels}
        result = analyze_compare(runs, to, pictures, chosen, **drawing, weights=weights, progress=progress)
    _print_reading(result, to)


@analyze_app.command()
def iou_sweep(
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="RUN...|DETECTIONS.json...", help="Run directories, or files of detections."),
    ],
    to: ToOption,
    annotations: Annotated[
        pathlib.Path | None, typer.Option(help="COCO ground truth (required for files of detections).")
    ] = None,
    iou_type: Annotated[str, typer.Option(help="bbox or segm.")] = "bbox",
    max_detections: MaxDetectionsOption = None,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Plot AP against the IoU threshold by object size, with differences to the first run or file."""
    start_tensorflow()
    from kgarden.analyze.iou_sweep import PUBLISHED, analyze_iou_sweep, published_rows
    from kgarden.utils.progress import progress_of

    options = {"annotations": annotations, "iou_type": iou_type, "max_detections": max_detections}
    with progress_of("images") as progress:
        options |= {"weights": weights, "limit": limit, "progress": progress}
        result = analyze_iou_sweep(subjects, to, **options)
    columns = ("run", "size", *(f"AP.{10 * iou:.0f}" for iou in PUBLISHED), "AP")
    _print_table(columns, published_rows(result["rows"]), digits=1)
    _print_reading(result, to)


@analyze_app.command()
def tsd(
    run: RunArgument,
    to: ToOption,
    pictures: Annotated[int, typer.Option(min=1, help="Number of images to draw, from the first.")] = 4,
    boxes: Annotated[int, typer.Option(min=1, help="Detections to draw in an image, best first.")] = 3,
    min_score: Annotated[float, typer.Option(help="Minimum score of a detection.")] = 0.3,
    weights: WeightsOption = None,
    limit: LimitOption = None,
) -> None:
    """Draw where the classifier and the regressor of TSD look, and measure their offsets."""
    start_tensorflow()
    from kgarden.analyze.derived_proposals import COLUMNS, analyze_tsd
    from kgarden.utils.progress import progress_of

    with progress_of("images") as progress:
        options = {"weights": weights, "limit": limit, "progress": progress}
        result = analyze_tsd(run, to, pictures, boxes, min_score=min_score, **options)
    columns = ("stage", "size", "detections", *COLUMNS)
    _print_table(columns, [[row[column] for column in columns] for row in result["rows"]])
    _print_reading(result, to)


def _ids(text):
    if text is None:
        return None
    try:
        return [int(one) for one in text.split(",")]
    except ValueError as error:
        raise UserError(f"--ids {text}: use comma-separated numbers, for example 12,40") from error


def _print_table(columns, rows, digits=3):
    from rich.console import Console
    from rich.table import Table

    from kgarden.metrics.tables import plain

    def shown(value):
        return "–" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    table = Table()
    for number, column in enumerate(columns):
        numeric = bool(rows) and not isinstance(rows[0][number], str)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(plain(shown(value)) for value in row))
    Console(highlight=False).print(table)


def _print_reading(result, to):
    print(result["reading"])
    print(f"saved to {to}")
