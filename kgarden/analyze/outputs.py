"""What every analysis leaves: numbers, figures, and a paragraph that says how to read them."""

import csv
import io
import pathlib

from kgarden.metrics.figures import png_of, svg_of
from kgarden.utils.files import replace_file


def write_analysis(to, reading, tables, figures=None):
    """Each file written aside and renamed.

    Args:
        to:       folder.
        reading:  the paragraph, for reading.txt.
        tables:   {"name": rows as dictionaries of one form, or "name": (head, rows as lists)}: name.csv.
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
    """Rows as the text of a CSV file; None is an empty field."""
    head, lines = rows if isinstance(rows, tuple) else (list(rows[0]), [row.values() for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()


def rounded(value, digits=6):
    """A number for a table; None for what there is none of (NaN)."""
    return None if value != value else round(float(value), digits)
