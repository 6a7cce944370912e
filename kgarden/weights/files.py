"""Files of weights as other projects write them: reading runs nothing in them, writing is atomic."""

import os
import pathlib
import pickle
import struct
import zipfile
import zlib

import h5py
import numpy as np

from kgarden.errors import UserError
from kgarden.utils.files import replacing
from kgarden.weights import pickles, torch_files

# Where training programs put the weights within a checkpoint, in the order in which they are looked for.
PLACES = ("model", "state_dict", "model_state_dict", "model_state", "blobs")

UNFOLDED = 100  # times the size of a compressed .npz, at most

# What damaged or hostile files raise on the way.
READING_ERRORS = (
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    NotImplementedError,  # of zipfile: a compression that it does not know
    RecursionError,
    RuntimeError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the weights of a file of PyTorch, detectron2, Hugging Face or numpy.

    Nothing in the file is executed. Of a training checkpoint the model's weights are taken, names without the
    "module." that data parallelism puts before them.

    Args:
        path: .pth or .pt (zip or legacy form), .pkl (detectron2, Caffe2), .safetensors, .npz or .h5 (Keras).
    Returns:
        {name: array}, bfloat16 as float32.
    Raises:
        UserError: no such file, no weights in it, damaged, or it asks for anything but tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        tensors = _read(path)
    except UserError as error:
        raise UserError(f"{path}: refused: {error}") from error
    except READING_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: damaged, or no file of weights ({reason})") from error
    weights = _weights_in(tensors)
    if not weights:
        raise UserError(f"{path}: no weights in it")
    return weights


def _read(path):
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".h5":
        return _read_keras(path)
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return pickles.tensors_of(torch_files.read_archive(file))
        file.seek(0)
        read = torch_files.read_legacy if torch_files.is_legacy(file) else pickles.read_pickle
        return pickles.tensors_of(read(file))


def _read_safetensors(path):
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    wide = {"bfloat16": "float32"}
    return {name: array.astype(wide.get(array.dtype.name, array.dtype)) for name, array in tensors.items()}


def _read_keras(path):
    """Weights of a Keras model: "layer/variable" of Keras 2, "layers/conv2d/vars/0" of Keras 3."""
    weights = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            layer, *_, variable = name.removeprefix("model_weights/").split("/")
            of_keras_2 = f"{layer}/{variable.removesuffix(':0')}"
            weights[name if name.startswith("layers/") else of_keras_2] = item[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return {name: array for name, array in weights.items() if array.dtype.kind == "f"}


def _read_npz(path):
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > UNFOLDED * path.stat().st_size:
            raise UserError(f"it unfolds to more than {UNFOLDED} times its size")
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _weights_in(tensors):
    for place in PLACES:
        inside = {
            name.removeprefix(f"{place}."): array
            for name, array in tensors.items()
            if name.startswith(f"{place}.")
        }
        if inside:
            tensors = inside
            break
    is_wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if is_wrapped else name: tensors[name] for name in tensors}


def write_weights(path: str | os.PathLike, weights: dict[str, np.ndarray]) -> None:
    """Writes a state dict for PyTorch, atomically.

    Args:
        path:    .pth, .pt or .safetensors; folders are created.
        weights: {name: float32 array}.
    Raises:
        UserError: another ending.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError(f"{path}: weights of other projects are written as .pth, .pt or .safetensors")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save

            file.write(save({name: np.array(array, order="C") for name, array in weights.items()}))
        else:
            torch_files.write_archive(file, weights)
