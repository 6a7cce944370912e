"""Default canvases of a recipe: rounded up to what its neck requires."""

import pytest

from kgarden import build
from kgarden.config.canvases import round_up
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError


@pytest.mark.parametrize("side, rounded", [(1, 32), (32, 32), (33, 64), (800, 800), (1333, 1344)])
def test_sides_are_rounded_up(side, rounded):
    assert round_up(side, 32) == rounded


@pytest.mark.parametrize(
    "neck, divisor",
    [
        ("fpn", 32),
        ("bifpn", 128),
        ({"name": "bifpn", "channels": 64}, 128),
        ({"name": "bifpn", "levels": [3, 5]}, 32),
        ({"name": "bifpn", "style": "fcos"}, 32),
    ],
)
def test_default_canvases_are_divisible_by_the_divisor_of_the_neck(neck, divisor):
    sizes = {"data.short_side_px": [640, 800], "data.long_side_px": 1333, "data.canvases": None}
    recipe = load_recipe("quickstart", {**sizes, "model.neck": neck})
    short, long = {32: (800, 1344), 128: (896, 1408)}[divisor]
    assert build.canvases(recipe) == [[short, long], [long, short]]


def test_images_of_inference_may_have_canvases_of_their_own():
    square = {"data.canvases": [[64, 64]], "data.test_short_side_px": 60, "data.test_long_side_px": 90}
    recipe = load_recipe("quickstart", {**square, "data.test_canvases": [[64, 96], [96, 64]]})
    assert build.canvases(recipe) == [[64, 64]]
    assert build.canvases(recipe, test=True) == build.test_sizes(recipe)["canvases"] == [[64, 96], [96, 64]]
    without = load_recipe("quickstart", square)
    assert build.canvases(without, test=True) == [[64, 64]]
    odd = load_recipe("quickstart", {**square, "data.test_canvases": [[64, 90]]})
    with pytest.raises(UserError, match="64x90 is not divisible by 32"):
        build.build_model(odd, num_classes=2)
