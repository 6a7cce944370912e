"""Check of one record: its image decodes, and its lists agree with one another and with the manifest."""

import dataclasses
import hashlib

import numpy as np

from tfrecords.images import decode, decode_mask
from tfrecords.schema import SIDES

HAIR = 1e-6  # of a side: tolerance for float32 rounding of boxes at the border

OBJECT = "image/object/"


@dataclasses.dataclass(frozen=True)
class Row:
    """Fields of a record with which index.json and annotations.json must agree."""

    where: str
    offset: int
    image_id: int | None  # None: not a decimal number
    height: int
    width: int
    boxes: np.ndarray  # (N, 4) xyxy px
    category_ids: tuple
    crowd: np.ndarray  # (N,) bool
    group_of: np.ndarray  # (N,) bool
    verified: tuple  # (categories verified to be in the image, not to be)
    not_exhaustive: tuple  # categories of which not every object has a box


def check_record(file, offset, data, categories, is_ours):
    """(row or None, [(kind, where)], number of objects) of one record."""
    import tensorflow as tf

    where = f"{file.name}, byte {offset}"
    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception:  # protobuf's own error has no public name that all of its versions share
        return None, [("not a tf.train.Example", where)], 0
    name = _text(features, "image/filename") or _text(features, "image/source_id")
    where = f"{where} ({name})" if name else where
    faults = []
    height, width = _check_image(features, faults)
    boxes, objects = _check_boxes(features, faults)
    _check_classes(features, len(boxes), categories, faults)
    verified = _check_image_labels(features, categories, faults)
    _check_masks(features, len(boxes), height, width=width, faults=faults)
    image_id = _text(features, "image/source_id")
    image_id = int(image_id) if image_id.isascii() and image_id.isdecimal() else None
    if is_ours and image_id is None:
        faults.append("image/source_id is not a decimal number")
    row = Row(
        where,
        offset,
        image_id,
        height=height,
        width=width,
        boxes=boxes * [width, height, width, height],
        category_ids=tuple(_ints(features, OBJECT + "class/label")),
        crowd=_flags(features, "is_crowd", len(boxes)),
        group_of=_flags(features, "group_of", len(boxes)),
        verified=verified,
        not_exhaustive=tuple(_ints(features, "image/class/not_exhaustive")),
    )
    return row, [(kind, where) for kind in faults], objects


def _check_image(features, faults):
    """(height, width) of the image; if it does not decode, those that the record declares."""
    import tensorflow as tf

    encoded = b"".join(_bytes(features, "image/encoded"))
    declared = [(_ints(features, f"image/{side}") or [0])[0] for side in ("height", "width")]
    digest = _text(features, "image/key/sha256")
    if digest and hashlib.sha256(encoded).hexdigest() != digest.lower():
        faults.append("image differs from image/key/sha256")
    if not encoded:
        faults.append("no image in image/encoded")
        return declared
    try:
        height, width, _ = decode(encoded).shape
    except (tf.errors.OpError, ValueError):
        faults.append("image does not decode")
        return declared
    if declared != [0, 0] and declared != [height, width]:
        faults.append("image of another size than image/height and image/width")
    return height, width


def _check_boxes(features, faults):
    """((N, 4) xyxy fractions, number of objects); each kind of fault at most once per record."""
    sides = [_floats(features, f"{OBJECT}bbox/{side}") for side in SIDES]
    if len({len(side) for side in sides}) > 1:
        faults.append("xmin, ymin, xmax, ymax of different lengths")
        return np.zeros((0, 4)), 0
    boxes = np.array(sides, "float64").T.reshape(-1, 4)
    if not np.isfinite(boxes).all():
        faults.append("box that is not finite")
        return boxes, len(boxes)
    if (boxes < -HAIR).any() or (boxes > 1 + HAIR).any():
        faults.append("box outside of the image")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        faults.append("box without area")
    areas = np.array(_floats(features, OBJECT + "area"))
    if not (np.isfinite(areas).all() and (areas >= 0).all()):
        faults.append("area that is negative or not finite")
    return boxes, len(boxes)


def _check_classes(features, count, categories, faults):
    labels = _ints(features, OBJECT + "class/label")
    if len(labels) != count:
        faults.append("more or fewer class/label than boxes")
    if categories is not None and not set(labels) <= categories.keys():
        faults.append("category id that the manifest does not list")
    texts = [text.decode(errors="replace").strip() for text in _bytes(features, OBJECT + "class/text")]
    if categories is not None and len(texts) == len(labels):
        if any(categories.get(label, text) != text for label, text in zip(labels, texts, strict=True)):
            faults.append("class/text that is not the name of class/label")
    for key in ("is_crowd", "difficult", "group_of"):
        if len(values := _ints(features, OBJECT + key)) not in (0, count) or not set(values) <= {0, 1}:
            faults.append(f"{key} that is not one 0 or 1 for each box")


def _check_image_labels(features, categories, faults):
    """The verified image-level labels: (category ids in the image, not in the image)."""
    labels, values = _ints(features, "image/class/label"), _floats(features, "image/class/confidence")
    if not values:  # not of verified labels
        return (), ()
    if len(labels) != len(values):
        faults.append("more or fewer image/class/label than image/class/confidence")
        return (), ()
    if categories is not None and not set(labels) <= categories.keys():
        faults.append("image-level label that the manifest does not list")
    return tuple(
        tuple(one for one, value in zip(labels, values, strict=True) if value == wanted) for wanted in (1, 0)
    )


def _flags(features, key, count):
    return np.array(_ints(features, OBJECT + key)[:count] or [0] * count, bool)


def _check_masks(features, count, height, width, faults):
    import tensorflow as tf

    masks = _bytes(features, OBJECT + "mask")
    if len(masks) not in (0, count):
        faults.append("more or fewer masks than boxes")
    for mask in filter(None, masks):
        try:
            if tuple(decode_mask(mask).shape) != (height, width):
                faults.append("mask of another size than the image")
                return
        except tf.errors.OpError:
            faults.append("mask that does not decode")
            return


def _bytes(features, key):
    return list(features[key].bytes_list.value) if key in features else []


def _ints(features, key):
    return list(features[key].int64_list.value) if key in features else []


def _floats(features, key):
    return list(features[key].float_list.value) if key in features else []


def _text(features, key):
    return (_bytes(features, key) or [b""])[0].decode(errors="replace")
