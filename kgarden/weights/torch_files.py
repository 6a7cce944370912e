"""PyTorch's files of weights: a zip archive of raw storages; before 1.6, a pickle, then raw storages."""

import io
import math
import struct
import zipfile

import numpy as np

from kgarden.errors import UserError
from kgarden.weights.pickles import Storage, TensorUnpickler, bounded

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def is_legacy(file):
    """Whether PyTorch wrote the file before 1.6: it begins with a pickled magic number."""
    content = file.read(32)
    file.seek(0)
    return content.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # LEGACY_MAGIC


def read_legacy(file):
    """Reads what `torch.save` wrote before PyTorch 1.6.

    Args:
        file: opened for reading bytes.
    Returns:
        what was saved, tensors as `Tensor`; see `tensors_of`.
    """
    storages = {}

    def storage_of(dtype, key, count):
        storage = storages.setdefault(key, Storage(dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise UserError(f"storage {key} has two types or sizes")
        return storage

    def load():
        start = file.tell()
        bounded(file)
        file.seek(start)
        return TensorUnpickler(file, storage_of).load()

    if load() != LEGACY_MAGIC or load() != LEGACY_PROTOCOL:
        raise UserError("an unknown version of PyTorch's format")
    system = load()
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise UserError("written on a big-endian machine")
    saved = load()
    for key in load():
        if key not in storages:
            raise UserError(f"storage {key} belongs to no tensor")
        (count,) = struct.unpack("<q", _exactly(file, 8))
        if count != storages[key].count:
            raise UserError(f"storage {key} has {count} elements instead of {storages[key].count}")
        storages[key].fill(_exactly(file, storages[key].size))
    return saved


def _exactly(file, size):
    start = file.tell()
    file.seek(0, 2)
    end = file.tell()
    file.seek(start)
    if end - start < size:  # before as much memory is asked for
        raise EOFError("the file ends early")
    return file.read(size)


def read_archive(file):
    """Reads what `torch.save` writes since PyTorch 1.6: a zip archive.

    Args:
        file: opened for reading bytes.
    Returns:
        what was saved, tensors as `Tensor`; see `tensors_of`.
    """
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickled = [name for name in members if name.endswith("data.pkl")]
        if len(pickled) != 1:
            raise UserError("a zip archive, but not one of PyTorch")
        [pickled] = pickled
        root = pickled.removesuffix("data.pkl")
        if f"{root}constants.pkl" in members or f"{root}code/" in members:
            raise UserError("a TorchScript program; save its state_dict() instead")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise UserError("its members are compressed, which PyTorch never does")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise UserError("written on a big-endian machine")
        storages = {}

        def storage_of(dtype, key, count):
            name = f"{root}data/{key}"
            if name not in members:
                raise UserError(f"the archive has no {name}")
            if key not in storages:
                storages[key] = Storage(dtype, count)
                if members[name].file_size != storages[key].size:
                    raise UserError(f"{name} has {members[name].file_size} bytes, not {storages[key].size}")
                storages[key].fill(archive.read(name))
            return storages[key]

        with archive.open(pickled) as opened:
            content = opened.read()
        bounded(content)
        return TensorUnpickler(io.BytesIO(content), storage_of).load()


def write_archive(file, weights):
    """Writes a state dict as `torch.save` does, for `torch.load(weights_only=True)`.

    Args:
        file:    opened for writing bytes.
        weights: {name: float32 array}.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled(weights))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(weights.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array, "<f4").tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(weights):
    """The pickle of an OrderedDict of tensors: their storages by number, shape and strides."""
    parts = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for number, (name, array) in enumerate(weights.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = [b"(", _text("storage"), b"ctorch\nFloatStorage\n"]
        storage += [_text(str(number)), _text("cpu"), _number(array.size), b"tQ"]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage, _number(0)]
        parts += [b"(", *map(_number, array.shape), b"t(", *map(_number, strides), b"t\x89"]
        parts += [b"ccollections\nOrderedDict\n)RtR"]
    return b"".join([*parts, b"u."])


def _text(text):
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(number):
    return b"J" + struct.pack("<i", number)
