"""Scans the records of a shard of any origin and tells usable records from unusable ones."""

import dataclasses

import numpy as np

from tfrecords.images import IN_RECORDS, opened
from tfrecords.records import compression_of, walk
from tfrecords.schema import SIDES, DataError

OBJECT = "image/object/"
KINDS = {
    "image/encoded": "bytes_list",
    "image/source_id": "bytes_list",
    "image/filename": "bytes_list",
    "image/height": "int64_list",
    "image/width": "int64_list",
    **{f"{OBJECT}bbox/{side}": "float_list" for side in SIDES},
    f"{OBJECT}class/label": "int64_list",
    f"{OBJECT}class/text": "bytes_list",
    f"{OBJECT}area": "float_list",
    f"{OBJECT}is_crowd": "int64_list",
    f"{OBJECT}difficult": "int64_list",
    f"{OBJECT}group_of": "int64_list",
    f"{OBJECT}mask": "bytes_list",
    "image/class/label": "int64_list",
    "image/class/confidence": "float_list",
    "image/class/not_exhaustive": "int64_list",
}
SINGLE = ("image/encoded", "image/source_id", "image/height", "image/width")


@dataclasses.dataclass(frozen=True)
class Row:
    """Content of a record with N boxes; absent lists have length 0."""

    offset: int  # byte offset of the record
    source_id: str
    file_name: str
    height: int  # px, of the image itself
    width: int
    says_another_size: bool
    boxes: np.ndarray  # (N, 4) float32 xyxy, fractions of width and height, as stored
    category_ids: list
    names: list
    areas: list  # px^2
    crowd: list
    difficult: list
    group_of: list
    verified: dict | None  # {category id: whether the image has it}; None without image-level labels
    not_exhaustive: list  # category ids of which not every object has a box
    masks: list  # bytes of PNG files

    def boxes_xywh(self):
        """[[x, y, w, h], ...] px, of the boxes that are finite."""
        px = self.boxes[np.isfinite(self.boxes).all(axis=1)].astype("float64")
        px *= [self.width, self.height, self.width, self.height]
        return np.concatenate([px[:, :2], px[:, 2:] - px[:, :2]], axis=1).tolist()

    @property
    def usable(self):
        """(N,) bool: boxes that `schema.parse` keeps: finite, with an area inside the image."""
        inside = self.boxes.clip(0, 1)
        return np.isfinite(self.boxes).all(axis=1) & (inside[:, 2:] > inside[:, :2]).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A record that training cannot read, and the reason."""

    offset: int
    reason: str
    boxes: int = 0


def scan(file):
    """Every record of a shard -> Row or Unusable.

    The keys that training reads are checked as its parser checks them, the image by its header alone:
    `check` decodes images.

    Args:
        file: pathlib.Path.
    Raises:
        DataError: the shard is compressed.
    """
    if packed := compression_of(file):
        raise DataError(f"{file}: is compressed with {packed}: decompress it first")
    if not file.stat().st_size:
        yield Unusable(0, "the file is empty")
    for offset, data, fault in walk(file):
        if data is None:
            yield Unusable(offset, fault)
            continue
        lists, fault = _lists(data)
        yield Unusable(offset, fault) if fault else _row(offset, lists)


def _lists(data):
    """({key: list}, None) of a tf.train.Example, or (None, the fault)."""
    import tensorflow as tf

    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception:  # protobuf's own error has no public name that all of its versions share
        return None, "the record is not a tf.train.Example"
    lists = {}
    for key, kind in KINDS.items():
        stored = features[key].WhichOneof("kind") if key in features else None
        if stored not in (None, kind):
            return None, f"{key} is a {stored}, not a {kind}"
        lists[key] = list(getattr(features[key], kind).value) if stored else []
        if key in SINGLE and stored and len(lists[key]) != 1:
            return None, f"{key} has {len(lists[key])} values, not one"
    return lists, None


def _row(offset, lists):
    sides = [lists[f"{OBJECT}bbox/{side}"] for side in SIDES]
    count, labels = len(sides[0]), lists[f"{OBJECT}class/label"]
    if any(len(side) != count for side in sides):
        return Unusable(offset, "xmin, ymin, xmax and ymax are of different lengths", max(map(len, sides)))
    if len(labels) != count:
        return Unusable(offset, f"there are {len(labels)} image/object/class/label for {count} boxes", count)
    try:
        with opened((lists["image/encoded"] or [b""])[0], IN_RECORDS) as image:
            hw = image.height, image.width
    except DataError as error:
        return Unusable(offset, f"image/encoded holds no image: {error}", count)
    declared = tuple((lists[f"image/{side}"] or [hw[n]])[0] for n, side in enumerate(("height", "width")))
    areas, crowds, difficult, groups, masks = (
        lists[OBJECT + key][:count] for key in ("area", "is_crowd", "difficult", "group_of", "mask")
    )
    return Row(
        offset,
        source_id=_text(lists["image/source_id"]),
        file_name=_text(lists["image/filename"]),
        height=hw[0],
        width=hw[1],
        says_another_size=declared != hw,
        boxes=np.array(sides, "float32").T.reshape(-1, 4),
        category_ids=labels,
        names=[_text([name]) for name in lists[f"{OBJECT}class/text"]],
        areas=areas,
        crowd=crowds,
        difficult=difficult,
        group_of=groups,
        verified=_verified(lists["image/class/label"], lists["image/class/confidence"]),
        not_exhaustive=lists["image/class/not_exhaustive"],
        masks=masks,
    )


def _verified(labels, confidences):
    """Image-level labels with a confidence of 1 or 0, that is those which people verified."""
    if len(labels) != len(confidences) or not labels:
        return None
    return {one: value == 1 for one, value in zip(labels, confidences, strict=True) if value in (0, 1)}


def _text(values):
    return values[0].decode("utf-8", "replace").strip() if values else ""
