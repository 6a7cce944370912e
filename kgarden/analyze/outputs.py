"""Output files of analyses: tables, figures and a paragraph on how to read them."""

import csv
import io
import os
import pathlib

from matplotlib.figure import Figure

from kgarden.metrics.figures import png_of, svg_of
from kgarden.utils.files import replace_file


def write_analysis(
    to: str | os.PathLike, reading: str, tables: dict, figures: dict[str, Figure] | None = None
) -> None:
    """Writes the files of an analysis, each atomically.

    Args:
        to:       folder.
        reading:  the paragraph, for reading.txt.
        tables:   {"name": rows as dictionaries with equal keys, or (head, rows as lists)}: name.csv.
        figures:  {"name": matplotlib figure}: name.png and name.svg.
    """
    to = pathlib.Path(to)
    for name, rows in tables.items():
        replace_file(to / f"{name}.csv", table_of(rows).encode())
    for name, figure in (figures or {}).items():
        replace_file(to / f"{name}.png", png_of(figure))
        replace_file(to / f"{name}.svg", svg_of(figure))
    replace_file(to / "reading.txt", f"{reading}\n".encode())


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
