"""Default canvases of a recipe: rounded up to what its neck requires."""

import pytest

from kgarden import build
from kgarden.config.canvases import round_up
from kgarden.config.loading import load_recipe
from kgarden.necks import NECKS


@pytest.mark.parametrize("side, rounded", [(1, 32), (32, 32), (33, 64), (800, 800), (1333, 1344)])
def test_sides_are_rounded_up(side, rounded):
    assert round_up(side, 32) == rounded


@pytest.mark.parametrize("neck", ["wide", {"name": "wide", "channels": 64}])
def test_default_canvases_are_divisible_by_the_divisor_of_the_neck(monkeypatch, neck):
    class Wide(NECKS["fpn"]):
        divisor = 128

    monkeypatch.setitem(NECKS, "wide", Wide)
    sizes = {"data.short_side_px": [640, 800], "data.long_side_px": 1333, "data.canvases": None}
    assert build.canvases(load_recipe("quickstart", sizes)) == [[800, 1344], [1344, 800]]
    recipe = load_recipe("quickstart", {**sizes, "model.neck": neck})
    assert build.canvases(recipe) == [[896, 1408], [1408, 896]]
