"""Transform and its stages (CROP, SIZE, FINISH); checks of settings."""

import dataclasses
from collections.abc import Callable

from kgarden.errors import UserError

CROP, SIZE, FINISH = range(3)  # on the stored image; to its size on the canvas; on the image at that size


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of an image together with its truth.

    change:   (example, seed, partner) -> example; `partner(k)` is the k-th other image, ready for this one.
    stage:    CROP, SIZE or FINISH.
    partners: how many other images it wants.
    needs_masks: it is nothing without them.
    mirror:   (axis, probability) of a plain mirror, 0: top to bottom, 1: left to right; else None.
    """

    change: Callable
    stage: int
    partners: int = 0
    needs_masks: bool = False
    mirror: tuple | None = None


def check_range(name, value, low, high):
    """A pair in ascending order within limits, as a tuple of floats."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    ordered = (
        len(pair) == 2 and all(isinstance(v, int | float) for v in pair) and low <= pair[0] <= pair[1] <= high
    )
    if not ordered:
        raise UserError(f"augment: {name}: {value} is not [low, high] within {low:g} and {high:g}")
    return float(pair[0]), float(pair[1])


def check_part(name, value):
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"augment: {name}: {value} is not a number from 0 to 1")
    return float(value)
