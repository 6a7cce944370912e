"""One picture as it lies in the shards, in NumPy: to look at, not to train on."""

import numpy as np
import tensorflow as tf

from kgarden.data.loader import read
from tfrecords.pictures import decode
from tfrecords.schema import parse

SIDE = 112  # px, sampling of a mask in the frame of its box


def stored_example(dataset, row):
    """A record with its objects.

    Args:
        dataset: kgarden.data.pipeline.Dataset.
        row:     of its index.
    Returns:
        {"image": (H, W, 3) uint8, "boxes": (N, 4) xyxy px, "labels": (N,), -1 for a class that the data set
        does not list, "crowd": (N,) bool, "difficult": (N,) bool, and if the record has masks "masks":
        (N, 112, 112) bool in the frame of each box, all False where an object has none}
    """
    rows = tf.data.Dataset.from_tensors(tf.constant(row, tf.int64))
    record = {key: value.numpy() for key, value in parse(next(iter(read(rows, dataset.index))), True).items()}
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
    }
    if any(record["masks"]):
        example["masks"] = np.stack([_framed(*one) for one in zip(record["masks"], boxes, strict=True)])
    return example


def _framed(encoded, box):
    """A mask of the whole picture -> (SIDE, SIDE) bool, the values at the centres of the cells of the box."""
    if not encoded:
        return np.zeros((SIDE, SIDE), bool)
    mask = tf.io.decode_png(encoded, channels=1).numpy()[..., 0] > 0
    share = (np.arange(SIDE) + 0.5) / SIDE
    columns = (box[0] + share * (box[2] - box[0])).astype(int).clip(0, mask.shape[1] - 1)
    rows = (box[1] + share * (box[3] - box[1])).astype(int).clip(0, mask.shape[0] - 1)
    return mask[rows[:, None], columns[None]]
