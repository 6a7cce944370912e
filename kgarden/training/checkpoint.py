"""Checkpoints: everything that resuming a training needs, in one file that every backend reads.

`checkpoint/latest.npz` holds the model's weights, the optimizer's variables, the moving averages of the
weights (EMA) and the state of the training (step, best result so far). It is written atomically, so that a
complete checkpoint exists at any time.
"""

import contextlib
import json
import os
import pathlib
import zipfile

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.utils.files import replacing

LATEST = "latest.npz"


@contextlib.contextmanager
def _without_optimizer(detector):
    """Detaches the optimizer: Keras would also store its variables, up to two for each weight."""
    optimizer, detector.optimizer = getattr(detector, "optimizer", None), None
    try:
        yield
    finally:
        detector.optimizer = optimizer


def save_weights(detector, path):
    """Writes the weights, without the optimizer's variables, atomically."""
    with _without_optimizer(detector), replacing(path) as temporary:
        detector.save_weights(temporary)


def load_weights(detector, path):
    """Loads a file that `save_weights` wrote."""
    with _without_optimizer(detector):
        detector.load_weights(path)


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
            arrays[f"{group}/{number:05d}"] = ops.convert_to_numpy(variable.value)
        shapes[group] = [[variable.path, list(variable.shape)] for variable in variables]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".*{LATEST}*"):  # of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    with replacing(folder / LATEST) as temporary, open(temporary, "wb") as file:
        np.savez(file, words=np.array(json.dumps({"state": state, "shapes": shapes})), **arrays)
        file.flush()
        os.fsync(file.fileno())


def has_checkpoint(folder):
    """Returns whether the folder holds a checkpoint."""
    return (pathlib.Path(folder) / LATEST).is_file()


def load_checkpoint(folder, detector, optimizer, ema):
    """Restores model, optimizer and moving averages from a checkpoint.

    Args:
        folder, detector, optimizer, ema: as in `save_checkpoint`.
    Returns:
        the `state` that was saved.
    Raises:
        UserError: the file is damaged or belongs to another model.
    """
    path = pathlib.Path(folder) / LATEST
    try:
        with np.load(path, allow_pickle=False) as stored:
            words = json.loads(str(stored["words"]))
            for group, variables in _groups(detector, optimizer, ema).items():
                _check(path, group, variables, words["shapes"].get(group, []))
                for number, variable in enumerate(variables):
                    variable.assign(stored[f"{group}/{number:05d}"])
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error}); use --fresh to start over") from error
    return words["state"]


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
