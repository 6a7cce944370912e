"""Export of runs to SavedModel, ONNX or LiteRT; serving needs no kgarden.

All formats contain the same network (kgarden/exporters/network.py). A SavedModel adds the steps of
`kgarden predict` around it, from encoded images to boxes in px of the original image; ONNX and LiteRT files
contain the network only, one file for each canvas, and are compared with the model when they are written.
"""

import os
import pathlib
import warnings
from collections.abc import Callable, Sequence

import keras

from kgarden.build import canvases as canvases_of
from kgarden.build import load_run
from kgarden.errors import UserError
from kgarden.exporters.portable import write_portable
from kgarden.exporters.saved_model import write_saved_model
from kgarden.exporters.version import views_left_out

FORMATS = ("saved_model", "onnx", "litert")


def export_run(
    run: str | os.PathLike,
    to: str | os.PathLike,
    form: str = "saved_model",
    canvases: Sequence[tuple[int, int]] | None = None,
    batch: int | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> pathlib.Path:
    """Exports a run to TO/1/, or the next free version number, atomically.

    Args:
        run:      run directory; its best weights are exported.
        to:       parent of the version directory.
        form:     one of FORMATS.
        canvases: [(height, width), ...] of ONNX and LiteRT files; None: all of the recipe.
        batch:    batch size of ONNX and LiteRT files; None: 1.
        say:      called with a line on features that the exported model omits, if any.
    Returns:
        path of the version directory.
    Raises:
        UserError: the format is unknown or needs a package that is not installed, the recipe does not have a
                   canvas, or `to` cannot be written to.
        TrainingFailed: the exported file's predictions differ from the model's.
    """
    if form not in FORMATS:
        raise UserError(f"export --format {form} is not supported; use one of {', '.join(FORMATS)}")
    if form == "saved_model" and (canvases or batch):
        raise UserError(
            "export: --canvas and --batch apply to onnx and litert; a SavedModel accepts any canvas and batch"
        )
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"export does not support KERAS_BACKEND={keras.backend.backend()}; use the TensorFlow backend"
        )
    recipe, detector, categories = load_run(run)
    if line := views_left_out(recipe):
        say(line)
    if form == "saved_model":
        return write_saved_model(detector, recipe, categories, to)
    known = [tuple(canvas) for canvas in canvases_of(recipe, test=True)]
    for canvas in canvases or known:
        if tuple(canvas) not in known:
            raise UserError(f"export --canvas {_name(canvas)}: the recipe has {', '.join(map(_name, known))}")
    return write_portable(
        detector, recipe, categories, to, form=form, canvases=canvases or known, batch=batch or 1
    )


def _name(canvas):
    return "x".join(map(str, canvas))
