"""Export formats: checks of an export's arguments, and the writer of each format."""

import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from kgarden.build import canvases as canvases_of
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.exporters.portable import write_portable
from kgarden.exporters.saved_model import write_saved_model
from kgarden.exporters.version import views_left_out
from kgarden.utils.arguments import check_count, path_of, shown

FORMATS = ("saved_model", "onnx", "litert")


def check_export(format: str, canvases: Sequence | None = None, batch: int | None = None) -> None:
    """Checks the arguments of an export before the model is built.

    Args:
        format:   one of FORMATS.
        canvases: [(height, width), ...] px, of ONNX and LiteRT.
        batch:    batch size, of ONNX and LiteRT.
    Raises:
        UserError: an unknown format, a setting that the format does not have, or the backend is JAX.
    """
    if not isinstance(format, str) or format not in FORMATS:
        raise UserError(f"export --format {format} is not supported; use one of {', '.join(FORMATS)}")
    if batch is not None:
        check_count(batch, "batch")
    if canvases is not None and not _are_canvases(canvases):
        raise UserError(f"canvases: a list of (height, width) is needed, not {shown(canvases)}")
    if format == "saved_model" and (canvases or batch):
        raise UserError(
            "export: --canvas and --batch apply to onnx and litert; a SavedModel accepts any canvas and batch"
        )
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"export does not support KERAS_BACKEND={keras.backend.backend()}; use the TensorFlow backend"
        )


def _are_canvases(value):
    pairs = isinstance(value, list | tuple) and all(isinstance(one, list | tuple) for one in value)
    return pairs and all(len(one) == 2 and all(isinstance(side, int) for side in one) for one in value)


def export_detector(detector: keras.Model, path, *, format: str, canvases=None, batch: int | None = None):
    """Exports a detector that carries its recipe; see `kgarden.Detector.export`."""
    path = path_of(path, "path")
    check_export(format, canvases, batch)
    if detector.recipe is None:
        raise UserError(
            "export: this detector carries no recipe, which gives the image sizes; build it with "
            "kgarden.build_model, or set detector.recipe = kgarden.load_recipe(...)"
        )
    categories = detector.categories or [{"id": n, "name": str(n)} for n in range(detector.num_classes)]
    return write_export(
        _in_float32(detector),
        detector.recipe,
        categories,
        path,
        format=format,
        canvases=canvases,
        batch=batch,
        say=warnings.warn,
    )


def _in_float32(detector):
    """The detector itself, or a copy that computes in float32, as those of `load_run`."""
    if detector.dtype_policy.name == "float32":
        return detector
    copy = type(detector).from_config({**detector.get_config(), "precision": "float32"})
    copy.set_weights(detector.get_weights())
    return copy


def write_export(
    detector: keras.Model,
    recipe: Recipe,
    categories: list[dict],
    to: pathlib.Path,
    *,
    format: str,
    canvases: Sequence[tuple[int, int]] | None,
    batch: int | None,
    say: Callable[[str], Any],
) -> pathlib.Path:
    """Writes a detector to TO/1/, or the next free version number; arguments as in `kgarden.export`.

    Args:
        detector, recipe: the detector, and the recipe that it was trained with.
        categories:       [{"id", "name"}, ...] in label order.
        to:               parent of the version directory.
        format:           one of FORMATS.
        canvases:         [(height, width), ...] of ONNX and LiteRT files; None: all of the recipe.
        batch:            batch size of ONNX and LiteRT files; None: 1.
        say:              called with a line on features that the exported model omits, if any.
    Returns:
        path of the version directory.
    """
    if line := views_left_out(recipe):
        say(line)
    if format == "saved_model":
        return write_saved_model(detector, recipe, categories, to)
    known = [tuple(canvas) for canvas in canvases_of(recipe, test=True)]
    chosen = [tuple(canvas) for canvas in canvases or known]
    for canvas in chosen:
        if canvas not in known:
            raise UserError(f"export --canvas {_name(canvas)}: the recipe has {', '.join(map(_name, known))}")
    return write_portable(detector, recipe, categories, to, form=format, canvases=chosen, batch=batch or 1)


def _name(canvas):
    return "x".join(map(str, canvas))
