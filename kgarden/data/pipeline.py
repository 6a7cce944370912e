"""Data sets -> batches of one canvas, as `kgarden.schema` has them.

    order of the pictures -> records -> parse -> decode -> resize -> flips -> canvas -> batch

Everything random is a function of the seed and of the number of the picture in the stream. So a stream
that starts at step k is the tail of the stream that starts at 0, however many threads work on it.
"""

import itertools
import warnings

import numpy as np
import tensorflow as tf

from kgarden.data import samplers, transforms
from kgarden.data.canvas import (
    boxes_to_original,
    canvas_of,
    default_canvases,
    fitted_hw,
    pad_to_canvas,
    resize_to_canvas,
)
from kgarden.data.loader import Loader
from kgarden.data.sources import Dataset, dataset_of, joined, open_dataset
from kgarden.schema import (
    BOXES,
    CROWD,
    IMAGE_ID,
    IMAGES,
    LABELS,
    ORIGINAL_HW,
    PAD_LABEL,
    SIZE_HW,
    UserError,
)
from tfrecords.pictures import decode
from tfrecords.schema import DataError, parse

__all__ = [
    "Dataset",
    "boxes_to_original",
    "canvas_of",
    "dataset_of",
    "decode_only",
    "default_canvases",
    "fitted_hw",
    "open_dataset",
    "resize_to_canvas",
    "train_batches",
    "val_batches",
]

CHUNK = 1024  # pictures whose order is handed to TensorFlow at once
CACHES = ("none", "encoded", "decoded")


