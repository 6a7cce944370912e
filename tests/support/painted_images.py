"""Images with painted objects, and the paint found again after a transform.

Each object has a colour channel of its own, so that objects may overlap, be blended and be cut, and every one
of them can still be measured.
"""

import functools
import io
import json

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from kgarden.data.canvas import fitted_hw
from kgarden.data.transforms import Augmentation, masks

CANVAS = (192, 256)
SHORT, LONG = 192, 256
SPEC = {
    "image": tf.TensorSpec((None, None, 3), tf.uint8),
    "boxes": tf.TensorSpec((None, 4), tf.float32),
    "labels": tf.TensorSpec((None,), tf.int32),
    "crowd": tf.TensorSpec((None,), tf.bool),
    "target_hw": tf.TensorSpec((2,), tf.int32),
    "canvas_hw": tf.TensorSpec((2,), tf.int32),
    "short_side_px": tf.TensorSpec((), tf.int32),
    "long_side_px": tf.TensorSpec((), tf.int32),
}
MASK_SPEC = {
    "masks": tf.TensorSpec((None, 112, 112), tf.bool),
    "frames": tf.TensorSpec((None, 4), tf.float32),
}


# Without a graph, every image would pay for the conversion of the loop over its objects.
bitmaps = tf.function(
    masks.bitmaps, input_signature=[tf.TensorSpec((None,), tf.string), tf.TensorSpec((None, 4), tf.float32)]
)


def example_of(image, boxes, labels, crowd=None, pngs=None, canvas=CANVAS):
    """The example of an image as the loader gives it."""
    hw = np.array(image.shape[:2])
    boxes = np.float32(boxes).reshape(-1, 4)
    example = {
        "image": tf.constant(image),
        "boxes": tf.constant(boxes),
        "labels": tf.constant(labels, tf.int32, (len(boxes),)),
        "crowd": tf.constant(np.zeros(len(boxes), bool) if crowd is None else crowd),
        "target_hw": fitted_hw(hw, SHORT, LONG, canvas),
        "canvas_hw": tf.constant(canvas, tf.int32),
        "short_side_px": tf.constant(SHORT),
        "long_side_px": tf.constant(LONG),
    }
    if pngs is not None:
        fractions = boxes / np.float32([*hw[::-1], *hw[::-1]])
        example["masks"] = bitmaps(tf.constant(pngs, tf.string, (len(boxes),)), tf.constant(fractions))
        example["frames"] = example["boxes"]
    return example


def painted(seed, channels=(0, 1, 2), hw=None, side=(30, 90), ellipses=False):
    """A black image with one rectangle, or ellipse with its mask, in each of some channels.

    Labels are the channels.
    """
    rng = np.random.default_rng(seed)
    height, width = hw or rng.integers(100, 300, 2)
    image, boxes, pngs = np.zeros((height, width, 3), "uint8"), [], []
    for channel in channels:
        w, h = (
            int(rng.integers(min(side[0], room // 3), min(side[1], room - 1))) for room in (width, height)
        )
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        boxes.append([x, y, x + w, y + h])
        layer = Image.new("L", (int(width), int(height)))
        paint = ImageDraw.Draw(layer)
        corners = (x, y, x + w - 1, y + h - 1)
        paint.ellipse(corners, fill=1) if ellipses else paint.rectangle(corners, fill=1)
        image[..., channel] = 255 * np.asarray(layer)
        file = io.BytesIO()
        layer.save(file, "png")
        pngs.append(file.getvalue())
    return example_of(image, boxes, list(channels), pngs=pngs if ellipses else None)


def runner(entries, num_images=1, with_masks=False):
    """As `new_runner`; equal arguments share one graph."""
    return shared_runner(json.dumps(entries), num_images, with_masks)


@functools.lru_cache(32)
def shared_runner(entries, num_images, with_masks):
    return new_runner(json.loads(entries), num_images, with_masks)


def new_runner(entries, num_images=1, with_masks=False):
    """(examples, seed) -> what an augmentation makes of them, as numpy; the graph is made once."""
    augmentation = Augmentation(entries, masks=with_masks)
    spec = SPEC | (MASK_SPEC if with_masks else {})

    @tf.function(input_signature=[[spec] * num_images, tf.TensorSpec((2,), tf.int64)], autograph=False)
    def run(examples, seed):
        return augmentation(lambda k: examples[k], seed)

    def numpy_of(examples, seed):
        examples = [{key: one[key] for key in spec} for one in examples]
        result = run(examples, tf.constant([seed, 11], tf.int64))
        return {key: value.numpy() for key, value in result.items()}

    return numpy_of


def measured(channel):
    """xyxy of the paint in one channel with fractions of pixels, None if there is none.

    A pixel at the edge counts as far as it is painted; paint blended with black counts relative to its peak.
    """
    paint = channel.astype("float64")
    if paint.max() < 16:
        return None
    paint /= paint.max()
    ends = []
    for axis in (0, 1):  # along x, then along y
        profile = paint.max(axis=axis)
        inner = np.flatnonzero(profile > 0.97)
        before, after = profile[: inner[0]], profile[inner[-1] + 1 :]
        ends.append((inner[0] - before.sum(), inner[-1] + 1 + after.sum()))
    (x0, x1), (y0, y1) = ends
    return np.array([x0, y0, x1, y1])


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def mask_on_image(bits, box, hw):
    """A bitmap over its box, drawn at the size of the image.   (H, W) bool"""
    x, y = np.arange(hw[1]) + 0.5, np.arange(hw[0]) + 0.5
    side = bits.shape[0]
    column = np.floor((x - box[0]) / (box[2] - box[0]) * side).astype(int)
    row = np.floor((y - box[1]) / (box[3] - box[1]) * side).astype(int)
    inside = ((row >= 0) & (row < side))[:, None] & ((column >= 0) & (column < side))[None]
    return bits[row.clip(0, side - 1)[:, None], column.clip(0, side - 1)[None]] & inside
