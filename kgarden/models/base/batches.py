"""Batches as a Keras user has them, completed to those of `kgarden.structures`.

`fit`, `evaluate` and `predict` of a detector take images alone, boxes as a list of arrays, labels of any
integer type, and no crowds, ids or sizes. What is missing is filled in, and values are checked once: arrays
as a whole, of a tf.data.Dataset the first batch. Batches of kgarden's own pipeline pass through as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, MASKS, PAD_LABEL, SIZE_HW

ROWS = 8  # ragged boxes are padded to a multiple of it, so that few shapes are compiled
SLACK_PX = 1.0  # by which a box may reach beyond its image


def training_data(x: Any, y: Any, detector) -> tuple:
    """Completes what `fit` or `evaluate` was given.

    Args:
        x, y:     as in keras.Model.fit: arrays; or a tf.data.Dataset, PyDataset or generator of (x, y), and
                  None. Those of a PyDataset or generator are complete batches.
        detector: gives the number of classes, the divisor of canvas sides, and whether masks are needed.
    Returns:
        (x, y) for keras.Model.fit.
    Raises:
        UserError: ground truth is missing, of another form, or out of range.
    """
    if _is_dataset(x):
        return _of_dataset(x, detector), y
    if not _are_arrays(x):
        return x, y  # generators and PyDataset yield complete batches
    if y is None:
        raise UserError('y is missing: {"boxes": (B, M, 4) xyxy px, "labels": (B, M)}')
    y = _truth(y, len(_images(x)), detector)
    x = _inputs(x, detector.divisor)
    _check(x, y, detector)
    return x, y


def validation_pair(data: Any, detector) -> Any:
    """Completes `validation_data` of `fit`: None, (x, y), or a data set; see `training_data`."""
    if data is None:
        return None
    if not isinstance(data, tuple | list):
        return training_data(data, None, detector)[0]
    if len(data) != 2:
        raise UserError(f"validation_data has {len(data)} parts; (x, y) or a data set is needed")
    return training_data(*data, detector)


def inputs_of(x: Any, detector) -> Any:
    """Completes the images that `predict` was given; of (x, y) batches only x is used."""
    if _is_dataset(x):
        spec = x.element_spec
        if not isinstance(spec, tuple) and _is_complete(spec):
            return x
        return _mapped(x, lambda *batch: _inputs_in_graph(batch[0], detector.divisor))
    return _inputs(x, detector.divisor) if _are_arrays(x) else x


# --- arrays -----------------------------------------------------------------------------------------------


def _are_arrays(x):
    return isinstance(x, dict) or hasattr(x, "__array__") or isinstance(x, Sequence)


def _images(x):
    images = x.get(IMAGES) if isinstance(x, dict) else x
    if images is None:
        raise UserError(f'x has no "{IMAGES}", only {", ".join(map(repr, x))}')
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images have shape {images.shape}; (B, H, W, 3) RGB is needed")
    return images


def _inputs(x, divisor):
    images = _images(x)
    sizes = np.tile(np.int32(images.shape[1:3]), (len(images), 1))
    missing = [(0, -side % divisor) for side in images.shape[1:3]]
    if any(added for _, added in missing):  # else without a copy of all images
        images = np.pad(images, ((0, 0), *missing, (0, 0)))
    return {SIZE_HW: sizes, **(x if isinstance(x, dict) else {}), IMAGES: images}


def _require(y, detector):
    """Raises UserError unless y holds what the detector learns from."""
    if not isinstance(y, dict) or not {BOXES, LABELS} <= y.keys():
        has = ", ".join(map(repr, y)) if isinstance(y, dict) else type(y).__name__
        raise UserError(f'y needs "{BOXES}" (B, M, 4) xyxy px and "{LABELS}" (B, M), it has {has}')
    if detector.mask_head is not None and MASKS not in y:
        raise UserError(f'y needs "{MASKS}" for this detector, see kgarden/structures.py')


def _truth(y, count, detector):
    _require(y, detector)
    boxes = _padded([np.reshape(one, (-1, 4)) for one in y[BOXES]], 0.0, "float32")
    labels = _padded([np.reshape(one, (-1,)) for one in y[LABELS]], PAD_LABEL, "int32")
    if not len(boxes) == len(labels) == count:
        raise UserError(f"{count} images, but boxes of {len(boxes)} and labels of {len(labels)}")
    if boxes.shape[1] != labels.shape[1]:
        raise UserError(f"boxes {boxes.shape} and labels {labels.shape} differ in the number of objects")
    return {
        CROWD: np.zeros(labels.shape, bool),
        IMAGE_ID: np.arange(count, dtype="int64"),
        **{key: np.asarray(value) for key, value in y.items() if key not in (BOXES, LABELS)},
        BOXES: boxes,
        LABELS: labels,
    }


def _padded(rows, value, dtype):
    """(B, M, ...) of B arrays (m, ...); M is their greatest m, at least 1."""
    most = max([1, *map(len, rows)])
    filled = np.full((len(rows), most, *rows[0].shape[1:]) if rows else (0, most), value, dtype)
    for row, one in zip(filled, rows, strict=True):
        row[: len(one)] = one
    return filled


def _check(x, y, detector):
    """Raises UserError for values that no ground truth has: one line with the first of them."""
    boxes, labels = np.asarray(y[BOXES]), np.asarray(y[LABELS])
    images, size_hw = np.asarray(x[IMAGES]), np.asarray(x[SIZE_HW])
    present = (labels != PAD_LABEL) & ~np.asarray(y[CROWD])
    classes = detector.num_classes
    _refuse(
        (labels < PAD_LABEL) | (labels >= classes),
        lambda at: f"label {labels[at]} of {classes} classes (0 to {classes - 1}; {PAD_LABEL} pads)",
    )
    if images.dtype.kind == "f" and images.size and 0 < images.max() <= 1:
        raise UserError("images are fractions up to 1; values from 0 to 255 are needed: multiply them by 255")
    if present.any() and boxes[present].max() <= 1.5 and size_hw.min() > 2:
        raise UserError("boxes are fractions of the image; px are needed: multiply them by width and height")
    sides = boxes[..., 2:] - boxes[..., :2]
    _refuse(
        present & (sides <= 0).any(-1),
        lambda at: f"box {boxes[at].tolist()} has no area: xyxy is needed; label {PAD_LABEL} pads",
    )
    limit = np.tile(size_hw[:, None, ::-1], 2) + SLACK_PX
    _refuse(
        present & ((boxes > limit) | (boxes < -SLACK_PX)).any(-1),
        lambda at: (
            f"box {boxes[at].tolist()} xyxy px lies outside of its image of "
            f"{size_hw[at[0]][1]}x{size_hw[at[0]][0]} px"
        ),
    )


def _refuse(wrong, sentence):
    if wrong.any():
        image, row = map(int, np.argwhere(wrong)[0])
        raise UserError(f"image {image}, object {row}: {sentence((image, row))}")


# --- tf.data ----------------------------------------------------------------------------------------------


def _is_dataset(data):
    return hasattr(data, "element_spec")


def _is_complete(spec):
    return isinstance(spec, dict) and {IMAGES, SIZE_HW} <= spec.keys()


def _of_dataset(dataset, detector):
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) < 2:
        raise UserError("the data set needs elements (x, y): images and ground truth")
    y = spec[1]
    if _is_complete(spec[0]) and isinstance(y, dict) and {BOXES, LABELS, CROWD, IMAGE_ID} <= y.keys():
        return dataset
    if isinstance(y, dict) and BOXES not in y and IMAGE_ID in y:
        raise UserError(
            "these batches hold no ground truth, so that no loss can be computed: use the second data set of "
            "kgarden.build_datasets"
        )
    _require(y, detector)
    complete = _mapped(dataset, lambda x, y, *_: (_inputs_in_graph(x, detector.divisor), _truth_in_graph(y)))
    for x, y in complete.take(1).as_numpy_iterator():
        _check(x, y, detector)
    return complete


def _mapped(dataset, function):
    import tensorflow as tf

    return dataset.map(tf.autograph.experimental.do_not_convert(function))  # errors stay one line


def _inputs_in_graph(x, divisor):
    import tensorflow as tf

    x = x if isinstance(x, dict) else {IMAGES: x}
    images = x[IMAGES]
    if images.shape.rank != 4:
        raise UserError(f"images have shape {images.shape}; (B, H, W, 3) is needed: batch the data set")
    if None in images.shape[1:3]:
        raise UserError("images of a data set need known height and width: resize or set_shape them")
    height, width = images.shape[1:3]
    size_hw = tf.tile([[height, width]], [tf.shape(images)[0], 1])
    padding = [[0, 0], [0, -height % divisor], [0, -width % divisor], [0, 0]]
    return {SIZE_HW: size_hw, **x, IMAGES: tf.pad(images, padding)}


def _truth_in_graph(y):
    import tensorflow as tf

    def dense(value, pad):
        if not isinstance(value, tf.RaggedTensor):
            return value
        value = value.to_tensor(pad)
        rows = tf.shape(value)[1]
        added = tf.maximum(-(-rows // ROWS), 1) * ROWS - rows
        rest = [[0, 0]] * (value.shape.rank - 2)
        return tf.pad(value, [[0, 0], [0, added], *rest], constant_values=pad)

    boxes = dense(tf.cast(y[BOXES], tf.float32), 0.0)
    labels = dense(tf.cast(y[LABELS], tf.int32), PAD_LABEL)
    count = tf.shape(labels)[0]
    return {
        CROWD: tf.zeros_like(labels, tf.bool),
        IMAGE_ID: tf.range(tf.cast(count, tf.int64)),
        **y,
        BOXES: boxes,
        LABELS: labels,
    }
