"""What a recipe's `init` section names: the file of initial weights, and the pixels that these expect."""

import json
import pathlib

from kgarden.backbones import BACKBONES, is_adapted
from kgarden.config.instantiate import name_and_settings
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.layers.pixels import same_pixels
from kgarden.runs import best_weights
from kgarden.weights.foreign import is_foreign, pixels_of
from kgarden.weights.imagenet import imagenet_file
from kgarden.weights.initial import shapes_in

# Gray levels: Detectron and detectron2 read the same ImageNet files with means half of one apart.
OF_MEANS = 1.0
IMAGENET = "imagenet"  # instead of a file: the weights of the backbone's classifier


def donor_weights(recipe: Recipe) -> pathlib.Path:
    """Returns the path of a recipe's initial weights; those of ImageNet are downloaded if need be.

    Args:
        recipe: with an `init` section.
    Raises:
        UserError: `init.run` has no weights, or ImageNet weights are not to be had.
    """
    init = recipe.init
    if init.weights == IMAGENET:
        backbone = (recipe.model.model_extra or {}).get("backbone")
        name, _ = name_and_settings(
            backbone, "model.backbone", BACKBONES, default="resnet50", also=is_adapted
        )
        if is_adapted(name):
            raise UserError(f"init.weights: imagenet: {name} brings its own weights; remove init")
        return imagenet_file(name)
    return pathlib.Path(init.weights) if init.weights else best_weights(init.run)


def check_init(recipe: Recipe) -> None:
    """Raises UserError if the recipe's initial weights do not exist or cannot be read; builds nothing."""
    if recipe.init:
        path = donor_weights(recipe)
        (pixels_of if is_foreign(path) else shapes_in)(path)


def with_pixels_of_weights(recipe: Recipe) -> Recipe:
    """Returns the recipe with the pixel normalisation that its initial weights expect.

    Raises:
        UserError: the recipe has another one.
    """
    path = donor_weights(recipe) if recipe.init else None
    expected = pixels_of(path) if path and is_foreign(path) else None
    if expected is None:
        return recipe
    held = (recipe.model.model_extra or {}).get("pixels")
    if held is None:
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"pixels": expected})})
    if not same_pixels(held, expected, OF_MEANS):
        raise UserError(
            f"init: {path} expects pixels of {expected}, model.pixels is {held}; "
            f"set model.pixels={json.dumps(expected)}, or leave it out: it comes with the weights"
        )
    return recipe
