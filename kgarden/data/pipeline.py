"""Input pipeline: builds padded batches of one canvas for training and evaluation.

    order of the images -> records -> parse -> decode -> transforms -> canvas -> batch

All randomness is a function of the seed and of the image's position in the stream. A stream that starts at
step k is therefore the tail of the stream that starts at 0, for any number of threads.

Images that are only resized and flipped, the usual case, take a faster path, `_plain`: random numbers are
drawn for a thousand images at once, and the ground truth of a batch is transformed as a whole.
"""

import dataclasses
import functools
import itertools
import warnings

import numpy as np
import tensorflow as tf

from kgarden.data import order, rng
from kgarden.data.canvas import (
    canvas_of,
    default_canvases,
    fitted_hw,
    pad_to_canvas,
    resized,
)
from kgarden.data.examples import check_masks, objects_of
from kgarden.data.loader import Loader, Resize, ratios, without_autograph
from kgarden.data.padding import in_rows_of_one, pad_to_max_objects
from kgarden.data.sampling import class_aware_weights, class_rounds, drawn, natural, repeat_factors, repeated
from kgarden.data.sources import Dataset, dataset_of, joined
from kgarden.data.transforms import Augmentation
from kgarden.data.transforms.geometry import mirrored, mirrored_pixels
from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, MIRRORED, ORIGINAL_HW, SIZE_HW, VIEWS
from tfrecords.images import decode
from tfrecords.schema import DataError, parse

__all__ = ["dataset_of", "decode_only", "decoder_ratio", "train_batches", "val_batches"]

CHUNK = 1024  # images whose order is passed to TensorFlow at once
CACHES = ("none", "encoded", "decoded")
PARTNERS = 2**30  # in the seeds of epochs: the order of partners
SIZES = 2**20  # in the seeds of transforms: the draw of the short side


