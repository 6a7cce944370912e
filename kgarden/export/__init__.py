"""From a run to a model that serves without kgarden: SavedModel, ONNX or LiteRT.

All forms hold the same network (kgarden/export/network.py). A SavedModel lays the graph of `kgarden predict`
around it, from bytes of files to boxes in the photo; ONNX and LiteRT files are the network alone, one for
each canvas, compared with the model when they are written.
"""

import warnings

import keras

from kgarden.build import canvases as canvases_of
from kgarden.build import load_run
from kgarden.errors import UserError
from kgarden.export.portable import write_portable
from kgarden.export.saved_model import write_saved_model
from kgarden.export.version import views_left_out

FORMATS = ("saved_model", "onnx", "litert")


def export_run(run, to, form="saved_model", canvases=None, batch=None, say=warnings.warn):
    """Write TO/1/, or the next free number, whole or not at all.

    Args:
        run:      a run directory; its best weights are exported.
        to:       parent of the version directory.
        form:     one of FORMATS.
        canvases: [(height, width), ...] of ONNX and LiteRT files; none: all of the recipe.
        batch:    images at once in ONNX and LiteRT files; None: 1.
        say:      called with a line on what the model leaves out, if it leaves something out.
    Returns:
        path of the version directory.
    Raises:
        UserError: an unknown form, one that needs a package that is not there, a canvas that the recipe does
                   not have, or a place that is taken.
        TrainingFailed: the written file does not answer as the model does.
    """
    if form not in FORMATS:
        raise UserError(f"export --format {form}: one of {', '.join(FORMATS)}")
    if form == "saved_model" and (canvases or batch):
        raise UserError(
            "export: --canvas and --batch are for onnx and litert; a SavedModel takes any of them"
        )
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"export runs on the TensorFlow backend, KERAS_BACKEND is {keras.backend.backend()}")
    recipe, detector, categories = load_run(run)
    if line := views_left_out(recipe):
        say(line)
    if form == "saved_model":
        return write_saved_model(detector, recipe, categories, to)
    known = [tuple(canvas) for canvas in canvases_of(recipe)]
    for canvas in canvases or known:
        if tuple(canvas) not in known:
            raise UserError(f"export --canvas {_name(canvas)}: the recipe has {', '.join(map(_name, known))}")
    return write_portable(detector, recipe, categories, to, form, canvases or known, batch or 1)


def _name(canvas):
    return "x".join(map(str, canvas))
