"""Curve styles: names, colours and line styles of runs and branches, the same in all figures."""

import numpy as np

from kgarden.metrics.figures import COLORS
from kgarden.models.faster_rcnn import FUSED

STYLES = ("-", "--", ":", "-.")


def sorted_curves(values: dict) -> list[tuple[str, str]]:
    """Lists the (run, branch) in keys (run, branch, ...): runs as given, a run's own prediction first.

    Branches are sorted by name, because backends return dictionaries in different orders.
    """
    runs = list(dict.fromkeys(key[0] for key in values))
    return sorted({key[:2] for key in values}, key=lambda key: (runs.index(key[0]), key[1] != FUSED, key[1]))


def curve_styles(values: dict) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Chooses label, colour and line style of each curve; curves equal to a run's own are left out.

    Args:
        values: {(run, branch): array, NaN where undefined; None: the branch does not predict this}.
    Returns:
        {(run, branch): (label, colour, line style)}: a colour for each run, or, with one run, for each
        branch; a run's own prediction is named after the branch that it equals.
    """
    runs, styles = list(dict.fromkeys(run for run, _ in values)), {}
    for number, run in enumerate(runs):
        own = values[run, FUSED]
        names = [name for one, name in sorted_curves(values) if one == run]  # the position sets the style
        branches = [name for name in names if name != FUSED and values[run, name] is not None]
        same = [name for name in branches if np.array_equal(values[run, name], own, equal_nan=True)]
        alone = [name for name in branches if name not in same]
        labels = {FUSED: f"{run} ({', '.join(same)})" if same else run}
        labels |= {name: f"{run}: {name} alone" for name in alone}
        for name, label in labels.items():
            position = names.index(name)
            color = COLORS[(position if len(runs) == 1 else number) % len(COLORS)]
            styles[run, name] = (label, color, STYLES[position])
    return styles
