"""The command data check: faults and implausible values of shards."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import JsonOption, say_missing_glyphs, start_tensorflow
from kgarden.utils.text import printable

EXAMPLES = 5  # locations listed for each kind of fault without --verbose


def check_(
    shards: Annotated[str, typer.Argument(metavar="GLOB|DIR", help="Shards; comma-separated if several.")],
    verbose: Annotated[bool, typer.Option("--verbose", help="List every location of every fault.")] = False,
    figures: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for histograms of classes, sizes and objects per image: .png and .txt."),
    ] = None,
    json_: JsonOption = None,
) -> None:
    """Read every record, decode every image, compare every file, and say what is implausible.

    Exit code 1 if there are faults, or if most boxes are wrong.
    """
    start_tensorflow()
    from kgarden.utils.files import check_report, write_report
    from kgarden.utils.output_folder import OutputFolder
    from kgarden.utils.progress import progress_of
    from tfrecords.check import check
    from tfrecords.plausibility import findings

    if json_ is not None:
        check_report(json_)
    folder = None if figures is None else OutputFolder(figures)
    with progress_of("shards") as progress:
        report = check(shards, progress)
    if json_ is not None:
        write_report(json_, report.plain())
    if folder is not None:
        _draw_histograms(report.facts, folder)
    print(f"{report.shards} shards, {report.records} records, {report.objects} objects")
    for kind, locations in report.faults.items():
        print(f"{len(locations):8} x {kind}")
        for location in locations if verbose else locations[:EXAMPLES]:
            print(f"{'':11}{printable(location)}")
    found = {folder: findings(facts) for folder, facts in report.facts.items()}
    for folder, of_folder in found.items():
        for finding in of_folder:
            print(printable(f"{folder}: {finding.sentence}" if len(found) > 1 else finding.sentence))
    if report.faults or any(one.kind == "mistake" for of_folder in found.values() for one in of_folder):
        raise typer.Exit(1)
    print("no faults found")


def _draw_histograms(facts_of_folder, output):
    """One figure and its numbers as text for each data set, and the text on the screen."""
    from kgarden.metrics.histograms import histograms_figure, histograms_text

    names = [folder.resolve().name for folder in facts_of_folder]
    for number, (folder, facts) in enumerate(facts_of_folder.items()):
        name = folder.resolve().name
        name = f"{number + 1}-{name}" if names.count(name) > 1 else name
        text = histograms_text(facts)
        say_missing_glyphs(facts.categories)
        output.write(f"{name}.png", histograms_figure(facts))
        output.write(f"{name}.txt", text.encode())
        print(text, end="")
