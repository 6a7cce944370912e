"""Line charts as SVG coordinates: axes with round ticks, and polylines, for the page of a report."""

import math
from typing import NamedTuple

WIDTH, HEIGHT = 420, 240  # px of the plotted area
MOST_POINTS = 400  # of a line
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # of the runs


class Line(NamedTuple):
    """A line of a chart.

    Args:
        name:   for the legend.
        xs, ys: numbers; a y of None leaves the point out.
        colour, dash: as in SVG.
    """

    name: str
    xs: list
    ys: list
    colour: str
    dash: str = ""


class Chart(NamedTuple):
    """What the template draws: ticks are (position in px, label), lines (name, points, colour, dash)."""

    title: str
    x_label: str
    x_ticks: list
    y_ticks: list
    lines: list


def chart(title: str, lines: list[Line], x_label: str = "step", y_range: tuple | None = None) -> Chart | None:
    """Returns a chart with all lines on common axes; None if there is no point.

    Args:
        title, x_label: texts.
        lines:          [Line, ...].
        y_range:        (low, high); None: that of the points, with 0 if it is near.
    """
    kept = [(line, _points(line)) for line in lines]
    points = [point for _, of_line in kept for point in of_line]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = y_range or (min(0.0, *ys) if min(ys) < 0.5 * max(ys) else min(ys), max(ys))
    across, up = _ticks(min(xs), max(xs)), _ticks(low, high)
    low, high = min(low, up[0]), max(high, up[-1])
    left, right = min(xs), max(xs)

    def at(x, y):
        return WIDTH * (x - left) / ((right - left) or 1), HEIGHT * (1 - (y - low) / ((high - low) or 1))

    drawn = [
        (
            line.name,
            " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*one) for one in of_line)),
            line.colour,
            line.dash,
        )
        for line, of_line in kept
        if of_line
    ]
    return Chart(
        title,
        x_label,
        x_ticks=[(at(tick, low)[0], f"{tick:g}") for tick in across if left <= tick <= right],
        y_ticks=[(at(left, tick)[1], f"{tick:g}") for tick in up if low <= tick <= high],
        lines=drawn,
    )


def _points(line):
    points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if y is not None and math.isfinite(y)]
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::step] + (points[-1:] if points[::step][-1:] != points[-1:] else [])


def _ticks(low, high):
    """About five round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [round(n * size, 12) for n in range(first, last + 1)]
