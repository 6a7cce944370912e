"""Keys of a record: those of the TF Object Detection API and the TF Model Garden.

    image/encoded                       bytes   JPEG or PNG
    image/format                        bytes   jpeg or png
    image/filename                      bytes
    image/key/sha256                    bytes   hex digest of image/encoded
    image/source_id                     bytes   decimal image id, as in annotations.json
    image/height, image/width           int64   px
    image/object/bbox/xmin ... ymax     float   fractions of width and height, 0..1
    image/object/class/label            int64   the data set's own category id
    image/object/class/text             bytes   class name
    image/object/area                   float   px^2, of the mask where the source has it, else of the box
    image/object/is_crowd               int64   1: a region with many objects (COCO iscrowd)
    image/object/difficult              int64   1: difficult object, ignored by the Pascal VOC metric
    image/object/group_of               int64   1: one box around several objects (Open Images' IsGroupOf)
    image/object/mask                   bytes   single-channel PNG of the image's size, 0 and 1
    image/class/label                   int64   categories of the verified image-level labels
    image/class/text                    bytes   their names
    image/class/confidence              float   1: verified to be in the image, 0: verified not to be
    image/class/not_exhaustive          int64   categories of which not every object has a box (LVIS)

`difficult`, `group_of`, `mask` and `image/class/` are present if the source has them. An image without
objects may lack every `image/object/` key: they are read as lists of length 0.
"""

import functools
import hashlib

import numpy as np


class DataError(ValueError):
    """A data set cannot be used. The message is one line: what is wrong, where, what to do."""


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
    group_of=(),
    masks=(),
    verified=None,
    not_exhaustive=None,
):
    """Serialise an image and its objects as a tf.train.Example.

    Args:
        encoded:       bytes of a JPEG or PNG file.
        image_format:  "jpeg" or "png".
        image_id:      int, unique in the data set.
        file_name:     path of the source image, relative to the data set.
        height, width: px, as decoded.
        boxes:         (N, 4) xyxy, px of the image.
        category_ids:  (N,) the data set's own ids.
        names:         (N,) class names.
        areas:         (N,) px^2.
        crowd:         (N,) bool.
        difficult:     (N,) bool, or empty: the source has none.
        group_of:      (N,) bool, or empty: the source has none.
        masks:         (N,) bytes of PNG files, b"" for an object without one, or empty: the source has none.
        verified:      {category id: (class name, whether the image has it)}, the verified image-level labels;
                       None: the source has none.
        not_exhaustive: category ids of which not every object has a box; None: the source does not say.
    """
    import tensorflow as tf

    fractions = np.asarray(boxes, "float64").reshape(-1, 4) / [width, height, width, height]
    texts = {
        "image/encoded": [encoded],
        "image/format": [image_format.encode()],
        "image/filename": [file_name.encode()],
        "image/key/sha256": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/source_id": [str(image_id).encode()],
        "image/object/class/text": [name.encode() for name in names],
    }
    numbers = {
        "image/height": [height],
        "image/width": [width],
        "image/object/class/label": [int(c) for c in category_ids],
        "image/object/is_crowd": [int(c) for c in crowd],
    }
    floats = {f"image/object/bbox/{side}": fractions[:, column] for column, side in enumerate(SIDES)}
    floats["image/object/area"] = areas
    if len(difficult):
        numbers["image/object/difficult"] = [int(d) for d in difficult]
    if len(group_of):
        numbers["image/object/group_of"] = [int(g) for g in group_of]
    if any(masks):
        texts["image/object/mask"] = list(masks)
    if verified is not None:
        numbers["image/class/label"] = list(verified)
        texts["image/class/text"] = [name.encode() for name, _ in verified.values()]
        floats["image/class/confidence"] = [float(present) for _, present in verified.values()]
    if not_exhaustive is not None:
        numbers["image/class/not_exhaustive"] = list(not_exhaustive)

    example = tf.train.Example()
    # an empty list needs its type: readers that expect another one fail
    for kind, lists in {"bytes_list": texts, "int64_list": numbers, "float_list": floats}.items():
        for key, values in lists.items():
            feature = getattr(example.features.feature[key], kind)
            feature.SetInParent()
            feature.value.extend(values)
    return example.SerializeToString(deterministic=True)


