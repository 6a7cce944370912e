"""Names of strangers on a terminal: what a terminal would obey is shown as an escape."""

import pytest

from kgarden.utils.text import printable


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x00\x07\x7f\x9b", r"\x00\x07\x7f\x9b"),
        ("one\ntwo\t", r"one\ntwo\t"),
        ("\ud800", r"\ud800"),
        ("abc\u202etxt.exe\u2066", r"abc\u202etxt.exe\u2066"),
        ("a\u2028b", r"a\u2028b"),
        ("[red]猫 é \U0001f431\u200d\u05d0", "[red]猫 é \U0001f431\u200d\u05d0"),
        (7, "7"),
    ],
)
def test_controls_are_escaped_and_names_are_not(text, expected):
    assert printable(text) == expected


def test_line_feeds_may_be_kept():
    assert printable("a\nb\tc\rd", newlines=True) == "a\nb\tc\\rd"
