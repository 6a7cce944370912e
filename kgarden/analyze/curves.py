"""How runs and the answers of their heads are named and drawn, in every figure the same."""

import numpy as np

from kgarden.metrics.figures import COLORS
from kgarden.models.faster_rcnn import OWN

STYLES = ("-", "--", ":", "-.")


def answers_of(found, run):
    """Names of a run's answers, its own first, in the keys (run, answer, ...) of what was found."""
    names = dict.fromkeys(key[1] for key in found if key[0] == run)
    return sorted(names, key=lambda name: name != OWN)


def named_curves(values):
    """What to draw, without curves that would lie on top of a run's own answer.

    Args:
        values: {(run, answer): array, NaN where nothing is; None: not trained}.
    Returns:
        {(run, answer): (label, colour, line style)}; a run's own answer is named after the branches that it
        is made of, where it equals one of them.
    """
    runs, drawn = list(dict.fromkeys(run for run, _ in values)), {}
    for number, run in enumerate(runs):
        own, color = values[run, OWN], COLORS[number % len(COLORS)]
        branches = [name for name in answers_of(values, run) if name != OWN and values[run, name] is not None]
        same = [name for name in branches if np.array_equal(values[run, name], own, equal_nan=True)]
        drawn[run, OWN] = (f"{run} ({', '.join(same)})" if same else run, color, STYLES[0])
        for style, name in zip(STYLES[1:], [name for name in branches if name not in same], strict=False):
            drawn[run, name] = (f"{run}: {name} alone", color, style)
    return drawn
