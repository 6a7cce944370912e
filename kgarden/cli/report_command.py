"""The command `kgarden report`: an HTML page of runs."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import start_tensorflow

report_app = typer.Typer()


@report_app.command()
def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Evaluated run directories.")],
    to: Annotated[pathlib.Path, typer.Option(help="File of the page, for example report.html.")],
    images: Annotated[int, typer.Option(min=0, help="Photos on it, those with most mistakes.")] = 60,
) -> None:
    """Write an HTML page of one run, or of several side by side: curves, tables, errors, photos."""
    start_tensorflow()
    from kgarden.commands.report_html import report as write

    write(runs, to, images)
    print(f"saved to {to}, {to.stat().st_size / 1e6:.1f} MB")
