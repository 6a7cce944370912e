"""Fonts for class names in any script: the one of matplotlib, else one of the system that has all the glyphs.

Without such a font a class is drawn as its id, and `missing_glyphs` says why in one line.
"""

import functools
import pathlib
from collections.abc import Iterable, Sequence

from kgarden.utils.text import in_one_line

WITHOUT_GLYPHS = {0x200C, 0x200D, *range(0xFE00, 0xFE10)}  # joiners and variation selectors
STAND_INS = ("last resort", "blank")  # fonts that map every character to the same glyph


def font_of(text: str) -> tuple[str, pathlib.Path] | None:
    """Returns family and file of a font with all glyphs of a text; None if the system has none.

    DejaVu Sans, which matplotlib brings along, comes first, then upright fonts of normal weight.
    """
    codes = frozenset(ord(one) for one in text if not one.isspace()) - WITHOUT_GLYPHS
    return _font_with(codes)


@functools.cache
def _font_with(codes):
    for name, path in _fonts():
        if codes <= _codes_of(path):
            return name, pathlib.Path(path)
    return None


@functools.cache
def _fonts():
    """[(family, path), ...], the preferred one first."""
    from matplotlib.font_manager import fontManager

    def rank(font):
        weight = font.weight if isinstance(font.weight, int) else 400
        return font.name != "DejaVu Sans", font.style != "normal", abs(weight - 400), font.name

    usable = (font for font in fontManager.ttflist if not font.name.lower().startswith(STAND_INS))
    return [(font.name, font.fname) for font in sorted(usable, key=rank)]


@functools.cache
def _codes_of(path):
    """Characters that a font has glyphs of; none for a file that is no longer a font."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def shown_name(category: dict) -> str:
    """Returns the name of a class in one line, or its id if no font has the glyphs of the name."""
    name = in_one_line(category["name"])
    return name if name and font_of(name) else str(category["id"])


def missing_glyphs(categories: Iterable[dict]) -> str | None:
    """States in one line which classes are drawn as their ids, and why; None if there are none."""
    ids = [f"{one['id']}: {one['name']!r}" for one in categories if not font_of(in_one_line(one["name"]))]
    if not ids:
        return None
    listed = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
    return (
        f"{len(ids)} class names are drawn as their ids, because no font of this system has their glyphs "
        f"({listed}); install one that has, for example Noto Sans CJK"
    )


def families_of(texts: Sequence[str]) -> list[str]:
    """Returns the families that matplotlib needs for some texts, DejaVu Sans first."""
    fonts = [font_of(text) for text in texts if text]
    return list(dict.fromkeys(["DejaVu Sans", *(font[0] for font in fonts if font)]))
