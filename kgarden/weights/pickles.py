"""Tensors out of pickles, without executing anything that is in them.

A pickle is a program: it may name any function and have it called. Here it can name only what tensors and
plain containers are made of, each answered by a function of this file. Objects that training frameworks store
beside the weights become empty `Unread` ones; everything else is refused.
"""

import collections
import math
import pickle
import pickletools
import re

import numpy as np

from kgarden.errors import UserError

# PyTorch's names of element types -> numpy's; bfloat16 is the upper half of a float32
STORAGES = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "BFloat16": "bfloat16",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "?",
}

# What training leaves in a checkpoint beside tensors. None of it is imported: it is read as nothing.
BESIDE_WEIGHTS = re.compile(
    r"(argparse|datetime|pathlib|uuid|yacs|omegaconf|mmengine|mmcv|mmdet|detectron2|fvcore|timm|addict"
    r"|yapf|centernet|adet|cvpods|torch\.(optim|utils\.data|nn|cuda|device|_C|distributed|serialization)"
    r"|numpy\.random|maskrcnn_benchmark|collections\.defaultdict|random)(\..*)?"
)


class Unread:
    """Stands for an object that is no tensor: takes whatever a pickle does to it and keeps nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, _, __):
        pass

    def append(self, _):
        pass

    def extend(self, _):
        pass

    def __call__(self, *_, **__):
        return self

    def __hash__(self):
        return id(self)


class _Sealed:
    """What a pickle may name or get but not change."""

    def __setstate__(self, _):
        raise _refused("a change of what it was given")


class _Dtype:
    """numpy's dtype as a pickle makes it: a code, then a state whose second entry is the byte order."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biufc]\d{1,2}|\?", code):
            raise _refused(f"arrays of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """numpy's array as a pickle makes it: created empty, then given its shape, type and bytes."""

    value = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, in_fortran_order, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise _refused("an array of objects")
        array = np.frombuffer(content, dtype.dtype)
        self.value = array.reshape(shape, order="F" if in_fortran_order else "C")


class Storage(_Sealed):
    """The elements of one or more tensors: filled at once from an archive, or later from what follows.

    Attributes:
        elements: 1-D array, or None.
        dtype:    numpy's name, or "bfloat16".
        count:    number of elements.
    """

    def __init__(self, dtype, count):
        self.dtype, self.count, self.elements = dtype, count, None

    def fill(self, content):
        if self.dtype == "bfloat16":
            halves = np.frombuffer(content, "<u2", self.count).astype("<u4")
            self.elements = (halves << 16).view("<f4")
        else:
            self.elements = np.frombuffer(content, self.dtype, self.count)

    @property
    def size(self):
        """Bytes of the storage."""
        return self.count * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


class _Tensor:
    """A view of a storage: where it begins, and shape and strides in elements."""

    def __init__(self, storage, offset, shape, strides, *_):
        if not isinstance(storage, Storage):
            raise _refused("a tensor without elements of its own")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def __setstate__(self, _):
        pass

    @property
    def value(self):
        """The tensor as a numpy array of its own.

        Raises:
            UserError: it reaches beyond its storage.
        """
        sizes = [self.offset, *self.shape, *self.strides]
        if len(self.shape) != len(self.strides) or not all(isinstance(n, int) and n >= 0 for n in sizes):
            raise UserError(f"a tensor has the shape {self.shape} and the strides {self.strides}")
        elements = self.storage.elements[self.offset :]
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and last >= len(elements):
            raise UserError(f"a tensor of the shape {self.shape} is larger than what is stored of it")
        strides = [step * elements.itemsize for step in self.strides]
        if math.prod(self.shape) > max(len(elements), 1):  # one element repeated without end
            raise UserError(f"a tensor of the shape {self.shape} is larger than what is stored of it")
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False).copy()


class _StorageType(_Sealed):
    """A class of storages, named but not imported."""

    def __init__(self, dtype):
        self.dtype = dtype


def _refused(what):
    return UserError(f"it asks for {what}, which no file of weights needs; nothing of it was run")


def _encode(text, encoding="latin1"):
    """How old pickles write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype, content=b""):
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise _refused("a number that is an object")
    return np.frombuffer(content, dtype.dtype, 1)[0]


def _parameter(data, *_):
    return data


NUMPY = {
    "ndarray": _Array,
    "dtype": _Dtype,
    **{f"{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}

ALLOWED = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": lambda function, _type, arguments, _state: function(*arguments),
    "torch.Size": tuple,
    "torch.Tensor": Unread,
    **{f"{module}.set": set for module in ("builtins", "__builtin__")},
    **{f"numpy.{name}": value for name, value in NUMPY.items()},
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class TensorUnpickler(pickle.Unpickler):
    """Reads tensors and plain containers.

    Args:
        file:       the pickle.
        storage_of: function of a persistent id's content (type, key, ..., number of elements) -> Storage.
    """

    def __init__(self, file, storage_of):
        super().__init__(file, encoding="latin1")
        self.storage_of = storage_of

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in ALLOWED:
            return ALLOWED[full]
        if BESIDE_WEIGHTS.fullmatch(full):
            return Unread
        raise _refused(full)

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise _refused(f"an object of kind {pid[0] if isinstance(pid, tuple) and pid else pid!r}")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or not isinstance(count, int) or not 0 <= count < 2**40:
            raise _refused("a storage of unknown type")
        if any(view):
            raise UserError("its tensors share storages in a form that PyTorch wrote before 0.4")
        return self.storage_of(kind.dtype, str(key), count)


def bounded(content):
    """Checks one pickle before it is run.

    The machine that runs pickles keeps a table of what it has made, as long as the largest number that the
    pickle names: a few bytes could ask for gigabytes.

    Args:
        content: bytes, or a file at the pickle's begin; it is read to the pickle's end.
    Raises:
        UserError: its table has gaps.
    """
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > number:
            raise _refused(f"a memo of {argument} entries")


def read_pickle(file):
    """Reads a plain pickle of numpy arrays.

    Args:
        file: opened for reading bytes.
    Returns:
        what it holds, arrays as `_Array`; see `tensors_of`.
    """

    def storage_of(*_):
        raise UserError("it names tensors whose elements are elsewhere")

    bounded(file)
    file.seek(0)
    return TensorUnpickler(file, storage_of).load()


def tensors_of(value):
    """Flattens what a file holds to its tensors.

    Args:
        value: of one of the readers.
    Returns:
        {"model.backbone.conv1.weight": array, ...}: keys of nested dictionaries joined by dots.
    """
    found, seen = {}, set()

    def collect(prefix, value, depth):
        if isinstance(value, _Tensor | _Array):
            found[prefix] = value.value
        elif isinstance(value, np.generic):
            found[prefix] = np.asarray(value)
        elif isinstance(value, dict) and depth and id(value) not in seen:
            seen.add(id(value))
            for key, inner in value.items():
                collect(f"{prefix}.{key}" if prefix else str(key), inner, depth - 1)

    collect("", value, 4)
    return found
