"""Records of a data set as NumPy arrays, for inspection and counting; not used in training."""

import mmap
import pathlib
import re

import numpy as np
import tensorflow as tf

from kgarden.data.identity import masks_in
from kgarden.data.loader import reader
from kgarden.data.transforms.masks import bitmaps
from kgarden.errors import UserError
from kgarden.structures import MASKS
from kgarden.utils.files import read_json
from tfrecords.images import decode
from tfrecords.schema import parse
from tfrecords.write import read_manifest

# Quotes inside of a JSON text are escaped, so that no file name looks like these.
AS_WRITTEN = re.compile(rb'"image_id": (\d+), "category_id": (\d+)[,}]')
CATEGORY_ID = re.compile(rb'"category_id"')


def objects_of(dataset):
    """Class of every annotated object, with the image that it is in.

    Args:
        dataset: Dataset.
    Returns:
        (K, 2) int64: row of the index, row of the categories; one for each annotation of annotations.json.
    """
    pairs = [np.zeros((0, 2), "int64")]
    for path in map(pathlib.Path, dataset.annotations):
        if not path.is_file():
            raise UserError(f"{path}: no such file; data.sampling reads the classes of each image from it")
        pairs.append(_classes_in(path))
    image_id, category_id = np.concatenate(pairs).T
    row, is_image = _places(image_id, dataset.index.image_id)
    label, is_class = _places(category_id, [category["id"] for category in dataset.categories])
    return np.stack([row, label], axis=1)[is_image & is_class]


def _classes_in(path):
    """Image id and category id of every annotation of annotations.json.   (K, 2) int64

    The file is searched as it was written, without parsing: parsed, the 15 million boxes of Open Images take
    15 GB. If it was written otherwise, it is parsed.
    """
    if path.stat().st_size:  # nothing cannot be mapped
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            numbers = (int(one) for pair in AS_WRITTEN.finditer(text) for one in pair.groups())
            found = np.fromiter(numbers, "int64").reshape(-1, 2)
            if len(found) and sum(1 for _ in CATEGORY_ID.finditer(text)) == len(found):
                return found
    try:
        pairs = [(one["image_id"], one["category_id"]) for one in read_json(path)["annotations"]]
        return np.array(pairs, "int64").reshape(-1, 2)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged; build the data set again") from error


def _places(ids, known):
    """(row of each id among the known ones, whether it is one of them)."""
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(np.asarray(known)[order], ids), len(order) - 1)
    return order[place], np.asarray(known)[order[place]] == ids


def check_masks(dataset):
    """Raise UserError if, by its manifest, no record of a data set has a mask."""
    for folder in (pathlib.Path(path).parent for path in dataset.annotations):
        manifest = read_manifest(folder)
        if masks_in(manifest):
            continue
        if manifest.get("masks"):  # in annotations.json alone
            raise UserError(
                f"data.masks: {folder} was built without masks (--no-masks): build it with masks, or set "
                f"data.masks to false"
            )
        raise UserError(
            f"data.masks: no object of {folder} has a mask: build it from a source that has masks, or set "
            f"data.masks to false"
        )


def stored_example(dataset, row):
    """Read one record with its ground truth.

    Args:
        dataset: kgarden.data.sources.Dataset.
        row:     row of its index.
    Returns:
        {"image": (H, W, 3) uint8, "boxes": (N, 4) xyxy px, "labels": (N,), -1 for a class that the data set
        does not list, "crowd": (N,) bool, "difficult" and "group_of": (N,) bool, and if the record has
        masks "masks": (N, 112, 112) bool in the frame of each box, all False where an object has none}
    """
    serialized = reader(dataset.index)(tf.constant(row, tf.int64))
    record = {key: value.numpy() for key, value in parse(serialized, True).items()}
    image = decode(record["encoded"]).numpy()
    height, width = image.shape[:2]
    boxes = record["boxes"] * np.array([width, height, width, height], "float32")
    labels = {category["id"]: label for label, category in enumerate(dataset.categories)}
    example = {
        "image": image,
        "boxes": boxes,
        "labels": np.array([labels.get(int(one), -1) for one in record["category_ids"]], "int32"),
        "crowd": record["crowd"],
        "difficult": record["difficult"],
        "group_of": record["group_of"],
    }
    if any(record["masks"]):
        example[MASKS] = bitmaps(record["masks"], record["boxes"]).numpy()
    return example