def train_batches(
    datasets,
    *,
    short_side_px,
    long_side_px,
    batch_size,
    canvases=None,
    max_objects=100,
    flips=("horizontal",),
    antialias=True,
    scaled_decode=False,
    cache="none",
    keep_empty=False,
    keep_crowd=True,
    seed=0,
    start_step=0,
    parallel=tf.data.AUTOTUNE,
):
    """Batches to train on, without end.

    Args:
        datasets:      list of Dataset, drawn from by their weights.
        short_side_px: several to draw one from for every picture, or one.
        long_side_px:  upper limit of the longer side.
        canvases:      [[height, width], ...]; None: `default_canvases` of the largest short side.
        max_objects:   M. Of more, the largest stay.
        flips:         of "horizontal", "vertical"; each done with probability 1/2.
        scaled_decode: let the JPEG decoder halve pictures that are halved anyway: faster, a little softer.
        cache:         "none": read and decode every time; "encoded": keep records in memory; "decoded": keep
                       pictures too, after resizing if there is one short side.
        keep_empty:    also pictures without objects.
        keep_crowd:    hand out regions with many objects, marked, instead of leaving them out.
        start_step:    leave out the first so many batches.
        parallel:      pictures that are prepared at the same time.
    Returns:
        tf.data.Dataset of (x, y). Shapes are static if the pictures need one canvas alone; with several,
        H and W differ from batch to batch.
    """
    data, weights, sizes = _pool(datasets, keep_empty)
    _check(cache, flips, batch_size)
    short_sides = tuple(np.atleast_1d(short_side_px).tolist())
    canvases, canvas = _canvases(data.index, canvases, max(short_sides), long_side_px)
    _warn_of_overflow(data.index, max_objects)
    load = Loader(
        data,
        np.array(canvases)[canvas],
        short_sides,
        long_side_px,
        antialias,
        scaled_decode,
        cache,
        keep_crowd,
    )
    static_hw = tuple(canvases[0]) if len(canvases) == 1 else (None, None)
    change = transforms.chain([transforms.resize(antialias), *(transforms.FLIPS[name]() for name in flips)])

    def prepare(position, row, serialized):
        key = tf.stack([tf.constant(seed, tf.int64), position])
        side_seed, change_seed = tf.unstack(tf.random.split(key))
        example = change(load(row, serialized, side_seed), change_seed)
        truth = _pad({key: example[key] for key in (BOXES, LABELS, CROWD)}, max_objects)
        return _input_of(example, static_hw), {**truth, IMAGE_ID: example["image_id"]}

    def order():
        rows = samplers.endless_rows(sizes, weights, seed)
        steps = samplers.batches(rows, canvas, batch_size, start_step)
        while True:
            yield np.concatenate(list(itertools.islice(steps, max(1, CHUNK // batch_size))))[:, :2]

    signature = tf.TensorSpec((None, 2), tf.int64)
    rows = tf.data.Dataset.from_generator(order, output_signature=signature).unbatch()
    batches = _batches(rows, load, prepare, batch_size, parallel)
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def val_batches(
    datasets,
    *,
    short_side_px,
    long_side_px,
    batch_size,
    canvases=None,
    antialias=True,
    scaled_decode=False,
    limit=None,
    parallel=tf.data.AUTOTUNE,
):
    """Batches to evaluate: every picture once, those of the first canvas first.

    The last batch of a canvas is filled up by repeating its last picture with image_id -1.

    Args:
        short_side_px: one number.
        limit:         only the first so many pictures.
        others:        see `train_batches`.
    Returns:
        tf.data.Dataset of (x, meta), of known length.
    """
    data, _, _ = _pool(datasets, keep_empty=True)
    _check("none", (), batch_size)
    index = data.index.take(slice(limit))
    data = Dataset(index, data.categories, data.annotations)
    canvases, canvas = _canvases(index, canvases, short_side_px, long_side_px)
    load = Loader(data, np.array(canvases)[canvas], (short_side_px,), long_side_px, antialias, scaled_decode)
    static_hw = tuple(canvases[0]) if len(canvases) == 1 else (None, None)
    steps = samplers.in_order(canvas, batch_size).reshape(-1, 3)
    real = steps[:, 1] >= 0
    last_real = np.maximum.accumulate(np.where(real, np.arange(len(steps)), 0))

    def prepare(is_real, row, serialized):
        example = transforms.resize(antialias)(load(row, serialized, None), None)
        image_id = tf.where(is_real > 0, example["image_id"], -1)
        return _input_of(example, static_hw), {IMAGE_ID: image_id, ORIGINAL_HW: example["original_hw"]}

    rows = tf.data.Dataset.from_tensor_slices(np.stack([real.astype("int64"), steps[last_real, 1]], axis=-1))
    batches = _batches(rows, load, prepare, batch_size, parallel)
    return batches.apply(tf.data.experimental.assert_cardinality(len(steps) // batch_size))


def decode_only(datasets, *, batch_size, ratio=1, parallel=tf.data.AUTOTUNE):
    """The same shards read in their order and decoded, nothing else: what a pipeline can reach at best.

    Args:
        ratio: how much smaller the JPEG decoder makes the pictures: 1, 2, 4 or 8.
    Returns:
        tf.data.Dataset of (B, 3) int32, the shapes of the decoded pictures, without end.
    """

    def shape(serialized):
        return tf.shape(decode(parse(serialized)["encoded"], ratio))

    files = [file for data in datasets for file in data.index.files]
    shapes = tf.data.TFRecordDataset(files).repeat().map(shape, parallel, deterministic=True)
    return shapes.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _batches(rows, load, prepare, batch_size, parallel):
    """rows: dataset of (2,) int64, a number and a row -> batches of what `prepare` makes of them."""
    records = load.records_of(rows.map(lambda pair: pair[1]))
    examples = tf.data.Dataset.zip(rows, records).map(
        lambda pair, serialized: prepare(pair[0], pair[1], serialized), parallel, deterministic=True
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)


def _input_of(example, static_hw):
    """The part of a batch that goes into the network, for one picture."""
    image = example["image"]
    canvas = tf.ensure_shape(pad_to_canvas(image, example["canvas_hw"]), (*static_hw, 3))
    return {IMAGES: canvas, SIZE_HW: tf.shape(image)[:2]}


def _pad(truth, max_objects):
    """Boxes, labels and crowd marks in exactly M rows; of more than M objects the largest, in their order."""
    boxes = tf.where(truth[LABELS][:, None] >= 0, truth[BOXES], 0.0)
    truth = {**truth, BOXES: boxes}

    def largest():
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        rows = tf.sort(tf.math.top_k(area, tf.minimum(count, max_objects)).indices)
        return {key: tf.gather(value, rows) for key, value in truth.items()}

    count = tf.shape(truth[LABELS])[0]
    truth = tf.cond(count > max_objects, largest, lambda: dict(truth))
    missing = max_objects - tf.minimum(count, max_objects)
    padded = {
        BOXES: tf.pad(truth[BOXES], [[0, missing], [0, 0]]),
        LABELS: tf.pad(truth[LABELS], [[0, missing]], constant_values=PAD_LABEL),
        CROWD: tf.pad(truth[CROWD], [[0, missing]]),
    }
    return {key: tf.ensure_shape(value, (max_objects, *value.shape[1:])) for key, value in padded.items()}


def _pool(datasets, keep_empty):
    """Data sets as one, without empty pictures unless wanted: (Dataset, weights, sizes)."""
    kept = []
    for data in datasets:
        rows = slice(None) if keep_empty else np.flatnonzero(data.index.objects > 0)
        kept.append(Dataset(data.index.take(rows), data.categories, data.annotations, data.weight))
        if not len(kept[-1].index):
            raise UserError(f"{data.index.files[0]}: no picture has an object: nothing to train on")
    sizes = [len(data.index) for data in kept]
    weights = [data.weight * size for data, size in zip(kept, sizes, strict=True)]
    try:
        return joined(kept), weights, sizes
    except DataError as error:
        raise UserError(str(error)) from error


def _canvases(index, canvases, short_side_px, long_side_px):
    """(the canvases that these pictures need, the row of its canvas for each picture)."""
    canvases = [list(c) for c in canvases or default_canvases(short_side_px, long_side_px)]
    hw = np.stack([index.height, index.width], axis=-1)
    canvas = canvas_of(hw, canvases, short_side_px, long_side_px).numpy()
    used, canvas = np.unique(canvas, return_inverse=True)
    return [canvases[number] for number in used], canvas


def _check(cache, flips, batch_size):
    if cache not in CACHES:
        raise UserError(f"cache: {cache!r} is none of {', '.join(CACHES)}")
    unknown = set(flips) - set(transforms.FLIPS)
    if unknown:
        raise UserError(f"flips: {min(unknown)!r} is none of {', '.join(transforms.FLIPS)}")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size}: at least 1")


def _warn_of_overflow(index, max_objects):
    crowded = int((index.objects > max_objects).sum())
    if crowded:
        warnings.warn(
            f"{crowded} pictures hold more than max_objects = {max_objects} objects: the largest are kept",
            stacklevel=3,
        )
