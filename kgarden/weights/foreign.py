"""Initial weights from files of other projects: what fits is taken, what does not is named."""

import os
import pathlib
import re
from typing import Any

import keras
import numpy as np

from kgarden.errors import UserError
from kgarden.weights.files import read_weights
from kgarden.weights.projects import PROJECTS, match_weights, project_of
from kgarden.weights.state_dict import is_of_training

NAMED = 4  # tensors or layers that a message names


def is_foreign(path: str | os.PathLike) -> bool:
    """Whether a file of weights is to be read as another project's: anything but .weights.h5."""
    return not pathlib.Path(path).name.endswith(".weights.h5")


def check_foreign(path: str | os.PathLike) -> None:
    """Raises UserError if the file cannot be read or belongs to no known project."""
    project_of(read_weights(path), path)


def load_foreign(
    detector: keras.Model, path: str | os.PathLike, parts: tuple[str, ...] | None = None
) -> str | None:
    """Gives a detector the weights of another project's file, as far as they fit.

    Args:
        detector: built.
        path:     .pth, .pkl, .safetensors or .npz.
        parts:    names as in `detector.parts()`: what is taken; None: everything that fits.
    Returns:
        a sentence on what starts anew and what is not used; None if everything was taken.
    Raises:
        UserError: the file cannot be read, or its backbone is another one.
    """
    weights = read_weights(path)
    name = project_of(weights, path)
    matched = match_weights(detector, weights, name)
    wanted = [v for part in _parts(detector, parts) for v in part.weights if not is_of_training(v.path)]
    anew = [v.path for v in wanted if v.path not in matched.values]
    of_backbone = {v.path for v in detector.backbone.weights}
    if lost := [key for key in anew if key in of_backbone]:
        reason = matched.misfits.get(lost[0], f"{lost[0]} is not in it")
        raise UserError(f"init: {path} does not fit the backbone of this model: {reason}")
    taken = [v for v in wanted if v.path in matched.values]
    for variable in taken:
        variable.assign(matched.values[variable.path])
    said = [f"init: {path}: {len(taken)} of {len(wanted)} weights are taken, by the names of {name}"]
    said += [f"{_some(_layers(anew))} start anew"] if anew else []
    said += [f"{_some(list(matched.unknown))} of the file are not used"] if matched.unknown else []
    return "; ".join(said) if len(said) > 1 else None


def pixels_of(path: str | os.PathLike) -> str | dict[str, Any] | None:
    """Returns the pixel normalisation that a file's weights expect, as `model.pixels`; None if unknown.

    Classifiers of torchvision have one in common; files of detectron2 may hold theirs.
    """
    weights = read_weights(path)
    if PROJECTS[project_of(weights, path)].is_backbone:
        return "torchvision"
    if {"pixel_mean", "pixel_std"} <= weights.keys():
        mean, std = (np.ravel(weights[f"pixel_{what}"]) for what in ("mean", "std"))
        return {"mean": [float(v) for v in mean], "std": [float(v) for v in std], "order": "bgr"}
    return None


def _parts(detector, names):
    for name in names or ():
        if name not in detector.parts():
            raise UserError(f"init.parts: no part {name!r}; use some of {', '.join(detector.parts())}")
    return [part for name, part in detector.parts().items() if names is None or name in names]


def _layers(paths):
    """Variables as the layers that hold them: "neck/lateral3"."""
    return list(dict.fromkeys(re.sub(r"^[^/]*/|/[^/]*$", "", path) for path in paths))


def _some(names):
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
