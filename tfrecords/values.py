"""Numbers and names as annotation files write them: 7, "7", 7.0 and "7.0" are the same number."""

import contextlib
import math

LARGEST_ID = 2**63 - 1  # int64


def text(value):
    """A name as valid UTF-8: stripped, lone surrogates replaced."""
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()


def as_int(value):
    """Parse an integer written as 7, 7.0, "7" or "7.0" -> 7; anything else -> None."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if isinstance(value, str):
            value = value.strip()
            value = int(value) if value.lstrip("+-").isdecimal() else _as_float(value)
        whole = int(value)
        return whole if not isinstance(value, bool) and whole == value and abs(whole) <= LARGEST_ID else None
    return None


def as_id(identifier):
    """An id in the one form in which ids are compared: an int where it is a whole number, else a str."""
    number = as_int(identifier)
    return str(identifier) if number is None else number


def as_flag(value):
    """Parse a flag written as 0, 1, true, false or as text of a number -> 0 or 1; anything else -> 0."""
    return int(value is True or bool(as_int(value)))


def as_numbers(values, count):
    """Parse `count` finite numbers, perhaps as text -> [float, ...]; anything else -> None."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        numbers = [_as_float(value) for value in (values if isinstance(values, list | tuple) else ())]
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
    return None


def _as_float(value):
    """float(value), but 2008_000123 is a name, not the number that Python reads in it."""
    if isinstance(value, str) and "_" in value:
        raise ValueError(value)
    return float(value)


def as_hw(height, width):
    """Parse an annotated size -> (height, width), or None if it is absent."""
    height, width = as_int(height), as_int(width)
    return (height, width) if height and width and height > 0 and width > 0 else None


def ordered(bbox):
    """A box xywh with its corners in order: a negative width or height means that they were swapped."""
    x, y, w, h = bbox
    return [x + min(w, 0), y + min(h, 0), abs(w), abs(h)]
