"""Transform and its stages (CROP, SIZE, FINISH); checks of settings."""

import dataclasses
from collections.abc import Callable

from kgarden.errors import UserError

CROP, SIZE, FINISH = range(3)  # of the stored image; to the size on the canvas; at that size


@dataclasses.dataclass(frozen=True)
class Transform:
    """A transform of an image together with its ground truth.

    change:   (example, seed, partner) -> example; `partner(k)` is the k-th other image, ready for this one.
    stage:    CROP, SIZE or FINISH.
    partners: number of other images that it needs.
    needs_masks: whether examples must have masks.
    mirror:   (axis, probability) of a plain flip, 0: vertical, 1: horizontal; else None.
    """

    change: Callable
    stage: int
    partners: int = 0
    needs_masks: bool = False
    mirror: tuple | None = None


def check_range(name, value, low, high):
    """Validate a pair in ascending order within limits -> tuple of floats."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    ordered = (
        len(pair) == 2 and all(isinstance(v, int | float) for v in pair) and low <= pair[0] <= pair[1] <= high
    )
    if not ordered:
        raise UserError(f"augment: {name}: {value} is not [low, high] within {low:g} and {high:g}")
    return float(pair[0]), float(pair[1])


def check_part(name, value):
    """Validate a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"augment: {name}: {value} is not a number from 0 to 1")
    return float(value)
