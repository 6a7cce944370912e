"""The keys of a record: those of the TF Object Detection API and the TF Model Garden.

    image/encoded                       bytes   JPEG or PNG
    image/format                        bytes   jpeg or png
    image/filename                      bytes
    image/key/sha256                    bytes   hex digest of image/encoded
    image/source_id                     bytes   decimal image id, as annotations.json has it
    image/height, image/width           int64   px
    image/object/bbox/xmin ... ymax     float   fractions of width and height, 0..1
    image/object/class/label            int64   the data set's own category id
    image/object/class/text             bytes   its name
    image/object/area                   float   px^2, of the mask where the source knows it, else of the box
    image/object/is_crowd               int64   1: a region with many objects, not one object
    image/object/difficult              int64   1: hard to tell; Pascal VOC's metric leaves it out
    image/object/mask                   bytes   PNG of one channel and the size of the picture, 0 and 1

`difficult` and `mask` are there if the source knows them. A picture without objects may lack every
`image/object/` key: they are read as lists of length 0.
"""

import hashlib

import numpy as np


class DataError(ValueError):
    """A data set cannot be used as it is. One line: what, where, what to do."""


def serialize(
    *,
    encoded,
    image_format,
    image_id,
    file_name,
    height,
    width,
    boxes=(),
    category_ids=(),
    names=(),
    areas=(),
    crowd=(),
    difficult=(),
    masks=(),
):
    """One picture and its objects -> a serialised tf.train.Example.

    Args:
        encoded:       bytes of a JPEG or PNG file.
        image_format:  "jpeg" or "png".
        image_id:      int, unique in the data set.
        file_name:     where the picture came from, relative to the data set.
        height, width: px, as decoded.
        boxes:         (N, 4) xyxy, px of the picture.
        category_ids:  (N,) the data set's own ids.
        names:         (N,) their names.
        areas:         (N,) px^2.
        crowd:         (N,) bool.
        difficult:     (N,) bool, or empty: the source does not say.
        masks:         (N,) bytes of PNG files, b"" for an object without one, or empty: the source has none.
    """
    import tensorflow as tf

    fractions = np.asarray(boxes, "float64").reshape(-1, 4) / [width, height, width, height]
    lists = {
        "image/encoded": [encoded],
        "image/format": [image_format.encode()],
        "image/filename": [file_name.encode()],
        "image/key/sha256": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/source_id": [str(image_id).encode()],
        "image/height": [height],
        "image/width": [width],
        "image/object/class/label": [int(c) for c in category_ids],
        "image/object/class/text": [name.encode() for name in names],
        "image/object/is_crowd": [int(c) for c in crowd],
    }
    if len(difficult):
        lists["image/object/difficult"] = [int(d) for d in difficult]
    if any(masks):
        lists["image/object/mask"] = list(masks)
    floats = {f"image/object/bbox/{side}": fractions[:, column] for column, side in enumerate(SIDES)}
    floats["image/object/area"] = areas

    example = tf.train.Example()
    for key, values in lists.items():
        feature = example.features.feature[key]
        kind = feature.bytes_list if any(isinstance(v, bytes) for v in values) else feature.int64_list
        kind.value.extend(values)
    for key, values in floats.items():
        example.features.feature[key].float_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


SIDES = ("xmin", "ymin", "xmax", "ymax")


def parse(serialized, masks=False):
    """A serialised record -> its parts; runs in eager mode and in graphs.

    Lists that are shorter than the boxes (absent keys) are filled: area with the box's, crowd and difficult
    with False, masks with "".

    Args:
        serialized: () string.
        masks:      give the masks too.
    Returns:
        {"encoded": () string, "image_id": () int64, "height": () int64, "width": () int64 (-1 if unknown),
        "boxes": (N, 4) float32 xyxy, fractions of width and height, "category_ids": (N,) int64,
        "area": (N,) float32 px^2 (0 if it can not be told), "crowd": (N,) bool, "difficult": (N,) bool},
        and with `masks` "masks": (N,) string, PNG of the picture's size or "".
        An image id that is not decimal becomes a hash of itself or, if empty, of the picture.
    """
    import tensorflow as tf

    found = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/source_id": tf.io.FixedLenFeature([], tf.string, ""),
            "image/height": tf.io.FixedLenFeature([], tf.int64, -1),
            "image/width": tf.io.FixedLenFeature([], tf.int64, -1),
            **{f"image/object/bbox/{side}": _many(tf.float32) for side in SIDES},
            "image/object/class/label": _many(tf.int64),
            "image/object/area": _many(tf.float32),
            "image/object/is_crowd": _many(tf.int64),
            "image/object/difficult": _many(tf.int64),
            **({"image/object/mask": _many(tf.string)} if masks else {}),
        },
    )
    boxes = tf.stack([found[f"image/object/bbox/{side}"] for side in SIDES], axis=-1)
    category_ids = found["image/object/class/label"]
    tf.debugging.assert_equal(
        tf.size(category_ids),
        tf.shape(boxes)[0],
        "a record has more or fewer image/object/class/label than boxes",
    )
    height, width = found["image/height"], found["image/width"]
    px = tf.cast(tf.maximum(height, 0) * tf.maximum(width, 0), tf.float32)
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * px
    none = tf.zeros_like(category_ids)
    empty = tf.fill(tf.shape(category_ids), "")
    return {
        "encoded": found["image/encoded"],
        "height": height,
        "width": width,
        "boxes": boxes,
        "image_id": _image_id(found["image/source_id"], found["image/encoded"]),
        "category_ids": category_ids,
        "crowd": _fill(found["image/object/is_crowd"], none) > 0,
        "difficult": _fill(found["image/object/difficult"], none) > 0,
        "area": _fill(found["image/object/area"], box_area),
        **({"masks": _fill(found["image/object/mask"], empty)} if masks else {}),
    }


def _many(dtype):
    import tensorflow as tf

    return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)


def _fill(given, default):
    """`given`, as long as `default`, which stands in for what is missing at the end."""
    import tensorflow as tf

    return tf.concat([given[: tf.size(default)], default[tf.size(given) :]], axis=0)


def _image_id(source_id, encoded):
    import tensorflow as tf

    decimal = tf.strings.regex_full_match(source_id, "[0-9]{1,18}")

    def hashed():
        return tf.strings.to_hash_bucket_fast(tf.where(tf.equal(source_id, ""), encoded, source_id), 2**31)

    return tf.cond(decimal, lambda: tf.strings.to_number(source_id, tf.int64), hashed)
