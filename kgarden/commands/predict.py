"""Prediction on image files: detects objects and saves visualised detections."""

import collections
import glob
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable

import numpy as np

from kgarden.errors import UserError
from kgarden.inference.paste_masks import run_lengths_of
from kgarden.inference.predictor import Predictor, read_image
from kgarden.structures import BOXES, MASKS
from kgarden.utils.fonts import shown_name
from kgarden.utils.output_folder import OutputFolder
from kgarden.visualization.draw import draw_detections
from tfrecords.conversion_report import Faults
from tfrecords.image_lists import listed_images
from tfrecords.images import UNREAD_SUFFIXES, suffixes
from tfrecords.schema import DataError


def find_images(
    sources: Iterable[str | os.PathLike],
    skip: str | os.PathLike | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[pathlib.Path]:
    """Lists the image files of paths, directories, glob patterns and lists, each once and in order.

    A directory stands for its files with the ending of an image, those of its subdirectories included; a .txt
    file for the images that it lists, one path a line, relative to the list; see `tfrecords.image_lists`.

    Args:
        sources: paths, directories, glob patterns, .txt files.
        skip:    directory that is not searched: that of the output.
        say:     called with a line on what a directory holds besides.
    Raises:
        UserError: a source has no images.
    """
    images = []
    for source in map(str, sources):
        path = pathlib.Path(source)
        if path.is_file() and path.suffix.lower() == ".txt":
            found = _listed(path, say)
        elif path.is_dir() or path.is_file():
            found = [path]
        else:
            found = sorted(map(pathlib.Path, glob.glob(source, recursive=True)))
        matches = [
            one for path in found for one in (_in_folder(path, skip, say) if path.is_dir() else [path])
        ]
        if not matches:
            raise UserError(f"{source}: no image found")
        images += matches
    return list(dict.fromkeys(images))


def _listed(path, say):
    """The images of a list; those that do not exist too, which are faults when they are read."""
    faults = Faults()
    try:
        images = listed_images(path, path.parent, faults)
    except DataError as error:
        raise UserError(str(error)) from None
    for fault in faults.remarks:
        say(str(fault))
    return [pathlib.Path(image.path) for image in images]


def _in_folder(folder, skip, say):
    """The images of a folder and its subfolders, in order."""
    endings, skip = suffixes() | UNREAD_SUFFIXES, skip and pathlib.Path(skip).resolve()
    images, others = [], collections.Counter()

    def unread(error):
        others[f"folder that cannot be read ({error.filename})"] += 1

    for root, folders, files in os.walk(folder, onerror=unread):
        here = pathlib.Path(root)
        linked = [name for name in folders if (here / name).is_symlink()]
        others["linked folder"] += len(linked)
        others["hidden folder"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(
            name
            for name in folders
            if name not in linked and not name.startswith(".") and (here / name).resolve() != skip
        )
        for name in sorted(files):
            ending = "hidden" if name.startswith(".") else pathlib.Path(name).suffix.lower()
            if ending in endings:
                images.append(here / name)
            else:
                others[ending or "without an ending"] += 1
    if listed := ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()) if count):
        say(f"{folder}: {len(images)} images; passed over: {listed}")
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
    faults, pending, records = [], collections.deque(), []
    names = [shown_name(category) for category in predictor.categories]

    def readable():
        for path in paths:
            try:
                image = read_image(path)
            except UserError as fault:
                faults.append(str(fault))
                continue
            pending.append(path)
            yield image

    for image, detections in predictor.stream(readable()):
        path = pending.popleft()
        name = file_names[path]
        with folder.replacing(name) as temporary:
            drawing = draw_detections(image, detections, names, min_score, labels=labels)
            drawing.save(temporary, quality=92)
        height, width = image.shape[:2]
        rows = as_rows(detections, predictor.categories, (height, width))
        record = {"file": str(path), "height": height, "width": width, "drawn": name, "detections": rows}
        records.append(record)
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


def as_rows(detections: dict, categories: list[dict], size_hw: tuple[int, int]) -> list[dict]:
    """Returns the detections of an image as plain values.

    Args:
        detections: of `Predictor`.
        categories: [{"id", "name"}, ...] in label order.
        size_hw:    px of the image.
    Returns:
        [{"box" xyxy px, "score", "category_id", "name"}, ...], with masks also "segmentation", run lengths.
    """
    rows = []
    for row in np.flatnonzero(detections["valid"]):
        category = categories[int(detections["labels"][row])]
        box = [round(float(side), 3) for side in detections[BOXES][row]]
        score = float(detections["scores"][row])
        rows.append({"box": box, "score": score, "category_id": category["id"], "name": category["name"]})
        if MASKS in detections:
            mask = detections[MASKS][row]
            rows[-1]["segmentation"] = run_lengths_of(mask, detections[BOXES][row], size_hw)
    return rows
