"""Export of runs to SavedModel, ONNX or LiteRT; serving needs no kgarden.

All formats contain the same network (kgarden/exporters/network.py). A SavedModel adds the steps of
`kgarden predict` around it, from encoded images to boxes in px of the original image; ONNX and LiteRT files
contain the network only, one file for each canvas, and are compared with the model when they are written.
"""

import os
import pathlib
import warnings
from collections.abc import Callable, Sequence

from kgarden.build import load_run
from kgarden.exporters.export_formats import check_export, write_export
from kgarden.utils.arguments import path_of


def export(
    run: str | os.PathLike,
    path: str | os.PathLike,
    format: str = "saved_model",
    *,
    canvases: Sequence[tuple[int, int]] | None = None,
    batch: int | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> pathlib.Path:
    """Exports a run to PATH/1/, or the next free version number, atomically, as `kgarden export`.

    Args:
        run:      run directory; its best weights are exported.
        path:     parent of the version directory.
        format:   "saved_model", "onnx" or "litert".
        canvases: [(height, width), ...] of ONNX and LiteRT files; None: all of the recipe.
        batch:    batch size of ONNX and LiteRT files; None: 1.
        say:      called with a line on features that the exported model omits, if any.
    Returns:
        path of the version directory.
    Raises:
        UserError: not a run, the format is unknown or needs a package that is not installed, the recipe does
                   not have a canvas, `path` cannot be written to, or the backend is JAX.
        TrainingFailed: the exported file's predictions differ from the model's.
    """
    path = path_of(path, "path")
    check_export(format, canvases, batch)
    recipe, detector, categories = load_run(run)
    return write_export(
        detector, recipe, categories, path, format=format, canvases=canvases, batch=batch, say=say
    )
