"""One picture with its truth, from the record on disk to pixels and boxes."""

import numpy as np
import tensorflow as tf

from kgarden.data.canvas import fitted_hw, resize
from kgarden.schema import PAD_LABEL
from tfrecords.pictures import decode
from tfrecords.schema import parse

READERS = 4  # records that are read at the same time
RATIOS = (1, 2, 4, 8)  # what a JPEG decoder can shrink by


class Loader:
    """A row of the data set -> the example that transforms take, and the size that it is to get.

    Args:
        data:         Dataset; rows are those of its index.
        canvas_hw:    (N, 2) int, the canvas of every picture.
        short_sides:  px; one of them is drawn.
        long_side_px, antialias, scaled_decode, cache, keep_crowd: see `pipeline.train_batches`.
    """

    def __init__(
        self,
        data,
        canvas_hw,
        short_sides,
        long_side_px,
        antialias=True,
        scaled_decode=False,
        cache="none",
        keep_crowd=True,
    ):
        index = data.index
        self.index, self.antialias, self.keep_crowd = index, antialias, keep_crowd
        original_hw = np.stack([index.height, index.width], axis=-1).astype("int32")
        sizes = np.stack([fitted_hw(original_hw, s, long_side_px, canvas_hw) for s in short_sides], axis=1)
        self.image_id = tf.constant(index.image_id)
        self.canvas_hw = tf.constant(canvas_hw, tf.int32)
        self.original_hw = tf.constant(original_hw)
        self.sizes = tf.constant(sizes)  # (N, S, 2)
        self.ratio = _ratios(original_hw[:, None], sizes) if scaled_decode else np.ones_like(sizes[..., 0])
        ids = np.array([category["id"] for category in data.categories], "int64")
        self.ids, self.labels = tf.constant(np.sort(ids)), tf.constant(np.argsort(ids).astype("int32"))
        self.is_plain = np.array_equal(ids, np.arange(len(ids)) + ids[0])
        self.records = self.pixels = None
        if cache != "none":
            self.records = tf.constant([r.numpy() for r in read(tf.data.Dataset.range(len(index)), index)])
        if cache == "decoded":
            self._keep_pixels()

    def records_of(self, rows):
        """Dataset of rows -> dataset of their serialised records."""
        if self.records is not None:
            return rows.map(lambda row: self.records[row])
        return read(rows, self.index)

    def __call__(self, row, serialized, seed):
        """The example of a row as `transforms` says, with the size that it is to get as "target_hw".

        Args:
            row:        () int64.
            serialized: () string, its record.
            seed:       (2,) int, chooses the short side.
        """
        record = parse(serialized)
        choice = self._choice(seed)
        image = self._image(row, choice, record["encoded"])
        labels = self._labels_of(record["category_ids"])
        if not self.keep_crowd:
            labels = tf.where(record["crowd"], PAD_LABEL, labels)
        side = tf.cast(tf.gather(tf.shape(image), [1, 0, 1, 0]), tf.float32)
        return {
            "image": image,
            "boxes": tf.clip_by_value(record["boxes"], 0.0, 1.0) * side,
            "labels": labels,
            "crowd": record["crowd"] & (labels >= 0),
            "image_id": self.image_id[row],
            "original_hw": self.original_hw[row],
            "target_hw": self.sizes[row, choice],
            "canvas_hw": self.canvas_hw[row],
        }

    def _choice(self, seed):
        count = self.sizes.shape[1]
        return 0 if count == 1 else tf.random.stateless_uniform([], seed, maxval=count, dtype=tf.int64)

    def _image(self, row, choice, encoded):
        if self.pixels is not None:
            flat = tf.io.decode_raw(self.pixels[row], tf.uint8)
            return tf.reshape(flat, tf.concat([self.pixels_hw[row], [3]], axis=0))
        used = np.unique(self.ratio)
        if len(used) == 1:
            return decode(encoded, int(used[0]))
        number = tf.constant(np.searchsorted(used, self.ratio).astype("int32"))[row, choice]
        return tf.switch_case(number, [lambda r=r: decode(encoded, int(r)) for r in used])

    def _labels_of(self, category_ids):
        """(N,) int32; -1 for a category that the manifest does not list."""
        if self.is_plain:  # ids without gaps: most data sets
            labels = tf.cast(category_ids - self.ids[0], tf.int32)
            return tf.where((labels >= 0) & (labels < len(self.ids)), labels, PAD_LABEL)
        place = tf.minimum(tf.searchsorted(self.ids, category_ids), len(self.ids) - 1)
        return tf.where(tf.gather(self.ids, place) == category_ids, tf.gather(self.labels, place), PAD_LABEL)

    def _keep_pixels(self):
        """Decode all pictures into memory; resize them too if there is only one size for each."""

        def pixels(row):
            encoded = parse(self.records[row])["encoded"]
            if self.sizes.shape[1] > 1:
                return decode(encoded)
            image = self._image(row, 0, encoded)
            same = tf.reduce_all(tf.shape(image)[:2] == self.sizes[row, 0])
            return tf.cond(same, lambda: image, lambda: resize(image, self.sizes[row, 0], self.antialias))

        rows = tf.data.Dataset.range(len(self.index))
        images = list(rows.map(pixels, tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator())
        self.pixels = tf.constant([image.tobytes() for image in images])
        self.pixels_hw = tf.constant(np.array([image.shape[:2] for image in images], "int32"))


def read(rows, index):
    """Dataset of rows -> dataset of their serialised records, in the same order."""
    files, shard, offset = tf.constant(index.files), tf.constant(index.shard), tf.constant(index.offset)

    def record(row):
        # TFRecordDataset can begin at any byte, only its Python class does not say so.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=files[shard[row]][None],
            compression_type="",
            buffer_size=0,
            byte_offsets=offset[row][None],
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string)).take(1)

    return rows.interleave(record, READERS, num_parallel_calls=READERS, deterministic=True)


def _ratios(original_hw, size_hw):
    """How much smaller the decoder may make each picture and still not be below its size."""
    times = np.min(original_hw // size_hw, axis=-1)
    return np.select([times >= ratio for ratio in RATIOS[:0:-1]], RATIOS[:0:-1], 1)
