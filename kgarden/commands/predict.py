"""Prediction on images: detects objects, and saves visualised detections of image files."""

import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from kgarden.errors import UserError
from kgarden.inference.detections import Detections
from kgarden.inference.image_sources import find_images, images_of
from kgarden.inference.predictor import Predictor
from kgarden.utils.arguments import check_count, check_fraction, path_of, shown
from kgarden.utils.fonts import missing_glyphs, shown_name
from kgarden.utils.output_folder import OutputFolder
from kgarden.visualization.draw import check_labels, draw_detections


def predict(
    run: str | os.PathLike,
    images: Any,
    to: str | os.PathLike | None = None,
    *,
    min_score: float = 0.3,
    labels: str = "name",
    batch_size: int = 1,
    overrides: dict[str, Any] | None = None,
    say: Callable[[str], object] = warnings.warn,
    on_fault: Callable[[str], object] | None = None,
) -> list[Detections] | list[dict]:
    """Detects objects in images with a run's best weights, and draws them as `kgarden predict` if asked to.

    Args:
        run:        run directory.
        images:     one image or a list: paths, bytes, open files, Pillow images, arrays, as `Predictor` takes
                    them; or a folder. With `to`: paths of images, folders and lists (.txt), and globs.
        to:         folder for the drawings and `detections.json`; None: nothing is written.
        min_score:  smallest score of a detection that is returned or drawn; detections.json holds all.
        labels:     what is written at a drawn box: "none", "score" in percent, or "name" and score.
        batch_size: images of one canvas in a batch.
        overrides:  recipe settings for inference, {"evaluate.views.flip": True, ...}.
        say:        called with a line on files that are passed over in a folder, and on class names that no
                    font can draw.
        on_fault:   called with a line on an image that cannot be read, which is left out; None: it raises.
    Returns:
        [Detections, ...] of the images in order; with `to` the content of detections.json, [{"file",
        "height", "width", "drawn", "detections"}, ...].
    Raises:
        UserError: not a run; an image cannot be read, or none can; or a drawing would replace one of the
                   images, or a file that kgarden has not written.
    """
    check_labels(labels)
    check_count(batch_size, "batch_size")
    check_fraction(min_score, "min_score")
    if to is not None:
        files = find_images(_paths(images), skip=path_of(to, "to"), say=say)
        folder = drawings_folder(to, files)
        folder.check("detections.json")
    else:
        several = images_of(images, say)
    predictor = Predictor.from_run(run, batch_size, overrides, min_score if to is None else 0.0)
    if to is None:
        sources = [images] if several is None else several
        return [found for _, found in predictor.stream(sources, on_fault)]
    if note := missing_glyphs(predictor.categories):
        say(note)
    records, faults = draw_files(predictor, files, folder, min_score, labels=labels)
    for fault in faults:
        if on_fault is None or not records:
            raise UserError(fault)
        on_fault(fault)
    folder.write_json("detections.json", records)
    return records


def _paths(images):
    """The paths, folders and globs of `predict` with `to`, as a list."""
    images = list(images) if isinstance(images, list | tuple) else [images]
    for one in images:
        if isinstance(one, bytes) or not isinstance(one, str | os.PathLike):
            raise UserError(f"images: with `to` they are paths of files and folders, not {shown(one)}")
    return images


def draw_files(
    predictor: Predictor,
    paths: Iterable[pathlib.Path],
    to: str | os.PathLike | OutputFolder,
    min_score: float = 0.3,
    labels: str = "name",
) -> tuple[list[dict], list[str]]:
    """Detects objects in image files and saves drawings; unreadable images are reported and skipped.

    Args:
        predictor: Predictor.
        paths:     of image files.
        to:        folder for the drawn images; see `drawings_folder`.
        min_score: smallest score of a drawn detection.
        labels:    what is written at a box, see `draw_detections`.
    Returns:
        (records, faults): [{"file", "height", "width", "drawn", "detections": [{"box" xyxy px, "score",
        "category_id", "name"}]}], with a mask head each detection also with "segmentation", COCO's run
        lengths; and one line for each image that could not be read.
    Raises:
        UserError: a drawing would replace one of the images, or a file that kgarden has not written.
    """
    paths = list(paths)
    folder, file_names = drawings_folder(to, paths), drawing_names(paths)
    names = [shown_name(category) for category in predictor.categories]
    faults, records = [], []
    for image, detections in predictor.stream(paths, on_fault=faults.append):
        name = file_names[detections.path]
        with folder.replacing(name) as temporary:
            drawing = draw_detections(image, detections, names, min_score, labels=labels)
            drawing.save(temporary, quality=92)
        height, width = image.shape[:2]
        record = {"file": str(detections.path), "height": height, "width": width, "drawn": name}
        records.append({**record, "detections": detections.to_records()})
    return records, faults


def drawings_folder(to: str | os.PathLike | OutputFolder, paths: Iterable[pathlib.Path]) -> OutputFolder:
    """Returns the folder for the drawings of image files, checked before any of them is made.

    Args:
        to:    path of the folder.
        paths: of image files.
    Raises:
        UserError: a drawing would replace one of the images, or a file that kgarden has not written; or the
                   folder cannot be written to.
    """
    paths = list(paths)
    folder = to if isinstance(to, OutputFolder) else OutputFolder(to, inputs=paths)
    folder.check(*drawing_names(paths).values())
    return folder


def drawing_names(paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns a file name for the drawing of each image, unique among them."""
    names, taken, numbers = {}, set(), {}
    for path in dict.fromkeys(paths):
        suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
        name = f"{path.stem}{suffix}"
        count = numbers.setdefault(name.lower(), itertools.count(2))
        while name.lower() in taken:  # file systems that ignore case exist
            name = f"{path.stem}_{next(count)}{suffix}"
        taken.add(name.lower())
        names[path] = name
    return names
