"""Initial weights from files of other projects: what fits is taken, what does not is named."""

import functools
import os
import pathlib
import re
from typing import Any

import h5py
import keras
import numpy as np

from kgarden.errors import UserError
from kgarden.weights.files import read_weights
from kgarden.weights.projects import PROJECTS, match_weights, project_of
from kgarden.weights.state_dict import is_of_training

OF_KERAS = "layers/conv2d"  # in .weights.h5 of a functional model, such as those of keras.applications
NAMED = 4  # tensors or layers that a message names


def is_foreign(path: str | os.PathLike) -> bool:
    """Whether a file of weights is another project's: anything but .weights.h5 of a detector of kgarden."""
    if not pathlib.Path(path).name.endswith(".weights.h5"):
        return True
    try:
        with h5py.File(path) as file:
            return OF_KERAS in file
    except OSError:  # missing or damaged: whoever reads it says so
        return False


def take_all(detector: keras.Model, path: str | os.PathLike) -> list[str]:
    """Gives a detector the weights of another project's file, all of which must have a place.

    Args:
        detector: built.
        path:     .pth, .pkl, .safetensors or .npz.
    Returns:
        lines of a report: what was taken, what was left out, which layers keep their initial values.
    Raises:
        UserError: a tensor without a place in this model, or of another shape, or a model that computes
            something else with these weights.
    """
    weights = read_weights(path)
    name = project_of(weights, path)
    if PROJECTS[name].check:
        PROJECTS[name].check(detector)
    matched = match_weights(detector, weights, name)
    unfit = [f"{key} {reason}" for key, reason in matched.unknown.items()] + list(matched.misfits.values())
    if unfit:
        raise UserError(
            f"{path}: {len(unfit)} of {len(weights)} tensors do not fit this model, first: {unfit[0]}"
        )
    matched.assign_to(detector)
    lines = [
        f"{path}: {len(weights) - len(matched.ignored)} of {len(weights)} tensors taken, names of {name}"
    ]
    if matched.ignored:
        lines.append(f"left out, without a counterpart here: {_some(matched.ignored)}")
    if matched.missing:
        lines.append(f"keep their initial values: {_some(_layers(matched.missing))}")
    return lines


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

    That of a project is in its Project; files of detectron2 may hold their own.

    Raises:
        UserError: the file cannot be read, or belongs to no known project.
    """
    state = os.stat(path) if os.path.exists(path) else None
    return _pixels_of(path, state and (state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=8)  # a start asks several times, and files are large
def _pixels_of(path, _state):
    weights = read_weights(path)
    pixels = PROJECTS[project_of(weights, path)].pixels
    if pixels is not None:
        return pixels(weights) if callable(pixels) else pixels
    mean, std = (np.ravel(weights.get(f"pixel_{what}", ())).tolist() for what in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or mean[0] == mean[2]:
        return None
    # The file does not name the order; photos are brighter in red than in blue.
    return {"mean": mean, "std": std, "order": "rgb" if mean[0] > mean[2] else "bgr"}


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
