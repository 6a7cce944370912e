"""Self-training: a run's detections on unlabelled images become the objects of a data set.

Zhou et al. 2021 (CenterNet2), arXiv:2103.07461, section 6: detections above a threshold are taken as objects
with weight 1, and the images are added to the labelled ones.
"""

import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable

from kgarden.errors import UserError
from kgarden.inference.image_sources import find_images
from kgarden.inference.predictor import Predictor
from kgarden.utils.arguments import check_fraction
from tfrecords.converters import coco
from tfrecords.schema import DataError


def build_pseudo_labels(
    run: str | os.PathLike,
    images: str | os.PathLike,
    to: str | os.PathLike,
    score: float = 0.5,
    batch_size: int = 1,
    overrides: dict | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], object] = warnings.warn,
    **options,
):
    """Writes shards of unlabelled images with a run's detections as objects.

    Args:
        run:        run directory.
        images:     folder of images, its subfolders included.
        to:         directory to make, as of any converter: shards, manifest, annotations.json.
        score:      detections of at least this score become objects.
        batch_size: images of one canvas in a batch.
        overrides:  recipe settings for inference, {"evaluate.views.flip": True, ...}.
        progress:   function of (images done, images in total).
        say:        called with a line on each image that cannot be read, and on other files of the folder.
        options:    shards, workers, of `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    Raises:
        UserError: no images, no detection of that score, or `to` cannot be made.
    """
    folder, to = pathlib.Path(images), pathlib.Path(to)
    if not folder.is_dir():
        raise UserError(f"{images}: no such folder of images")
    if to.exists():
        raise UserError(f"{to} exists; use another directory, or remove it")
    check_fraction(score, "score")
    paths = find_images([folder], skip=to, say=say)
    predictor = Predictor.from_run(run, batch_size, overrides)
    labelled = _labelled(predictor, paths, folder, score=score, progress=progress, say=say)
    if not labelled["annotations"]:
        raise UserError(f"{images}: no detection of score {score:g} or more; lower the score")
    with tempfile.TemporaryDirectory() as temporary:
        annotations = pathlib.Path(temporary, "pseudo_labels.json")
        annotations.write_text(json.dumps(labelled))
        classes = pathlib.Path(run, "labels.json")
        try:
            return coco.build(to, images=folder, annotations=annotations, classes=classes, **options)
        except DataError as error:
            raise UserError(str(error)) from error


def _labelled(predictor, paths, folder, *, score, progress, say):
    """Images and detections as annotations in COCO form; images without any are kept."""
    images, annotations = [], []
    progress = progress or (lambda done, total: None)
    for image, detections in predictor.stream(paths, on_fault=say):
        number, name = len(images) + 1, detections.path.relative_to(folder).as_posix()
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        rows = detections.to_records()
        annotations += [_annotation(row, number) for row in rows if row["score"] >= score]
        progress(number, len(paths))
    progress(len(paths), len(paths))  # those that could not be read too
    for number, one in enumerate(annotations, start=1):
        one["id"] = number
    return {"images": images, "annotations": annotations, "categories": predictor.categories}


def _annotation(row, image_id):
    x0, y0, x1, y1 = row["box"]
    kept = {key: row[key] for key in ("category_id", "segmentation") if key in row}
    return {"image_id": image_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0, **kept}
