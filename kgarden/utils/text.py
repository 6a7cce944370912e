"""Text of strangers on a terminal and in figures: no control characters, no markup."""

import unicodedata

KEPT = {"\u200c", "\u200d"}  # zero-width joiners, which names in some scripts and emoji need


def printable(text: object, newlines: bool = False) -> str:
    r"""Returns a text with control characters, marks of direction and lone surrogates escaped (`\x1b`).

    Args:
        text:     its `str` is taken.
        newlines: whether line feeds and tabs are kept.
    """
    return "".join(
        one if not _is_control(one) or (newlines and one in "\n\t") else one.encode("unicode_escape").decode()
        for one in str(text)
    )


def in_one_line(text: object, most: int | None = None) -> str:
    """Returns a text as one printable line; beyond `most` characters it is cut off with an ellipsis."""
    line = printable(" ".join(str(text).split()))
    return line if most is None or len(line) <= most else line[: most - 1].rstrip() + "…"


def _is_control(character):
    return character not in KEPT and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
