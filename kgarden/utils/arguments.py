"""Checks of arguments given in Python: a wrong type is refused in one line, as a wrong value is."""

import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kgarden.errors import UserError

PLAIN = (str, bool, int, float, type(None))  # values of YAML


def path_of(value: Any, name: str) -> pathlib.Path:
    """Returns the path that an argument holds.

    Args:
        value: str or os.PathLike.
        name:  of the argument, for messages.
    Raises:
        UserError: it is of another type, empty, or no path that the file system can look up.
    """
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}: a path is needed, not {shown(value)}")
    if not os.fspath(value):
        raise UserError(f"{name}: the path is empty")
    if "\0" in os.fspath(value):
        raise UserError(f"{name}: the path {os.fspath(value)!r} contains a null character")
    path = pathlib.Path(value)
    try:
        path.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:80]}: {error.strerror}") from error
    return path


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Checks that an argument is a whole number of at least `least`; raises UserError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name}: a whole number from {least} on is needed, not {shown(value)}")


def check_fraction(value: Any, name: str) -> None:
    """Checks that an argument is a number from 0 to 1; raises UserError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise UserError(f"{name}: a number from 0 to 1 is needed, not {shown(value)}")


def check_names(value: Any, name: str) -> None:
    """Checks that an argument is None or a list of texts, none of them twice; raises UserError."""
    if value is None:
        return
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
        raise UserError(f'{name}: a list of names, ["cup", "dish"], is needed, not {shown(value)}')
    if twice := [one for one in value if value.count(one) > 1]:
        raise UserError(f"{name}: {shown(twice[0])} is given twice")


def check_overrides(overrides: Any) -> None:
    """Checks that `overrides` are None or {"a.b": value} with values that YAML has; raises UserError."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise UserError(f'overrides: a dict {{"schedule.steps": 20}} is needed, not {shown(overrides)}')
    for key, value in overrides.items():
        if not isinstance(key, str) or not key:
            raise UserError(f"overrides: keys are those of recipes, such as 'schedule.steps', not {key!r}")
        if not _is_plain(value):
            raise UserError(
                f"overrides: {key} is {shown(value)}; numbers, strings, lists and dicts can be set"
            )


def _is_plain(value):
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def shown(value: Any) -> str:
    """Returns a value as messages show it: short ones with their type, others by their type alone."""
    if value is None:
        return "None"
    text = repr(value) if isinstance(value, PLAIN) else ""
    kind = type(value).__name__
    return f"{text} ({kind})" if 0 < len(text) < 40 else f"a value of type {kind}"
