"""`kgarden analyze`: the diagnostics of the papers, on any run."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import RunArgument, start_tensorflow

analyze_app = typer.Typer(help="Look into a run as the papers do: figures, numbers, how to read them.")


@analyze_app.callback()
def _group():
    """A group even while it has one command."""


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

    rows = analyze_duplicates(run, to, weights, limit, pictures)
    table = Table(title=f"{run}, {rows[0]['images']} pictures", title_justify="left")
    for column in ("way", "detections per picture", "duplicates per picture"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(row["way"], f"{row['detections_per_image']:.2f}", f"{row['duplicates_per_image']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(READING)
    print(f"written to {to}")
