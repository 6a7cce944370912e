"""The command reproduce: a paper's tables, what they cost, and small versions of them."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import start_tensorflow
from kgarden.errors import UserError
from kgarden.utils.text import printable

HELP = "centernet2, double_head, fscascade, pss or tsd."


def reproduce(
    paper: Annotated[str | None, typer.Argument(metavar="[PAPER]", help=HELP)] = None,
    table: Annotated[int | None, typer.Option(help="Number of a table; default: all.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--images-per-second",
            help="Rate of training on your hardware, as `kgarden bench RECIPE --what train` prints it; "
            "hours are computed from it.",
        ),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Train small models on drawn data now.")] = False,
    to: Annotated[pathlib.Path | None, typer.Option(help="Output directory of --small.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each training of --small.")] = None,
    rows: Annotated[str | None, typer.Option(help="Comma-separated rows of --small.")] = None,
    page: Annotated[
        pathlib.Path | None, typer.Option(help="Write the tables of all papers to a file.")
    ] = None,
) -> None:
    """Print the commands, data and hours of a paper's tables, or train small versions of its comparison."""
    start_tensorflow()
    from kgarden.commands import reproduce as commands
    from kgarden.training.reporter import Reporter
    from kgarden.utils.files import write_text

    if page is not None:
        if paper is not None:
            raise UserError("--page writes all papers; leave PAPER out")
        write_text(page, commands.papers_page())
        print(f"saved to {page}")
        return
    if paper is None:
        for name, one in commands.PAPERS.items():
            print(f"{name:14} {one.title}")
        return
    if not small:
        if to or steps or rows:
            raise UserError("--to, --steps and --rows belong to --small")
        _print_plan(commands, commands.plan(paper, table), rate)
        return
    if to is None:
        raise UserError("--small needs --to DIR for its runs and table.md")
    if table or rate:
        raise UserError("--table and --images-per-second do not apply to --small")
    chosen = [row.strip() for row in rows.split(",")] if rows else None
    results = commands.run_small(paper, to, steps=steps, rows=chosen, reporter=Reporter())
    print(commands.table_of(commands.paper_of(paper), results), end="")
    print(f"saved to {to}/table.md")


def _print_plan(commands, steps, rate):
    if rate is not None and rate <= 0:
        raise UserError(f"--images-per-second {rate:g}: a rate above 0")
    for step in steps:
        reported = ", ".join(f"{name} {value}" for name, value in step.reported.items())
        print(f"{step.recipe} {step.row}: {reported or 'no published figure'}")
        print(printable(f"    {step.command}"))
        if step.refused:
            print(f"    cannot be run: {step.refused}")
        elif step.images:
            time = f", {commands.hours(step, rate):.1f} hours at {rate:g} images/s" if rate else ""
            print(printable(f"    {step.images / 1e6:.2f} million images of {step.data}{time}"))
    trained = [step for step in steps if step.images and not step.refused]
    total = sum(step.images for step in trained)
    time = f", {sum(commands.hours(step, rate) for step in trained):.0f} hours" if rate else ""
    print(
        f"{len(trained)} trainings, {total / 1e6:.1f} million images{time}; the rest re-evaluates their runs"
    )
