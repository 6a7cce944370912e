"""Weights from and for other projects, for the model of a recipe: behind `kgarden convert`."""

import os
import pathlib
from collections.abc import Callable

from kgarden.build import build_model, start_from
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.weights.files import read_weights, write_weights
from kgarden.weights.initial import save_all
from kgarden.weights.projects import PROJECTS, match_weights, project_of, weights_as

OURS = ".weights.h5"


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
    is_ours = target.name.endswith(OURS)
    if target.exists():
        raise UserError(f"{target} exists; give another file, or remove it first")
    if not is_ours and names not in PROJECTS:
        raise UserError(f"{target}: give --names, whose names to write: one of {', '.join(PROJECTS)}")
    if recipe.model.num_classes is None and num_classes is None:
        raise UserError("the recipe has no model.num_classes; give --classes")
    detector = build_model(recipe.model_copy(update={"init": None, "freeze": ()}), num_classes)
    if source.name.endswith(OURS):
        start_from(detector, source)
    else:
        for line in take(detector, source):
            say(line)
    if is_ours:
        save_all(detector, target)
    else:
        write_weights(target, weights_as(detector, names))


def take(detector, path: str | os.PathLike) -> list[str]:
    """Gives a detector the weights of another project's file.

    Args:
        detector: built.
        path:     .pth, .pkl, .safetensors or .npz.
    Returns:
        lines of a report: what was taken, what was left out, which parts keep their initial values.
    Raises:
        UserError: a tensor without a place in this model, or of another shape.
    """
    weights = read_weights(path)
    name = project_of(weights, path)
    matched = match_weights(detector, weights, name)
    unfit = [f"{key} {reason}" for key, reason in matched.unknown.items()] + list(matched.misfits.values())
    if unfit:
        raise UserError(
            f"{path}: {len(unfit)} of {len(weights)} tensors do not fit this model, first: {unfit[0]}"
        )
    matched.assign_to(detector)
    return [
        f"{path}: {len(weights)} tensors in the names of {name}, {len(weights) - len(matched.ignored)} taken",
        *_listed("left out, without a counterpart here", matched.ignored),
        *_listed("keep their initial values", _by_layer(matched.missing)),
    ]


def _listed(what, names):
    return [f"{what}: {len(names)}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"] if names else []


def _by_layer(paths):
    """Paths of variables as the layers that hold them: "neck/lateral3"."""
    return list(dict.fromkeys("/".join(path.split("/")[1:-1]) for path in paths))
