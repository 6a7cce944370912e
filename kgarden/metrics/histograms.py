"""Histograms of a data set: objects of each class, sizes of objects, objects per image; as figure and text.

The facts are those of `tfrecords.data_statistics`.
"""

from collections.abc import Callable

import numpy as np

from kgarden.metrics.figures import COLORS, INK, figure_of, png_of, short, style_axes
from kgarden.utils.fonts import shown_name
from kgarden.utils.text import in_one_line
from tfrecords.data_statistics import BINS_PER_OCTAVE, Facts

NAMED_CLASSES = 24  # classes with a bar of their own
LENGTH = 24  # characters of a name
WIDTH = 40  # characters of the longest bar of the text
GROUPS = 12  # rows of objects per image; more numbers are joined


def histograms_figure(facts: Facts) -> bytes:
    """Draws the three histograms.   PNG bytes"""
    figure = figure_of(13.5, 4.6)
    contents = histograms(facts, shown_name).items()
    for ax, (title, rows) in zip(figure.subplots(1, 3), contents, strict=True):
        names, counts = [short(name, LENGTH) for name, _ in rows], [count for _, count in rows]
        heights = np.arange(len(rows))[::-1]
        ax.barh(heights, counts, color=COLORS[0], height=0.7)
        ax.set_yticks(heights, names, fontsize=7.5 if len(rows) > 14 else 9)
        for height, count in zip(heights, counts, strict=True):
            ax.text(count, height, f" {count:,}", va="center", fontsize=7.5, color=INK)
        ax.set_xlim(0, 1.18 * max(counts, default=1) or 1)
        ax.set_title(title, fontsize=10)
        style_axes(ax)
        ax.grid(False, axis="y")
    return png_of(figure)


def histograms_text(facts: Facts) -> str:
    """Formats the three histograms as text, a bar of # for each row."""
    parts = []
    for title, rows in histograms(facts).items():
        rows = [(in_one_line(name, LENGTH), count) for name, count in rows]
        width = max((len(name) for name, _ in rows), default=0)
        most = max((count for _, count in rows), default=0) or 1
        lines = [
            f"  {name:<{width}}  {count:>9,}  {'#' * -(-count * WIDTH // most)}".rstrip()
            for name, count in rows
        ]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts) + "\n"


def histograms(
    facts: Facts, name_of: Callable[[dict], str] = lambda category: category["name"]
) -> dict[str, list[tuple[str, int]]]:
    """Returns {title: [(name, count), ...]} of the three histograms; classes are named by `name_of`."""
    statistics = facts.statistics
    return {
        f"objects of each class ({statistics.objects:,} objects)": _classes(facts, name_of),
        "objects by size: sqrt(width x height) in px": _sides(statistics.sides),
        f"images by number of objects ({statistics.images:,} images)": _per_image(
            statistics.objects_per_image
        ),
    }


def _classes(facts, name_of):
    counts = [(name_of(one), facts.statistics.objects_of_class[one["id"]]) for one in facts.categories]
    if len(counts) > NAMED_CLASSES:
        counts.sort(key=lambda pair: -pair[1])
    rest = counts[NAMED_CLASSES:]
    joined = [(f"{len(rest)} other classes", sum(count for _, count in rest))] if rest else []
    return counts[:NAMED_CLASSES] + joined


def _sides(sides):
    """One row for each octave: 4 to 8 px, 8 to 16 px, ..."""
    octaves = {}
    for one, count in sides.items():
        octaves[one // BINS_PER_OCTAVE] = octaves.get(one // BINS_PER_OCTAVE, 0) + count
    if not octaves:
        return []
    every = range(min(octaves), max(octaves) + 1)
    return [(f"{2.0**one:g} to {2.0 ** (one + 1):g}", octaves.get(one, 0)) for one in every]


def _per_image(images):
    """One row for each number of objects, or for each of at most GROUPS ranges."""
    if not images:
        return []
    most = max(images)
    step = -(-(most + 1) // GROUPS)
    rows = []
    for first in range(0, most + 1, step):
        last = first + step - 1
        count = sum(number for objects, number in images.items() if first <= objects <= last)
        rows.append((f"{first}" if step == 1 else f"{first} to {last}", count))
    return rows
