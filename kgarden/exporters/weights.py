"""Weights from and for other projects, for the model of a recipe: behind `kgarden convert`."""

import os
import pathlib
from collections.abc import Callable

from kgarden.build import build_model
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.weights.files import write_weights
from kgarden.weights.foreign import is_foreign, take_all
from kgarden.weights.initial import load_all, save_all
from kgarden.weights.projects import PROJECTS, weights_as


def convert_weights(
    recipe: Recipe,
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    num_classes: int | None = None,
    names: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Converts weights of another project to ours, or a model's weights to those of another project.

    Args:
        recipe:      of the model.
        source:      .weights.h5, or a file of another project: .pth, .pkl, .safetensors, .npz.
        target:      .weights.h5, or .pth, .pt or .safetensors; must not exist.
        num_classes: C; None: that of the recipe.
        names:       of PROJECTS: whose names are written to .pth and .safetensors.
        say:         function of a line of the report.
    Raises:
        UserError: weights that do not fit the model, or a target that exists.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if target.exists():
        raise UserError(f"{target} exists; give another file, or remove it first")
    if is_foreign(target) and names not in PROJECTS:
        raise UserError(f"{target}: give --names, whose names to write: one of {', '.join(PROJECTS)}")
    if recipe.model.num_classes is None and num_classes is None:
        raise UserError("the recipe has no model.num_classes; give --classes")
    detector = build_model(recipe.model_copy(update={"init": None, "freeze": ()}), num_classes)
    if is_foreign(source):
        for line in take_all(detector, source):
            say(line)
    else:
        load_all(detector, source)
    if is_foreign(target):
        write_weights(target, weights_as(detector, names))
    else:
        save_all(detector, target)
