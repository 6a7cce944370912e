"""Loader: reads, parses and decodes one record with its ground truth."""

import dataclasses

import numpy as np
import tensorflow as tf

from kgarden.data.canvas import fitted_hw, resized
from kgarden.data.transforms import masks as bitmaps
from kgarden.data.transforms.geometry import FRAMES
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, PAD_LABEL
from tfrecords.images import decode
from tfrecords.schema import parse

RATIOS = (1, 2, 4, 8)  # downsampling factors of the JPEG decoder
# Decorator of functions that tf.data maps: their control flow is TensorFlow's own, and converting the source
# of every function that they call takes longer than tracing them.
without_autograph = tf.autograph.experimental.do_not_convert
CACHED_BYTES = 2**30  # limit of caching images at all their sizes; above, at the stored size only


@dataclasses.dataclass(frozen=True)
class Resize:
    """Sizes that the images of a data set are resized to.

    canvas_hw:     (N, 2) int, the canvas of every image.
    short_sides:   px; one of them is drawn for each image.
    keeps_size:    whole images are resized, so that their sizes are known in advance.
    long_side_px, antialias, scaled_decode: see `pipeline.train_batches`.
    """

    canvas_hw: np.ndarray
    short_sides: tuple
    long_side_px: int
    antialias: bool = True
    scaled_decode: bool = False
    keeps_size: bool = True


