"""Records of a data set as NumPy arrays, for inspection and counting; not used in training."""

import pathlib

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


def objects_of(dataset):
    """Class of every annotated object, with the image that it is in.

    Args:
        dataset: Dataset.
    Returns:
        (K, 2) int64: row of the index, row of the categories; one for each annotation of annotations.json.
    """
    row_of = {image_id: row for row, image_id in enumerate(dataset.index.image_id.tolist())}
    label_of = {category["id"]: label for label, category in enumerate(dataset.categories)}
    pairs = []
    for path in map(pathlib.Path, dataset.annotations):
        if not path.is_file():
            raise UserError(f"{path}: no such file; data.sampling reads the classes of each image from it")
        try:
            classes = [(one["image_id"], one["category_id"]) for one in read_json(path)["annotations"]]
        except (LookupError, TypeError) as error:
            raise UserError(f"{path}: damaged; build the data set again") from error
        pairs += [
            (row_of[image_id], label_of[category_id])
            for image_id, category_id in classes
            if image_id in row_of and category_id in label_of
        ]
    return np.array(pairs, "int64").reshape(-1, 2)


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
