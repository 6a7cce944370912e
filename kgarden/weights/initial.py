"""Weights of a Keras file (.weights.h5) for a detector: all of them, or as many as fit."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

import h5py
import keras

from kgarden.errors import UserError
from kgarden.runs import load_categories
from kgarden.utils.files import replacing

NAMED = 4  # layers that a message names
ANEW, MISFIT = ("starts anew", "start anew"), ("does not fit", "do not fit")  # one layer, several
VARIABLES = "/vars/"  # separates a layer from its variables in the file


def load_all(detector: keras.Model, path: str | os.PathLike) -> None:
    """Loads weights that must fit exactly.

    Raises:
        UserError: the file is missing or damaged, or is that of another model; the message names the layers.
    """
    stored = shapes_in(path)
    try:
        detector.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        new, unused = _differences(_own_shapes(detector), stored)
        how = _misfits(detector, path, new=new, unused=unused, verbs=MISFIT) or "the file is damaged"
        raise UserError(f"{path}: the weights are not those of this model: {how}") from error


HDF5_BYTES = 2**12  # more than HDF5 needs for the name and the shape of a variable


def save_all(detector: keras.Model, path: str | os.PathLike) -> None:
    """Writes all weights to a .weights.h5 file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        _reserve(temporary, detector.weights)
        detector.save_weights(temporary)


def _reserve(path, variables):
    """Raises OSError if the disk has no room for a file of these variables, where the system can tell.

    HDF5 keeps data that it could not write, tries again when the process ends, and crashes it.
    """
    size = sum(keras.ops.convert_to_numpy(one.value).nbytes + HDF5_BYTES for one in variables)
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def load_what_fits(detector: keras.Model, path: str | os.PathLike) -> str | None:
    """Loads the weights of all layers whose shapes agree; the others keep their initial values.

    Args:
        detector: built.
        path:     .weights.h5 of a detector with other classes or heads, but the same backbone.
    Returns:
        a sentence that names what was not loaded; None if everything was.
    Raises:
        UserError: the file is missing or damaged, or its backbone is another one.
    """
    stored = shapes_in(path)
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder) / "own.weights.h5"
        detector.save_weights(own)
        shapes = shapes_in(own)
        new, unused = _differences(shapes, stored)
        fits = [name for name in shapes if _layer(name) not in new]
        if not fits or any(layer.split("/")[0] == "backbone" for layer in new):
            how = _misfits(detector, path, new=new, unused=unused, verbs=MISFIT)
            raise UserError(
                f"init: {path} does not fit this model: {how}; use the same backbone, or init.parts"
            )
        with h5py.File(own, "r+") as target, h5py.File(path) as source:
            for name in fits:
                target[name][...] = source[name][()]
        detector.load_weights(own)
    how = _misfits(detector, path, new=new, unused=unused, verbs=ANEW)
    return how and f"init: {path}: {len(fits)} of {len(shapes)} weights fit and are loaded; {how}"


def load_parts(
    detector: keras.Model, source: keras.Model, path: str | os.PathLike, names: Sequence[str]
) -> None:
    """Loads some parts of a detector, which must fit.

    Args:
        detector: built.
        source:   the detector that the file is of, built; its weights are overwritten.
        path:     .weights.h5 of `source`.
        names:    of the parts, as in `detector.parts()`.
    Raises:
        UserError: the file cannot be used, or a part does not exist or has other shapes.
    """
    load_all(source, path)
    for name in names:
        if name not in detector.parts() or name not in source.parts():
            raise UserError(f"init.parts: no part {name!r}; use some of {', '.join(detector.parts())}")
        ours, theirs = detector.parts()[name].weights, source.parts()[name].weights
        if [v.shape for v in ours] != [v.shape for v in theirs]:
            raise UserError(
                f"init.parts: {name} of {path} does not fit this recipe ({source.num_classes} classes there, "
                f"{detector.num_classes} here); leave it out, or remove init.parts to load what fits"
            )
        for variable, value in zip(ours, theirs, strict=True):
            variable.assign(value.value)


def num_classes_of(path: str | os.PathLike) -> int | None:
    """Returns the number of classes of the run that a file of weights is in; None outside of a run."""
    folder = pathlib.Path(path).parent
    return len(load_categories(folder)) if (folder / "labels.json").is_file() else None


def shapes_in(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of the weights in a .weights.h5 file.

    Raises:
        UserError: the file is missing, of another kind or damaged.
    """
    path, shapes = pathlib.Path(path), {}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not path.name.endswith(".weights.h5"):
        raise UserError(
            f"{path} is not a .weights.h5 file; kgarden convert reads the weights of other projects"
        )

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            shapes[name] = item.shape

    try:
        with h5py.File(path) as file:
            file.visititems(note)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: damaged, or not a file of weights; it cannot be read as HDF5") from error
    if not shapes:
        raise UserError(f"{path}: holds no weights")
    return shapes


def _own_shapes(detector):
    """Returns {name: shape} of a detector's weights, as a file of them would have them."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "own.weights.h5"
        detector.save_weights(path)
        return shapes_in(path)


def _differences(own, stored):
    """Returns the layers of the model that do not fit, and those of the file that the model lacks.

    A layer of which one variable does not fit is left out as a whole.
    """
    new = dict.fromkeys(_layer(name) for name, shape in own.items() if stored.get(name) != shape)
    known = {_layer(name) for name in own}
    unused = dict.fromkeys(_layer(name) for name in stored if _layer(name) not in known)
    return list(new), list(unused)


def _layer(name):
    return name.rpartition(VARIABLES)[0].removeprefix("layers/")


def _misfits(detector, path, new, *, unused, verbs):
    """Returns the sentence on what does not fit; None if everything does."""
    parts = [f"{_some(new)} {verbs[len(new) > 1]}"] if new else []
    parts += [f"{_some(unused)} of the file {'are' if len(unused) > 1 else 'is'} not used"] if unused else []
    there, here = num_classes_of(path), detector.num_classes
    if new and there not in (None, here):
        parts[0] += f" ({there} classes there, {here} here)"
    return "; ".join(parts) or None


def _some(layers):
    more = f" and {len(layers) - NAMED} more layers" if len(layers) > NAMED else ""
    return ", ".join(layers[:NAMED]) + more
