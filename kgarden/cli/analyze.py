"""`kgarden analyze`: the diagnostics of the papers, on any run."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import RunArgument, start_tensorflow
from kgarden.errors import UserError

analyze_app = typer.Typer(help="Look into a run as the papers do: figures, numbers, how to read them.")


@analyze_app.command()
def duplicates(
    run: RunArgument,
    to: Annotated[pathlib.Path, typer.Option(help="folder for figures and numbers")],
    weights: Annotated[pathlib.Path | None, typer.Option(help="other weights than the best")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many pictures")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="how many score maps are drawn")] = 4,
):
    """Pairs of detections that answer for one object, and score maps before and after the selection."""
    start_tensorflow()
    from rich.console import Console
    from rich.table import Table

    from kgarden.analyze.duplicates import READING, analyze_duplicates

    rows = analyze_duplicates(run, to, weights, limit=limit, num_maps=pictures)
    table = Table(title=f"{run}, {rows[0]['images']} pictures", title_justify="left")
    for column in ("way", "detections per picture", "duplicates per picture"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(row["way"], f"{row['detections_per_image']:.2f}", f"{row['duplicates_per_image']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(READING)
    print(f"written to {to}")


RunsArgument = Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="run directories")]
ToOption = Annotated[pathlib.Path, typer.Option(help="folder for figures and numbers")]
WeightsOption = Annotated[pathlib.Path | None, typer.Option(help="of one run: other weights than the best")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="only the first so many pictures")]
PerObjectOption = Annotated[
    int | None, typer.Option(min=1, help="so many windows of each object, drawn; default the grid of 13,689")
]
SeedOption = Annotated[int, typer.Option(min=0, help="of that draw")]
GroupsOption = Annotated[str, typer.Option(help="size or difficulty")]
ResultsOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="of difficulty: AP by class, in place of the first run's evaluation.json"),
]


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
):
    """Scores and refined boxes of RoI heads over the IoU of the box that they are handed."""
    start_tensorflow()
    from kgarden.analyze.sliding_window import analyze_sliding_window
    from kgarden.analyze.windows import Windows
    from kgarden.utils.progress import progress_of

    with progress_of("pictures") as progress:
        windows = Windows(per_object, seed)
        found = analyze_sliding_window(
            runs, to, windows, groups=groups, results=results, weights=weights, limit=limit, progress=progress
        )
    print(f"{found['seconds_per_object']:.2f} s for each object of a run")
    _tell(found, to)


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
):
    """Correlation of IoU and score: windows around objects, proposals, detections."""
    start_tensorflow()
    from kgarden.analyze.score_iou import analyze_score_iou
    from kgarden.analyze.windows import Windows
    from kgarden.utils.progress import progress_of

    with progress_of("pictures") as progress:
        windows = Windows(per_object, seed)
        found = analyze_score_iou(
            runs, to, windows, groups=groups, results=results, weights=weights, limit=limit, progress=progress
        )
    columns = ("run", "answer", "boxes", "group", "which", "n", "r")
    _show(columns, [[row[column] for column in columns] for row in found["rows"]])
    _tell(found, to)


@analyze_app.command()
def spatial_correlation(
    runs: RunsArgument, to: ToOption, weights: WeightsOption = None, limit: LimitOption = None
):
    """How alike the cells of a RoI are after a conv-head, after an fc-head, and in its weights."""
    start_tensorflow()
    from kgarden.analyze.spatial_correlation import analyze_spatial_correlation
    from kgarden.utils.progress import progress_of

    with progress_of("pictures") as progress:
        found = analyze_spatial_correlation(runs, to, weights, limit=limit, progress=progress)
    rows = [[row["run"], row["map"], row["off_diagonal"]] for row in found["rows"]]
    _show(("run", "map", "mean cosine of different cells"), rows)
    _tell(found, to)


@analyze_app.command()
def compare(
    runs: RunsArgument,
    to: ToOption,
    pictures: Annotated[int, typer.Option(min=1, help="the first so many pictures")] = 6,
    ids: Annotated[str | None, typer.Option(help="image ids instead, with commas between")] = None,
    min_score: Annotated[float, typer.Option(help="draw detections from this score on")] = 0.3,
    weights: WeightsOption = None,
):
    """Pictures side by side: ground truth, fc-head, conv-head, both; or ground truth and each run."""
    chosen = _ids(ids)
    start_tensorflow()
    from kgarden.analyze.compare import analyze_compare
    from kgarden.utils.progress import progress_of

    with progress_of("pictures") as progress:
        found = analyze_compare(
            runs, to, pictures, ids=chosen, min_score=min_score, weights=weights, progress=progress
        )
    _tell(found, to)


def _ids(text):
    if text is None:
        return None
    try:
        return [int(one) for one in text.split(",")]
    except ValueError as error:
        raise UserError(f"--ids {text}: write them as numbers with commas between, 12,40") from error


def _show(columns, rows):
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        numeric = bool(rows) and not isinstance(rows[0][number], str)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        shown = ("–" if one is None else f"{one:.3f}" if isinstance(one, float) else str(one) for one in row)
        table.add_row(*shown)
    Console(highlight=False).print(table)


def _tell(found, to):
    print(found["reading"])
    print(f"written to {to}")
