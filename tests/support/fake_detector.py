"""Fake detector with a few hundred weights, and a few images, with the interfaces of the real ones.

Every image is dark with one bright square; the detector predicts a box at the brightest cell of a grid and
the class of the square, red or green. It is trained and evaluated in milliseconds.
"""

import json
import types

import keras
import numpy as np
from keras import ops

from kgarden.heads.selection import Selection
from kgarden.models.base.detector import InferenceModel
from kgarden.models.base.non_finite import FirstNonFiniteStep
from kgarden.models.base.static_shapes import StaticShapeModel

CELL = 16
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]  # ids are neither dense nor sorted


class StandIn(StaticShapeModel):
    """Class of the square by a small normalised network; its box from the brightest cell."""

    divisor = 32
    selection = Selection(total=2)  # for several views, merged
    neck = types.SimpleNamespace(strides=(CELL,))

    def __init__(self, num_classes, seed=0):
        super().__init__()
        self.num_classes = num_classes
        self.norm = keras.layers.BatchNormalization(momentum=0.3, name="norm")
        self.dense = keras.layers.Dense(
            num_classes, name="dense", kernel_initializer=keras.initializers.GlorotUniform(seed=seed)
        )

    def build(self, input_shape=None):
        self.norm.build((None, 3))
        self.dense.build((None, 3))
        self.step = self.add_weight(
            shape=(), dtype="int32", trainable=False, name="step", initializer="zeros"
        )
        self.terms = {name: keras.metrics.Mean(name=name) for name in self.loss_names}
        self.first_bad = FirstNonFiniteStep()
        self.built = True

    @property
    def loss_names(self):
        return ["head/class"]

    def parts(self):
        return {"norm": self.norm, "head": self.dense}

    def freeze(self, patterns):
        self.norm.trainable = "norm" not in patterns

    def call(self, x, training=False):
        assert None not in x["images"].shape[1:], "real detectors need static canvases"
        pixels = ops.cast(x["images"], "float32") / 255
        cells = ops.average_pool(pixels, CELL, CELL)  # (B, h, w, 3)
        colors = ops.max(cells, axis=(1, 2))
        return {"cells": cells, "logits": self.dense(self.norm(colors, training=training))}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = self.loss_of(y, y_pred)
        self.terms["head/class"].update_state(loss)
        if training:
            self.step.assign_add(1)
            self.first_bad.update_state(self.step, loss)
        return loss

    def loss_of(self, y, y_pred):
        each = keras.losses.sparse_categorical_crossentropy(
            y["labels"][:, 0], y_pred["logits"], from_logits=True
        )
        return ops.mean(each)

    def detect(self, x, raw):
        bright = ops.max(raw["cells"], axis=-1)  # (B, h, w)
        width = bright.shape[2]
        best = ops.argmax(ops.reshape(bright, (-1, bright.shape[1] * width)), axis=1)
        left, top = ops.cast(best % width, "float32") * CELL, ops.cast(best // width, "float32") * CELL
        box = ops.stack([left, top, left + CELL, top + CELL], axis=-1)[:, None]
        scores = ops.softmax(raw["logits"])
        valid = ops.stack([ops.ones_like(best, "bool"), ops.zeros_like(best, "bool")], axis=1)
        return {
            "boxes": ops.concatenate([box, ops.zeros_like(box)], axis=1),
            "scores": ops.stack([ops.max(scores, -1), ops.zeros_like(scores[:, 0])], axis=1),
            "labels": ops.cast(ops.stack([ops.argmax(scores, -1)] * 2, axis=1), "int32"),
            "valid": valid,
            "source": ops.stack([best, -ops.ones_like(best)], axis=1),
        }

    def inference_model(self):
        return InferenceModel(self)


class MaskedStandIn(StandIn):
    """The fake detector with masks of 16 x 16: the bright pixels of the cell."""

    def call(self, x, training=False):
        bright = ops.max(ops.cast(x["images"], "float32") / 255, axis=-1)  # (B, H, W)
        rows, columns = (side // CELL for side in bright.shape[1:])
        cells = ops.transpose(ops.reshape(bright, (-1, rows, CELL, columns, CELL)), (0, 1, 3, 2, 4))
        cells = ops.reshape(cells, (-1, rows * columns, CELL, CELL))
        return {**super().call(x, training), "masks": cells}

    def detect(self, x, raw):
        found = super().detect(x, raw)
        here = ops.one_hot(found["source"][:, :1], raw["masks"].shape[1])  # (B, 1, cells)
        mask = ops.einsum("bkn,bnrc->bkrc", here, raw["masks"])
        return {**found, "masks": ops.concatenate([mask, ops.zeros_like(mask)], axis=1)}


FROM_CENTER = np.arange(CELL) + 0.5 - CELL / 2  # px
SQUARE = np.ones((CELL, CELL), bool)
DISC = FROM_CENTER[:, None] ** 2 + FROM_CENTER**2 < (CELL / 2) ** 2


def pictures(count, seed=0, size=(64, 96), shape=SQUARE):
    """images (N, 64, 96, 3), boxes (N, 1, 4), labels (N, 1); one bright shape of a cell in each image."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 40, (count, *size, 3), dtype=np.uint8)
    labels = random.integers(0, 2, (count, 1)).astype("int32")
    boxes = np.zeros((count, 1, 4), "float32")
    for n in range(count):
        row, column = random.integers(size[0] // CELL), random.integers(size[1] // CELL)
        top, left = row * CELL, column * CELL
        images[n, top : top + CELL, left : left + CELL, labels[n, 0]][shape] = 250
        boxes[n, 0] = left, top, left + CELL, top + CELL
    return images, boxes, labels


def circle(box):
    """Returns the polygon of the circle inscribed in a box."""
    angle = np.arange(64) * 2 * np.pi / 64
    x0, y0, x1, y1 = box
    points = np.stack([np.cos(angle) * (x1 - x0) + x0 + x1, np.sin(angle) * (y1 - y0) + y0 + y1], axis=1) / 2
    return [points.round(3).ravel().tolist()]


def ground_truth(boxes, labels, scale=1.0, size=(64, 96), outline=None):
    """Returns ground truth in COCO format; image n has id 100 + n and was `scale` times larger.

    `outline` returns the polygons of a box; None: no masks.
    """
    annotations = []
    for n, (box, label) in enumerate(zip(boxes[:, 0] * scale, labels[:, 0], strict=True)):
        x0, y0, x1, y1 = box.tolist()
        annotations.append(
            {
                "id": n + 1,
                "image_id": 100 + n,
                "category_id": CATEGORIES[label]["id"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
        )
        if outline:
            annotations[-1]["segmentation"] = outline((x0, y0, x1, y1))
    images = [
        {
            "id": 100 + n,
            "height": int(size[0] * scale),
            "width": int(size[1] * scale),
            "file_name": f"{n}.png",
        }
        for n in range(len(boxes))
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


class StandInData:
    """In-memory counterpart of kgarden.build.Data."""

    categories = CATEGORIES
    train = val = ()  # no data sets on disk to be judged

    def __init__(self, folder, batch_size=4, scale=2.0, discs=False):
        self.batch_size, self.scale = batch_size, scale
        self.images, self.boxes, self.labels = pictures(10, seed=1, shape=DISC if discs else SQUARE)
        self.annotations = folder / "annotations.json"
        truth = ground_truth(self.boxes, self.labels, scale, outline=circle if discs else None)
        self.annotations.write_text(json.dumps(truth))

    def train_batches(self, start_step=0, share=(0, 1), pieces=1):
        import tensorflow as tf

        index, workers = share
        size, count = self.batch_size // (workers * pieces), 64
        images, boxes, labels = pictures(count)

        def batch(piece):
            step, piece = tf.cast(piece // pieces, tf.int32), tf.cast(piece % pieces, tf.int32)
            rows = tf.range(size) + step * self.batch_size + (index * pieces + piece) * size
            rows = rows * 5 % count
            x = {"images": tf.gather(images, rows), "size_hw": tf.tile([[64, 96]], [size, 1])}
            y = {
                "boxes": tf.gather(boxes, rows),
                "labels": tf.gather(labels, rows),
                "crowd": tf.zeros((size, 1), tf.bool),
                "image_id": tf.cast(rows, tf.int64),
            }
            return x, y

        return tf.data.Dataset.counter(start_step * pieces).map(batch)

    def identity(self):
        return {}

    def val_batches(self, limit=None):
        """Batches of 4, 4 and 2."""
        import tensorflow as tf

        x = {"images": self.images, "size_hw": np.tile(np.int32([[64, 96]]), (10, 1))}
        meta = {
            "image_id": np.arange(100, 110, dtype=np.int64),
            "original_hw": np.tile(np.int32([[64, 96]]), (10, 1)) * int(self.scale),
        }
        return tf.data.Dataset.from_tensor_slices((x, meta)).take(limit or 10).batch(4)


RECIPE = """\
name: standin
model: {name: standin}
data: {train: none, val: none, short_side_px: 64, long_side_px: 96, batch_size: 4, canvases: [[64, 96]]}
schedule:
  optimizer: {name: sgd, momentum: 0.9, weight_decay: 0.001}
  base_lr: 0.5
  warmup: {steps: 3, factor: 0.1}
  steps: 12
  ema: {decay: 0.9}
evaluate: {every: 4, batch_size: 4, pictures: 2}
"""