class Loader:
    """Loads a row of a data set as an example for transforms, with its target size.

    Args:
        data:   Dataset; rows are those of its index.
        resize: Resize.
        cache, keep_crowd, masks: see `pipeline.train_batches`.
    """

    def __init__(self, data, resize, *, cache="none", keep_crowd=True, masks=False):
        canvas_hw, short_sides, long_side_px = resize.canvas_hw, resize.short_sides, resize.long_side_px
        index = data.index
        self.index, self.antialias, self.keep_crowd, self.masks = index, resize.antialias, keep_crowd, masks
        original_hw = np.stack([index.height, index.width], axis=-1).astype("int32")
        sizes = np.stack([fitted_hw(original_hw, s, long_side_px, canvas_hw) for s in short_sides], axis=1)
        self.short_sides = tf.constant(short_sides, tf.int32)
        self.long_side_px = tf.constant(long_side_px, tf.int32)
        self.image_id = tf.constant(index.image_id)
        self.canvas_hw = tf.constant(canvas_hw, tf.int32)
        self.original_hw = tf.constant(original_hw)
        self.sizes = tf.constant(sizes)  # (N, S, 2)
        shrinks = resize.scaled_decode and resize.keeps_size
        self.ratio = ratios(original_hw[:, None], sizes) if shrinks else np.ones_like(sizes[..., 0])
        ids = np.array([category["id"] for category in data.categories], "int64")
        self.ids, self.labels = tf.constant(np.sort(ids)), tf.constant(np.argsort(ids).astype("int32"))
        self.is_plain = np.array_equal(ids, np.arange(len(ids)) + ids[0])
        self.read = reader(index)
        self.records = self.pixels = None
        if cache != "none":
            rows = tf.data.Dataset.range(len(index)).map(self.read, tf.data.AUTOTUNE, deterministic=True)
            self.records = tf.constant([record.numpy() for record in rows])
        if cache == "decoded":
            self._keep_pixels(
                at_all_sizes=resize.keeps_size and 3 * sizes.prod(-1, dtype="int64").sum() <= CACHED_BYTES
            )

    def record(self, row):
        """The serialised record of a row.   () string"""
        return self.read(row) if self.records is None else self.records[row]

    def choice(self, draw):
        """Index of the short side for a draw from [0, 1).   (...,) int64"""
        return tf.cast(draw * self.sizes.shape[1], tf.int64)

    def __call__(self, row, choice, canvas_hw=None):
        """The example of a row in the form of `transforms`, with its target size as "target_hw".

        Args:
            row:       () int64.
            choice:    () int64, index of the short side.
            canvas_hw: (2,) int32, another image's canvas to fit into; None: its own.
        """
        record = parse(self.record(row), masks=self.masks)
        image = self.image(row, choice, record["encoded"])
        example = {
            "image": image,
            **self.objects(record, tf.shape(image)[:2], self.masks),
            "image_id": self.image_id[row],
            "original_hw": self.original_hw[row],
            "target_hw": self.sizes[row, choice],
            "canvas_hw": self.canvas_hw[row],
            "short_side_px": self.short_sides[choice],
            "long_side_px": self.long_side_px,
        }
        if self.masks:
            example |= {FRAMES: example[BOXES]}
        if canvas_hw is not None:
            size = fitted_hw(self.original_hw[row], self.short_sides[choice], self.long_side_px, canvas_hw)
            example |= {"canvas_hw": canvas_hw, "target_hw": size}
        return example

    def image(self, row, choice, encoded):
        """(H, W, 3) uint8; already resized where the decoder or the cache does that."""
        if self.pixels is not None:
            if self.pixels_hw.shape[1] == 1:
                choice = tf.zeros_like(row)
            hw, first = self.pixels_hw[row, choice], self.pixels_at[row, choice]
            flat = tf.slice(self.pixels, [first], [3 * tf.reduce_prod(tf.cast(hw, tf.int64))])
            return tf.reshape(flat, tf.concat([hw, [3]], axis=0))
        used = np.unique(self.ratio)
        if len(used) == 1:
            return decode(encoded, int(used[0]))
        branch = tf.constant(np.searchsorted(used, self.ratio).astype("int32"))[row, choice]
        return tf.switch_case(branch, [lambda r=r: decode(encoded, int(r)) for r in used])

    def objects(self, record, size_hw, masks=False):
        """Boxes in px of an image of a size, labels, crowd flags and, with `masks`, bitmaps of a record.

        Args:
            record:  of `parse`.
            size_hw: (2,) int32.
            masks:   whether the record was parsed with its masks.
        """
        boxes, labels, crowd = self.truth(record["boxes"], record["category_ids"], record["crowd"])
        side = tf.cast(tf.gather(size_hw, [1, 0, 1, 0]), tf.float32)
        found = {BOXES: boxes * side, LABELS: labels, CROWD: crowd}
        return {**found, MASKS: bitmaps.bitmaps(record["masks"], boxes)} if masks else found

    def truth(self, boxes, category_ids, crowd):
        """Boxes clipped to 0..1, labels (-1 for a category that the manifest does not list), crowd flags.

        Args:
            boxes:        (..., N, 4) fractions.
            category_ids: (..., N) int64.
            crowd:        (..., N) bool.
        """
        if self.is_plain:  # ids without gaps: most data sets
            labels = tf.cast(category_ids - self.ids[0], tf.int32)
            known = (category_ids >= self.ids[0]) & (category_ids <= self.ids[-1])
        else:
            position = tf.minimum(
                tf.searchsorted(self.ids, tf.reshape(category_ids, [-1])), len(self.ids) - 1
            )
            position = tf.reshape(position, tf.shape(category_ids))
            labels, known = tf.gather(self.labels, position), tf.gather(self.ids, position) == category_ids
        if not self.keep_crowd:
            known &= ~crowd
        return tf.clip_by_value(boxes, 0.0, 1.0), tf.where(known, labels, PAD_LABEL), crowd & known

    def _keep_pixels(self, at_all_sizes):
        """Decode all images into memory, resized to each of their sizes if `at_all_sizes`."""
        choices = self.sizes.shape[1] if at_all_sizes else 1

        @without_autograph
        def pixels(number):
            row, choice = number // choices, number % choices
            image = self.image(row, choice, parse(self.records[row])["encoded"])
            return resized(image, self.sizes[row, choice], self.antialias) if at_all_sizes else image

        numbers = tf.data.Dataset.range(len(self.index) * choices)
        images = list(numbers.map(pixels, tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator())
        first = np.cumsum([0] + [image.size for image in images[:-1]])
        self.pixels_at = tf.constant(first.reshape(-1, choices), tf.int64)
        self.pixels_hw = tf.constant(
            np.reshape([image.shape[:2] for image in images], (-1, choices, 2)), tf.int32
        )
        self.pixels = tf.constant(np.concatenate([image.ravel() for image in images]))


def reader(index):
    """Build a function: row of the index, () int64 -> serialised record, () string."""
    files, shard, offset = tf.constant(index.files), tf.constant(index.shard), tf.constant(index.offset)

    @without_autograph
    def read(row):
        # The op can start at any byte; the Python class TFRecordDataset does not expose it.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=files[shard[row]][None],
            compression_type="",
            buffer_size=0,
            byte_offsets=offset[row][None],
        )
        records = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
        return records.take(1).get_single_element()

    return read


def ratios(original_hw, size_hw):
    """Largest decoder downsampling factor that stays at or above each image's target size."""
    times = np.min(original_hw // size_hw, axis=-1)
    return np.select([times >= ratio for ratio in RATIOS[:0:-1]], RATIOS[:0:-1], 1)
