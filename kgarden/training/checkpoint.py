"""What a training needs to go on: one file of arrays that any backend reads, and averaged weights.

`checkpoint/latest.npz` holds the model's weights, the optimizer's variables, the averages and a few words
(step, best result so far). It is written aside and renamed, so there is always a whole one.
"""

import contextlib
import json
import os
import pathlib
import zipfile

import numpy as np
from keras import ops

from kgarden.errors import UserError

LATEST = "latest.npz"


@contextlib.contextmanager
def _weights_alone(detector):
    """Keras would store the optimizer's variables too, two more of each weight."""
    optimizer, detector.optimizer = getattr(detector, "optimizer", None), None
    try:
        yield
    finally:
        detector.optimizer = optimizer


@contextlib.contextmanager
def _taken_back(aside):
    """A file that could not be written whole is removed: on a full disk its room is needed."""
    try:
        yield
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def save_weights(detector, path):
    """The weights without the optimizer, written aside and renamed."""
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    with _weights_alone(detector), _taken_back(aside):
        detector.save_weights(aside)
        os.replace(aside, path)


def load_weights(detector, path):
    """What `save_weights` wrote."""
    with _weights_alone(detector):
        detector.load_weights(path)


def _groups(detector, optimizer, averages):
    """Every variable that a checkpoint holds, in a fixed order, by group."""
    groups = {"weights": detector.weights, "optimizer": optimizer.variables}
    if averages is not None:
        groups["averages"] = [*averages.averages, averages.updates]
    return groups


def save_checkpoint(folder, detector, optimizer, averages, state):
    """Write everything that training needs to go on.

    Args:
        folder:   `checkpoint/` of a run.
        averages: Averages or None.
        state:    dictionary that JSON knows: step, best, ...
    """
    arrays, shapes = {}, {}
    for group, variables in _groups(detector, optimizer, averages).items():
        for number, variable in enumerate(variables):
            arrays[f"{group}/{number:05d}"] = ops.convert_to_numpy(variable.value)
        shapes[group] = [[variable.path, list(variable.shape)] for variable in variables]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{LATEST}.*"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    aside = folder / f".{LATEST}.{os.getpid()}"
    with _taken_back(aside):
        with open(aside, "wb") as file:
            np.savez(file, words=np.array(json.dumps({"state": state, "shapes": shapes})), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / LATEST)


def has_checkpoint(folder):
    return (pathlib.Path(folder) / LATEST).is_file()


def load_checkpoint(folder, detector, optimizer, averages):
    """Put a checkpoint's values into model, (built) optimizer and averages.

    Returns:
        the state that was saved.
    Raises:
        UserError: the file is damaged or belongs to another model.
    """
    path = pathlib.Path(folder) / LATEST
    try:
        with np.load(path, allow_pickle=False) as stored:
            words = json.loads(str(stored["words"]))
            for group, variables in _groups(detector, optimizer, averages).items():
                _check(path, group, variables, words["shapes"].get(group, []))
                for number, variable in enumerate(variables):
                    variable.assign(stored[f"{group}/{number:05d}"])
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error}); --fresh starts anew") from error
    return words["state"]


def _check(path, group, variables, stored):
    if len(stored) != len(variables):
        raise UserError(
            f"{path}: holds {len(stored)} {group}, this model has {len(variables)}; "
            f"another version of kgarden may have written it; --fresh starts anew"
        )
    for variable, (name, shape) in zip(variables, stored, strict=True):
        if list(variable.shape) != shape:
            raise UserError(
                f"{path}: {name} is {shape}, {variable.path} of this model is "
                f"{list(variable.shape)}; --fresh starts anew"
            )