SIDES = ("xmin", "ymin", "xmax", "ymax")


def parse(serialized, masks=False):
    """Parse a serialised record; runs in eager mode and in graphs.

    Lists that are shorter than the boxes (absent keys) are padded: area with the box area, crowd, difficult
    and group_of with False, masks with "".

    Args:
        serialized: () string.
        masks:      return masks as well.
    Returns:
        {"encoded": () string, "image_id": () int64, "height": () int64, "width": () int64 (-1 if unknown),
        "boxes": (N, 4) float32 xyxy, fractions of width and height, "category_ids": (N,) int64,
        "area": (N,) float32 px^2 (0 if unknown), "crowd": (N,) bool, "difficult": (N,) bool,
        "group_of": (N,) bool},
        and with `masks` "masks": (N,) string, PNG of the image's size or "".
        Boxes are clipped to the image; objects whose box is then empty or not finite are removed. An image
        id that is not decimal becomes -1: `Index.image_id` has a number instead.
    """
    return _parser(masks)(serialized)


@functools.cache
def _parser(masks):
    """`parse` as a graph of its own, traced once for all graphs that read records."""
    import tensorflow as tf

    signature = [tf.TensorSpec((), tf.string)]
    return tf.function(functools.partial(_parsed, masks=masks), input_signature=signature, autograph=False)


def _parsed(serialized, masks):
    import tensorflow as tf

    features = tf.io.parse_single_example(
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
            "image/object/group_of": _many(tf.int64),
            **({"image/object/mask": _many(tf.string)} if masks else {}),
        },
    )
    boxes = tf.stack([features[f"image/object/bbox/{side}"] for side in SIDES], axis=-1)
    category_ids = features["image/object/class/label"]
    tf.debugging.assert_equal(
        tf.size(category_ids),
        tf.shape(boxes)[0],
        "a record has more or fewer image/object/class/label than boxes",
    )
    height, width = features["image/height"], features["image/width"]
    px = tf.cast(tf.maximum(height, 0) * tf.maximum(width, 0), tf.float32)
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * px
    none = tf.zeros_like(category_ids)
    inside = tf.clip_by_value(boxes, 0.0, 1.0)
    usable = tf.reduce_all(tf.math.is_finite(boxes), axis=-1) & tf.reduce_all(
        inside[:, 2:] > inside[:, :2], axis=-1
    )
    objects = {
        "boxes": inside,
        "category_ids": category_ids,
        "crowd": _fill(features["image/object/is_crowd"], none) > 0,
        "difficult": _fill(features["image/object/difficult"], none) > 0,
        "group_of": _fill(features["image/object/group_of"], none) > 0,
        "area": _fill(features["image/object/area"], box_area),
    }
    if masks:
        objects["masks"] = _fill(features["image/object/mask"], tf.fill(tf.shape(category_ids), ""))
    return {
        "encoded": features["image/encoded"],
        "image_id": _image_id(features["image/source_id"]),
        "height": height,
        "width": width,
        **{key: tf.boolean_mask(value, usable) for key, value in objects.items()},
    }


def _many(dtype):
    import tensorflow as tf

    return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)


def _fill(values, default):
    """`values`, truncated or padded from `default` to its length."""
    import tensorflow as tf

    return tf.concat([values[: tf.size(default)], default[tf.size(values) :]], axis=0)


def _image_id(source_id):
    """A decimal id as a number, else -1, in which case `index` numbers the images."""
    import tensorflow as tf

    decimal = tf.strings.regex_full_match(source_id, "[0-9]{1,18}")
    return tf.strings.to_number(tf.where(decimal, source_id, "-1"), tf.int64)
