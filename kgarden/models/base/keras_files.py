"""Loading of .keras files that hold a detector."""

import os
import zipfile

import keras

from kgarden.errors import UserError
from kgarden.models.base.detector import Detector
from kgarden.utils.arguments import path_of


def load_model(path: str | os.PathLike) -> Detector:
    """Loads a detector from a .keras file, as `keras.saving.load_model` in safe mode.

    Keras itself finds kgarden's classes only after `from kgarden import Detector`.

    Args:
        path: of a file that `Detector.save` or Keras' ModelCheckpoint wrote.
    Returns:
        Detector with its weights, `recipe` and `class_names`; not compiled.
    Raises:
        UserError: no such file, or it holds no detector of this version.
    """
    path = path_of(path, "path")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a .keras file")
    try:
        model = keras.saving.load_model(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # of zipfile, json, h5py and Keras, which name no common base
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: not a .keras file that this version reads ({reason})") from error
    if not isinstance(model, Detector):
        raise UserError(f"{path}: holds a {type(model).__name__}, not a detector")
    return model
