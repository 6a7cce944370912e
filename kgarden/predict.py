"""Detect objects in image files and draw what is found."""

import collections
import glob
import pathlib

import numpy as np

from kgarden.errors import UserError
from kgarden.inference.paste_masks import run_lengths_of
from kgarden.inference.predictor import read_picture
from kgarden.structures import BOXES, MASKS
from kgarden.visualization.draw import draw_detections

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def find_pictures(places):
    """Files of pictures: a file stands for itself, a folder for those in it, a pattern for what fits."""
    found = []
    for place in map(str, places):
        path = pathlib.Path(place)
        if path.is_dir():
            fitting = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        else:
            fitting = (
                [path] if path.is_file() else sorted(map(pathlib.Path, glob.glob(place, recursive=True)))
            )
        if not fitting:
            raise UserError(f"{place}: no picture there")
        found += [path for path in fitting if path.is_file()]
    return list(dict.fromkeys(found))


def draw_files(predictor, paths, to, min_score=0.3):
    """Detect and draw; a picture that cannot be read is named and the rest goes on.

    Args:
        predictor: Predictor.
        paths:     of picture files.
        to:        folder for the drawn pictures.
        min_score: of what is drawn.
    Returns:
        (found, faults): [{"file", "height", "width", "drawn", "detections": [{"box" xyxy px, "score",
        "category_id", "name"}]}], each detection of a model with a mask head also with "segmentation", COCO's
        run lengths; and one line for each picture that could not be read.
    """
    to = pathlib.Path(to)
    to.mkdir(parents=True, exist_ok=True)
    faults, waiting, taken, found = [], collections.deque(), set(), []

    def readable():
        for path in paths:
            try:
                picture = read_picture(path)
            except UserError as fault:
                faults.append(str(fault))
                continue
            waiting.append(path)
            yield picture

    for picture, detections in predictor.stream(readable()):
        path = waiting.popleft()
        name = _free_name(path, taken)
        draw_detections(picture, detections, predictor.names, min_score).save(to / name, quality=92)
        height, width = picture.shape[:2]
        rows = _as_rows(detections, predictor.categories, (height, width))
        found.append({"file": str(path), "height": height, "width": width, "drawn": name, "detections": rows})
    return found, faults


def _free_name(path, taken):
    """A file name for the drawn picture that no other picture of this call has."""
    suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
    names = [f"{path.stem}{suffix}", *(f"{path.stem}_{n}{suffix}" for n in range(2, len(taken) + 3))]
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _as_rows(detections, categories, size_hw):
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
