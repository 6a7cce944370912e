"""Fonts of class names: one that has the glyphs, else the class id and a line that says why."""

import dataclasses
import io
import warnings

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image, ImageChops

from kgarden.metrics import figures
from kgarden.utils import fonts
from kgarden.utils.fonts import families_of, font_of, missing_glyphs, shown_name
from kgarden.visualization.draw import draw_detections

PLATE = "\u76d8\u5b50"  # 盘子
CATEGORIES = [{"id": 3, "name": PLATE}, {"id": 4, "name": "cup"}]


def forget():
    for function in (fonts._font_with, fonts._fonts, fonts._codes_of):
        function.cache_clear()


@pytest.fixture
def without_font(monkeypatch):
    """A system with the fonts of matplotlib only."""
    own = [one for one in font_manager.fontManager.ttflist if "mpl-data" in one.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    forget()
    yield own
    forget()


@pytest.fixture
def with_font(without_font, tmp_path):
    """A system with one more font, which has the two glyphs: DejaVu's O and I under other codes."""
    font = TTFont(font_of("a")[1])
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap[0x76D8], table.cmap[0x5B50] = table.cmap[ord("O")], table.cmap[ord("I")]
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = "Test Han"
    font.save(tmp_path / "han.ttf")
    font_manager.fontManager.addfont(str(tmp_path / "han.ttf"))
    forget()
    return tmp_path / "han.ttf"


def test_names_without_glyphs_become_ids_with_one_line_that_says_why(without_font):
    assert font_of(PLATE) is None and font_of("cup")[0] == "DejaVu Sans"
    assert [shown_name(one) for one in CATEGORIES] == ["3", "cup"]
    line = missing_glyphs(CATEGORIES)
    assert line.startswith("1 class names") and f"3: '{PLATE}'" in line and "\n" not in line
    assert "cup" not in line and missing_glyphs(CATEGORIES[1:]) is None
    assert shown_name({"id": 1, "name": "\ud800 \x07bell"}) == "\\ud800 \\x07bell"
    assert shown_name({"id": 1, "name": "two\n lines\t"}) == "two lines"
    assert shown_name({"id": 1, "name": " "}) == "1" and missing_glyphs([{"id": 1, "name": " "}]) is None
    many = [{"id": n, "name": PLATE} for n in range(99)]
    assert missing_glyphs(many).startswith("99 class names") and "…" in missing_glyphs(many)


def test_a_font_of_the_system_with_the_glyphs_is_taken(with_font):
    assert font_of(PLATE) == ("Test Han", with_font) and font_of("cup")[0] == "DejaVu Sans"
    assert font_of(f"{PLATE} cup 93") == ("Test Han", with_font)
    assert shown_name(CATEGORIES[0]) == PLATE and missing_glyphs(CATEGORIES) is None
    assert families_of(["cup", PLATE]) == ["DejaVu Sans", "Test Han"]
    assert families_of(["cup"]) == ["DejaVu Sans"] == families_of([])


def test_fonts_that_map_everything_to_one_glyph_are_not_taken(with_font):
    known = font_manager.fontManager.ttflist
    known[:] = [
        dataclasses.replace(one, name="Last Resort") if one.name == "Test Han" else one for one in known
    ]
    forget()
    assert font_of(PLATE) is None


def drawn(name):
    found = {
        "boxes": np.float32([[50, 50, 150, 150]]),
        "scores": np.float32([0.9]),
        "labels": np.int32([0]),
        "valid": np.array([True]),
    }
    return draw_detections(np.zeros((200, 300, 3), "uint8"), found, [name])


def test_drawings_use_the_font(with_font):
    """The two glyphs are those of O and I."""
    assert ImageChops.difference(drawn(PLATE), drawn("OI")).getbbox() is None
    assert ImageChops.difference(drawn(PLATE), drawn("OO")).getbbox() is not None


def figure(label):
    one = figures.figure_of(3, 2)
    axes = one.subplots()
    axes.set_xticks([0], [label])
    axes.set_title(label)
    axes.plot([0], [0], label=label)
    axes.legend()
    return Image.open(io.BytesIO(figures.png_of(one))).convert("RGB")


def test_figures_use_the_font_without_warnings(with_font):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        han = figure(PLATE)
    assert ImageChops.difference(han, figure("OI")).getbbox() is None
