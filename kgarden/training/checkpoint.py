"""Checkpoints: everything that resuming a training needs, in one file that every backend reads.

`checkpoint/latest.npz` holds the model's weights, the optimizer's variables, the moving averages of the
weights (EMA) and the state of the training (step, best result so far). It is written atomically, so that a
complete checkpoint exists at any time. The one before it stays as `previous.npz`, which is read if the last
one is damaged.
"""

import contextlib
import json
import os
import pathlib
import warnings

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.optimizers.optimizers import GRADIENT_NORM
from kgarden.utils.files import make_folder, replacing
from kgarden.weights.files import READING_ERRORS
from kgarden.weights.initial import load_all, save_all

LATEST, PREVIOUS, DAMAGED = "latest.npz", "previous.npz", "damaged.npz"


@contextlib.contextmanager
def _without_optimizer(detector):
    """Detaches the optimizer: Keras would also store its variables, up to two for each weight."""
    optimizer, detector.optimizer = getattr(detector, "optimizer", None), None
    try:
        yield
    finally:
        detector.optimizer = optimizer


def save_weights(detector, path):
    """Writes the weights, without the optimizer's variables, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with _without_optimizer(detector):
        save_all(detector, path)


def load_weights(detector, path):
    """Loads a file that `save_weights` wrote.

    Raises:
        UserError: the file is damaged or of another model.
    """
    with _without_optimizer(detector):
        load_all(detector, path)


def _groups(detector, optimizer, ema):
    """Returns every variable that a checkpoint holds, in a fixed order, by group."""
    groups = {"weights": detector.weights, "optimizer": optimizer.variables}
    if ema is not None:
        groups["averages"] = [*ema.averages, ema.updates]
    return groups


def save_checkpoint(folder, detector, optimizer, ema, state):
    """Writes a checkpoint atomically.

    Args:
        folder:    `checkpoint/` of a run directory.
        detector:  kgarden.models.base.detector.Detector, built.
        optimizer: built.
        ema:       ExponentialMovingAverage or None.
        state:     dictionary of JSON values: step, best, ...
    """
    arrays, shapes = {}, {}
    for group, variables in _groups(detector, optimizer, ema).items():
        for number, variable in enumerate(variables):
            array = ops.convert_to_numpy(variable.value)
            # that of a step that loss scaling skipped is not finite; the next step overwrites it
            arrays[f"{group}/{number:05d}"] = (
                np.nan_to_num(array) if variable.name == GRADIENT_NORM else array
            )
        shapes[group] = [[variable.path, list(variable.shape)] for variable in variables]
    folder = make_folder(folder)
    for leftover in folder.glob(f".*{LATEST}*"):  # of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    latest = folder / LATEST
    with replacing(latest) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, words=np.array(json.dumps({"state": state, "shapes": shapes})), **arrays)
            file.flush()
            os.fsync(file.fileno())
        if latest.exists():
            os.replace(latest, folder / PREVIOUS)


def not_finite(detector, optimizer, ema):
    """Returns the path of a variable of a checkpoint with NaN or infinite values; None if all are finite.

    Args:
        detector, optimizer, ema: as in `save_checkpoint`.
    """
    every = [one for group in _groups(detector, optimizer, ema).values() for one in group]
    floats = [one for one in every if "float" in str(one.dtype) and one.name != GRADIENT_NORM]
    finite = ops.convert_to_numpy(ops.stack([ops.all(ops.isfinite(one.value)) for one in floats]))
    return next((one.path for one, good in zip(floats, finite, strict=True) if not good), None)


def has_checkpoint(folder):
    """Returns whether the folder holds a checkpoint."""
    return any((pathlib.Path(folder) / name).is_file() for name in (LATEST, PREVIOUS))


def load_checkpoint(folder, detector, optimizer, ema, say=warnings.warn):
    """Restores model, optimizer and moving averages from the last checkpoint that is not damaged.

    A damaged last checkpoint is renamed to damaged.npz, and the one before it is read.

    Args:
        folder, detector, optimizer, ema: as in `save_checkpoint`.
        say:  called with one line if the last checkpoint is damaged.
    Returns:
        the `state` that was saved.
    Raises:
        UserError: no checkpoint can be read, or it belongs to another model.
    """
    folder, damaged = pathlib.Path(folder), []
    for path in (folder / LATEST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            words, stored = _read(path)
        except READING_ERRORS as error:
            damaged.append(f"{path}: the checkpoint is damaged ({error})")
            continue
        groups = _groups(detector, optimizer, ema)
        for group, variables in groups.items():
            _check(path, group, variables, words["shapes"].get(group, []))
        for group, variables in groups.items():
            for number, variable in enumerate(variables):
                variable.assign(stored[f"{group}/{number:05d}"])
        if damaged:
            say(
                f"{damaged[0]}; going on from the one before it, {path.name} of step {words['state']['step']}"
            )
            with contextlib.suppress(OSError):
                os.replace(folder / LATEST, folder / DAMAGED)
        return words["state"]
    reason = damaged[0] if damaged else f"{folder}: no checkpoint"
    raise UserError(f"{reason}; use --fresh to start over")


def _read(path):
    """(words, {name: array}) of a checkpoint, all of it read and checked before a variable is assigned."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    words = json.loads(str(arrays.pop("words")))
    for group, variables in words["shapes"].items():
        for number, (name, shape) in enumerate(variables):
            array = arrays[f"{group}/{number:05d}"]
            if list(array.shape) != shape:
                raise ValueError(f"{name} has the shape {list(array.shape)}, not {shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
    if not isinstance(words["state"]["step"], int):
        raise ValueError("no step")
    return words, arrays


def _check(path, group, variables, stored):
    if len(stored) != len(variables):
        raise UserError(
            f"{path}: holds {len(stored)} {group} variables, this model has {len(variables)}; "
            f"another version of kgarden may have written it; use --fresh to start over"
        )
    for variable, (name, shape) in zip(variables, stored, strict=True):
        if list(variable.shape) != shape:
            raise UserError(
                f"{path}: {name} has the shape {shape}, {variable.path} of this model has "
                f"{list(variable.shape)}; use --fresh to start over"
            )
