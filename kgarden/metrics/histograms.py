"""Histograms of a data set: objects of each class, sizes of objects, objects per image; as figure and text.

The facts are those of `tfrecords.data_statistics`.
"""

import numpy as np

from kgarden.metrics.figures import INK, figure_of, png_of, style_axes
from tfrecords.data_statistics import BINS_PER_OCTAVE, Facts

BAR = "#1f6f8b"
NAMED_CLASSES = 24  # classes with a bar of their own
WIDTH = 40  # characters of the longest bar of the text
GROUPS = 12  # rows of objects per image; more numbers are joined


def histograms_figure(facts: Facts) -> bytes:
    """Draws the three histograms.   PNG bytes"""
    figure = figure_of(13.5, 4.6)
    for ax, (title, rows) in zip(figure.subplots(1, 3), histograms(facts).items(), strict=True):
        labels, counts = [name for name, _ in rows], [count for _, count in rows]
        places = np.arange(len(rows))[::-1]
        ax.barh(places, counts, color=BAR, height=0.7)
        ax.set_yticks(places, [_short(label) for label in labels], fontsize=7.5 if len(rows) > 14 else 9)
        for place, count in zip(places, counts, strict=True):
            ax.text(count, place, f" {count:,}", va="center", fontsize=7.5, color=INK)
        ax.set_xlim(0, 1.18 * max(counts, default=1) or 1)
        ax.set_title(title, fontsize=10)
        style_axes(ax)
        ax.grid(False, axis="y")
    return png_of(figure)


def histograms_text(facts: Facts) -> str:
    """Formats the three histograms as text, a bar of # for each row."""
    parts = []
    for title, rows in histograms(facts).items():
        width = max((len(_short(name)) for name, _ in rows), default=0)
        most = max((count for _, count in rows), default=0) or 1
        lines = [
            f"  {_short(name):<{width}}  {count:>9,}  {'#' * -(-count * WIDTH // most)}".rstrip()
            for name, count in rows
        ]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts) + "\n"


def histograms(facts: Facts) -> dict[str, list[tuple[str, int]]]:
    """Returns {title: [(name, count), ...]} of the three histograms."""
    statistics = facts.statistics
    return {
        f"objects of each class ({statistics.objects:,} objects)": _classes(facts),
        "objects by size: sqrt(width x height) in px": _sides(statistics.sides),
        f"images by number of objects ({statistics.images:,} images)": _per_image(
            statistics.objects_per_image
        ),
    }


def _classes(facts):
    counts = [
        (str(one.get("name", one["id"])), facts.statistics.objects_of_class[one["id"]])
        for one in facts.categories
    ]
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


def _short(name, most=24):
    name = " ".join(name.split()).replace("$", "")
    return name[: most - 1] + "…" if len(name) > most else name