def train_batches(
    datasets,
    *,
    short_side_px,
    long_side_px,
    batch_size,
    canvases=None,
    max_objects=100,
    augment=("horizontal_flip",),
    masks=False,
    sampling="natural",
    threshold=None,
    antialias=True,
    scaled_decode=False,
    cache="none",
    keep_empty=False,
    keep_crowd=True,
    seed=0,
    start_step=0,
    share=(0, 1),
    pieces=1,
    parallel=tf.data.AUTOTUNE,
):
    """Endless training batches.

    Args:
        datasets:      list of Dataset, sampled by their weights.
        short_side_px: one, or several of which one is drawn for every image.
        long_side_px:  upper limit of the longer side.
        canvases:      [[height, width], ...]; None: `default_canvases` of the largest short side.
        max_objects:   M. Of more, the largest are kept.
        augment:       [name or {name: {setting: value}}, ...] of `transforms.TRANSFORMS`.
        masks:         include the objects' masks.
        sampling:      within each data set: "natural": every image once per epoch; "repeat_factor" with a
                       `threshold`, "class_aware" and "class_rounds": see `sampling`.
        scaled_decode: let the JPEG decoder downsample images that are at least halved: faster, slightly
                       softer. Ignored where crops, scale jitter or mixing need all pixels.
        cache:         "none": read and decode every time; "encoded": keep records in memory; "decoded": also
                       keep images, at all their sizes if that takes less than `loader.CACHED_BYTES`.
        keep_empty:    keep images without objects.
        keep_crowd:    keep crowd regions, flagged, instead of dropping them.
        start_step:    number of batches to skip.
        share:         (index of this worker, number of workers): load this slice of every batch.
        pieces:        number of replicas of this worker; each gets an element of its own.
        parallel:      number of images prepared in parallel.
    Returns:
        tf.data.Dataset of (x, y). Shapes are static if the images need only one canvas; with several,
        H and W differ from batch to batch.
    """
    data, weights, parts = _pool(datasets, keep_empty)
    _check(cache, batch_size, share[1] * pieces)
    augmentation = Augmentation(augment, antialias, masks)
    for one in datasets if masks else ():
        check_masks(one)
    short_sides = tuple(np.atleast_1d(short_side_px).tolist())
    canvases, canvas = _canvases(data.index, canvases, max(short_sides), long_side_px)
    _warn_of_overflow(data.index, max_objects)
    streams = [_stream(part, sampling, threshold) for part in parts]
    resize = Resize(
        canvas_hw=np.array(canvases)[canvas],
        short_sides=short_sides,
        long_side_px=long_side_px,
        antialias=antialias,
        scaled_decode=scaled_decode,
        keeps_size=augmentation.keeps_size,
    )
    load = Loader(data, resize, cache=cache, keep_crowd=keep_crowd, masks=masks)
    static_hw = tuple(canvases[0]) if len(canvases) == 1 else (None, None)

    def steps_in_order():
        sizes, partners = [len(part.index) for part in parts], augmentation.partners
        rows = order.endless_rows(sizes, weights, seed, streams)
        others = order.endless_rows(sizes, weights, (seed, PARTNERS), streams)
        steps = order.batches(rows, canvas, batch_size, start_step, others=others, partners=partners)
        parts_of_steps = (np.array_split(step, share[1])[share[0]] for step in steps)
        while True:
            chunk = np.concatenate(list(itertools.islice(parts_of_steps, max(1, CHUNK // batch_size))))
            yield np.delete(chunk, 2, axis=1)

    signature = tf.TensorSpec((None, 2 + augmentation.partners), tf.int64)
    rows = tf.data.Dataset.from_generator(steps_in_order, output_signature=signature)
    make = _plain if augmentation.is_plain and not masks else _changed
    size = batch_size // (share[1] * pieces)
    sizes = {"static_hw": static_hw, "max_objects": max_objects, "batch_size": size}
    batches = make(rows, load, augmentation, seed=seed, parallel=parallel, **sizes)
    return _handed_out(batches, tf.data.INFINITE_CARDINALITY)


def _changed(rows, load, augmentation, *, seed, static_hw, max_objects, batch_size, parallel):
    """Batches under any augmentation. rows: dataset of (n, 2 + K): stream position, row, partners."""

    loaded = tf.function(lambda row, u, hw: load(row, load.choice(u), hw), autograph=False)  # traced once

    @without_autograph
    def prepare(numbers):
        number, rows = numbers[0], numbers[1:]
        key = tf.stack([tf.constant(seed, tf.int64), number])
        canvas_hw = load.canvas_hw[rows[0]]

        def example(k):
            draw = rng.uniform(rng.fold_in(key, SIZES + k))[0]
            return loaded(rows[k], draw, canvas_hw if k else None)

        example = augmentation(example, key)
        truth = in_rows_of_one(example, max_objects)
        return _input_of(example["image"], canvas_hw, static_hw), {**truth, IMAGE_ID: example["image_id"]}

    examples = rows.unbatch().map(prepare, parallel, deterministic=True)
    return examples.batch(batch_size, drop_remainder=True)


def _plain(rows, load, augmentation, *, seed, static_hw, max_objects, batch_size, parallel):
    """Batches of images that are only resized and flipped. rows: dataset of (n, 2): position, row."""

    @without_autograph
    def planned(numbers):
        """Random choices and index entries of each image."""
        key = tf.stack([tf.fill(tf.shape(numbers)[:1], tf.constant(seed, tf.int64)), numbers[:, 0]], axis=1)
        choice = load.choice(rng.uniform(rng.fold_in(key, SIZES))[:, 0])
        row = numbers[:, 1]
        return {
            "row": row,
            "choice": choice,
            "mirrors": augmentation.mirrors(key),
            SIZE_HW: tf.gather_nd(load.sizes, tf.stack([row, choice], axis=1)),
            "canvas_hw": tf.gather(load.canvas_hw, row),
            IMAGE_ID: tf.gather(load.image_id, row),
        }

    @without_autograph
    def prepared(plan):
        record = parse(load.record(plan["row"]))
        image = load.image(plan["row"], plan["choice"], record["encoded"])
        image = resized(image, plan[SIZE_HW], load.antialias)
        if augmentation.settings:
            image = mirrored_pixels(image, *tf.unstack(plan["mirrors"]))
        kept = {key: record[key] for key in ("boxes", "category_ids", "crowd")}
        facts = {key: plan[key] for key in (SIZE_HW, "mirrors", IMAGE_ID)}
        return {IMAGES: _input_of(image, plan["canvas_hw"], static_hw)[IMAGES], **facts, **kept}

    @without_autograph
    def whole(batch):
        boxes, labels, crowd = load.truth(batch["boxes"], batch["category_ids"], batch["crowd"])
        side = tf.cast(tf.gather(batch[SIZE_HW], [1, 0, 1, 0], axis=1), tf.float32)[:, None]
        vertical, horizontal = tf.unstack(batch["mirrors"], axis=1)
        boxes = mirrored(boxes * side, batch[SIZE_HW], vertical, horizontal)
        truth = pad_to_max_objects({BOXES: boxes, LABELS: labels, CROWD: crowd}, max_objects)
        return {IMAGES: batch[IMAGES], SIZE_HW: batch[SIZE_HW]}, {**truth, IMAGE_ID: batch[IMAGE_ID]}

    examples = rows.map(planned).unbatch().map(prepared, parallel, deterministic=True)
    no_category = tf.constant(tf.int64.min, tf.int64)
    padding = {key: tf.zeros([], spec.dtype) for key, spec in examples.element_spec.items()}
    padding["category_ids"] = no_category
    batches = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=True)
    return batches.map(whole, parallel, deterministic=True)


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
    further=(),
    flip=False,
    max_objects=None,
    masks=False,
    parallel=tf.data.AUTOTUNE,
):
    """Evaluation batches: every image once, ordered by canvas.

    The last batch of a canvas is padded by repeating its last image with image_id -1.

    Args:
        short_side_px: one number.
        max_objects:   M: meta also holds the ground truth, as the y of `train_batches`; None: it does not.
        masks:         the ground truth includes the objects' masks.
        limit:         number of images, from the first on; None: all.
        further:       [{"short_side_px", "long_side_px", "canvases", "antialias"}, ...], further sizes of
                       the same images, in x under "views". A batch has one canvas per size.
        flip:          "views" also holds the flipped image, after the unflipped one of each size.
        datasets, long_side_px, batch_size, canvases, antialias, scaled_decode, parallel: see
                       `train_batches`.
    Returns:
        tf.data.Dataset of (x, meta), of known length.
    """
    data, _, _ = _pool(datasets, keep_empty=True)
    _check("none", batch_size)
    index = data.index.take(slice(limit))
    data = Dataset(index, data.categories, data.annotations)
    first = {"short_side_px": short_side_px, "long_side_px": long_side_px, "canvases": canvases}
    sizes = [
        _size(data, scaled_decode=scaled_decode, **size)
        for size in ({**first, "antialias": antialias}, *further)
    ]
    group = np.unique(np.stack([size.canvas for size in sizes], 1), axis=0, return_inverse=True)[1]
    steps = order.in_order(group, batch_size).reshape(-1, 3)
    real = steps[:, 1] >= 0
    last_real = np.maximum.accumulate(np.where(real, np.arange(len(steps)), 0))
    for one in datasets if masks else ():
        check_masks(one)
    load = sizes[0].load

    @without_autograph
    def prepare(plan):
        row = plan["row"]
        record = parse(load.record(row), masks=masks)
        x, *views = _views(sizes, row, record["encoded"], flip)
        image_id = tf.where(plan["real"], load.image_id[row], -1)
        meta = {IMAGE_ID: image_id, ORIGINAL_HW: load.original_hw[row]}
        if max_objects is not None:
            meta |= in_rows_of_one(load.objects(record, x[SIZE_HW], masks), max_objects)
        return x | ({VIEWS: tuple(views)} if views else {}), meta

    plans = tf.data.Dataset.from_tensor_slices({"real": real, "row": steps[last_real, 1]})
    batches = plans.map(prepare, parallel, deterministic=True).batch(batch_size, drop_remainder=True)
    return _handed_out(batches, len(steps) // batch_size)


@dataclasses.dataclass(frozen=True)
class _Size:
    """One size of all images: Loader, canvas of each image (N,), static canvas shape if there is one."""

    load: Loader
    canvas: np.ndarray
    static_hw: tuple


def _size(data, short_side_px, long_side_px, canvases, antialias, scaled_decode):
    canvases, canvas = _canvases(data.index, canvases, short_side_px, long_side_px)
    resize = Resize(
        canvas_hw=np.array(canvases)[canvas],
        short_sides=(short_side_px,),
        long_side_px=long_side_px,
        antialias=antialias,
        scaled_decode=scaled_decode,
    )
    load = Loader(data, resize)
    return _Size(load, canvas, tuple(canvases[0]) if len(canvases) == 1 else (None, None))


def _views(sizes, row, encoded, flip):
    """[x of one image] at each size, each followed by its flip; all but the first have MIRRORED."""
    views = []
    for size in sizes:
        load = size.load
        image = resized(load.image(row, 0, encoded), load.sizes[row, 0], load.antialias)
        for is_mirrored in (False, True) if flip else (False,):
            shown = tf.reverse(image, [1]) if is_mirrored else image
            x = _input_of(shown, load.canvas_hw[row], size.static_hw)
            views.append({**x, MIRRORED: tf.constant(is_mirrored)} if views else x)
    return views


def decode_only(datasets, *, batch_size, ratio=1, parallel=tf.data.AUTOTUNE):
    """Shards read in order and decoded, nothing else: upper bound of the pipeline's throughput.

    Args:
        ratio: downsampling factor of the JPEG decoder: 1, 2, 4 or 8.
    Returns:
        endless tf.data.Dataset of (B, 3) int32, the shapes of the decoded images.
    """

    @without_autograph
    def shape(serialized):
        return tf.shape(decode(parse(serialized)["encoded"], ratio))

    files = [file for data in datasets for file in data.index.files]
    shapes = tf.data.TFRecordDataset(files).repeat().map(shape, parallel, deterministic=True)
    return shapes.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def decoder_ratio(datasets, short_side_px, long_side_px):
    """Median JPEG downsampling factor for resizing images to a size: 1, 2, 4 or 8."""
    hw = np.concatenate([np.stack([one.index.height, one.index.width], axis=1) for one in datasets])
    return int(np.median(ratios(hw, fitted_hw(hw, short_side_px, long_side_px).numpy())))


def _handed_out(batches, count):
    """Prefetched, of known cardinality, auto-sharded by data instead of by file."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = batches.prefetch(tf.data.AUTOTUNE).with_options(options)
    return batches.apply(tf.data.experimental.assert_cardinality(count))


def _input_of(image, canvas_hw, static_hw):
    """The network input x for one image."""
    canvas = tf.ensure_shape(pad_to_canvas(image, canvas_hw), (*static_hw, 3))
    return {IMAGES: canvas, SIZE_HW: tf.shape(image)[:2]}


def _pool(datasets, keep_empty):
    """(all data sets as one, weights, each of them), without empty images unless `keep_empty`."""
    kept = []
    for data in datasets:
        rows = slice(None) if keep_empty else np.flatnonzero(data.index.objects > 0)
        kept.append(Dataset(data.index.take(rows), data.categories, data.annotations, data.weight))
        if not len(kept[-1].index):
            raise UserError(f"{data.index.files[0]}: no image has an object: nothing to train on")
    weights = [data.weight * len(data.index) for data in kept]
    try:
        return joined(kept), weights, kept
    except DataError as error:
        raise UserError(str(error)) from error


def _stream(data, sampling, threshold):
    """The sampler of a data set: a function of a key -> endless rows, see `sampling`."""
    size = len(data.index)
    if sampling == "natural":
        return functools.partial(natural, size)
    if sampling == "repeat_factor":
        return functools.partial(repeated, repeat_factors(objects_of(data), size, threshold))
    if sampling == "class_aware":
        return functools.partial(drawn, class_aware_weights(objects_of(data), size))
    if sampling == "class_rounds":
        return functools.partial(class_rounds, objects_of(data))
    raise UserError(
        f"data.sampling: {sampling!r} is not one of natural, repeat_factor, class_aware, class_rounds"
    )


def _canvases(index, canvases, short_side_px, long_side_px):
    """(canvases that these images need, row of the canvas of each image)."""
    canvases = [list(c) for c in canvases or default_canvases(short_side_px, long_side_px)]
    hw = np.stack([index.height, index.width], axis=-1)
    canvas = canvas_of(hw, canvases, short_side_px, long_side_px).numpy()
    used, canvas = np.unique(canvas, return_inverse=True)
    return [canvases[number] for number in used], canvas


def _check(cache, batch_size, parts=1):
    if cache not in CACHES:
        raise UserError(f"cache: {cache!r} is not one of {', '.join(CACHES)}")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} must be at least 1")
    if batch_size % parts:
        raise UserError(f"batch_size: {batch_size} is not divisible by {parts} replicas")


def _warn_of_overflow(index, max_objects):
    excess = np.maximum(index.objects.astype("int64") - max_objects, 0)
    if excess.any():
        warnings.warn(
            f"{(excess > 0).sum()} images have more than max_objects = {max_objects} objects: the largest "
            f"are kept, {excess.sum()} of {index.objects.sum()} objects are dropped",
            stacklevel=3,
        )
