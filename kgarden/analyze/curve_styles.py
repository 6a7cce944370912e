"""How runs and the answers of their heads are named and drawn, in every figure the same."""

import numpy as np

from kgarden.metrics.figures import COLORS
from kgarden.models.faster_rcnn import OWN

STYLES = ("-", "--", ":", "-.")


def sorted_curves(found):
    """[(run, answer)] in the keys (run, answer, ...) of what was found: runs as given, own answers first.

    The others by name: backends hand out dictionaries in different orders.
    """
    runs = list(dict.fromkeys(key[0] for key in found))
    return sorted({key[:2] for key in found}, key=lambda key: (runs.index(key[0]), key[1] != OWN, key[1]))


def curve_styles(values):
    """What to draw, without curves that would lie on top of a run's own answer.

    Args:
        values: {(run, answer): array, NaN where nothing is; None: not trained}.
    Returns:
        {(run, answer): (label, colour, line style)}: a colour for each run, or for each answer of one run; a
        run's own answer is named after a branch where it equals that branch's.
    """
    runs, drawn = list(dict.fromkeys(run for run, _ in values)), {}
    for number, run in enumerate(runs):
        own = values[run, OWN]
        names = [name for one, name in sorted_curves(values) if one == run]  # the place of each is its look
        branches = [name for name in names if name != OWN and values[run, name] is not None]
        same = [name for name in branches if np.array_equal(values[run, name], own, equal_nan=True)]
        alone = [name for name in branches if name not in same]
        labels = {OWN: f"{run} ({', '.join(same)})" if same else run}
        labels |= {name: f"{run}: {name} alone" for name in alone}
        for name, label in labels.items():
            place = names.index(name)
            color = COLORS[(place if len(runs) == 1 else number) % len(COLORS)]
            drawn[run, name] = (label, color, STYLES[place])
    return drawn
