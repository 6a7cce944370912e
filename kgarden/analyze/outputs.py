"""Output files of analyses: tables, figures and a paragraph on how to read them."""

import csv
import io
import os
from collections.abc import Iterable

from matplotlib.figure import Figure

from kgarden.metrics.figures import png_of, svg_of
from kgarden.utils.output_folder import OutputFolder


def analysis_folder(
    to: str | os.PathLike, tables: Iterable[str], figures: Iterable[str] = ()
) -> OutputFolder:
    """Returns the folder of an analysis, checked before the work for the names of its tables and figures.

    Raises:
        UserError: it cannot be written to, or a file that kgarden has not written would be replaced.
    """
    folder = OutputFolder.of(to)
    drawn = [f"{name}.{form}" for name in figures for form in ("png", "svg")]
    folder.check(*(f"{name}.csv" for name in tables), *drawn, "reading.txt")
    return folder


def write_analysis(
    to: str | os.PathLike | OutputFolder, reading: str, tables: dict, figures: dict[str, Figure] | None = None
) -> None:
    """Writes the files of an analysis, each atomically.

    Args:
        to:       folder.
        reading:  the paragraph, for reading.txt.
        tables:   {"name": rows as dictionaries with equal keys, or (head, rows as lists)}: name.csv.
        figures:  {"name": matplotlib figure}: name.png and name.svg.
    """
    folder = analysis_folder(to, tables, figures or ())
    for name, rows in tables.items():
        folder.write(f"{name}.csv", table_of(rows).encode())
    for name, figure in (figures or {}).items():
        folder.write(f"{name}.png", png_of(figure))
        folder.write(f"{name}.svg", svg_of(figure))
    folder.write("reading.txt", f"{reading}\n".encode())


def table_of(rows):
    """Formats rows as CSV; None is an empty field."""
    head, lines = rows if isinstance(rows, tuple) else (list(rows[0]), [row.values() for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()


def rounded(value: float, digits: int = 6) -> float | None:
    """Rounds a number for a table; None for NaN."""
    return None if value != value else round(float(value), digits)
