"""Instance masks as bitmaps (112 x 112) over frames: decoding, resampling and cropping.

A bitmap is sampled once, from the full-size mask, over the object's box in the stored image, its frame.
Crops, scaling and shifts transform the frame alone, flips reverse the bitmap. At the very end each mask is
resampled over the final box. An empty bitmap means that the object has no mask.
"""

import tensorflow as tf

from kgarden.structures import MASK_SIDE, MASKS
from tfrecords.images import decode_mask

FRAMES = "frames"


def bitmaps(pngs, boxes):
    """Sample full-size masks at the centres of the bitmap cells of each box.

    Args:
        pngs:  (N,) string, one-channel PNG of the whole image, or "" for an object without a mask.
        boxes: (N, 4) xyxy, fractions of width and height.
    Returns:
        (N, 112, 112) bool.
    """

    def one(png, box):
        whole = decode_mask(png)
        size = tf.cast(tf.gather(tf.shape(whole), [1, 0, 1, 0]), tf.float32)
        rows, columns = _cells(box * size)
        rows = tf.clip_by_value(tf.cast(tf.floor(rows), tf.int32), 0, tf.shape(whole)[0] - 1)
        columns = tf.clip_by_value(tf.cast(tf.floor(columns), tf.int32), 0, tf.shape(whole)[1] - 1)
        return tf.gather(tf.gather(whole, rows), columns, axis=1) > 0

    def one_or_none(png_and_box):
        png, box = png_and_box
        none = tf.zeros((MASK_SIDE, MASK_SIDE), bool)
        return tf.cond(tf.strings.length(png) > 0, lambda: one(png, box), lambda: none)

    return tf.map_fn(one_or_none, (pngs, boxes), fn_output_signature=tf.TensorSpec((MASK_SIDE,) * 2, tf.bool))


def resample_masks(bits, frames, boxes):
    """Resample bitmaps over other boxes, nearest neighbour.   (N, 112, 112) bool

    Args:
        bits:   (N, 112, 112) bool over `frames`, (N, 4) xyxy px.
        boxes:  (N, 4) xyxy px.
    """
    rows, columns = _cells(boxes)  # (N, 112) px
    row, row_known = _cell_of(rows, frames[:, 1::2])
    column, column_known = _cell_of(columns, frames[:, 0::2])
    bits = tf.gather(bits, row, axis=1, batch_dims=1)
    bits = tf.gather(tf.transpose(bits, [0, 2, 1]), column, axis=1, batch_dims=1)
    return tf.transpose(bits, [0, 2, 1]) & row_known[:, :, None] & column_known[:, None, :]


def closed_up(example, clipped, inside):
    """Tight boxes and visible fractions of cropped objects with masks.

    A side of the box moves to the mask's new extent only if the crop changed the extent on that side; else it
    stays, since the box is more exact than the bitmap.

    Args:
        example: boxes, masks, frames, before the crop.
        clipped: (N, 4) boxes after it.
        inside:  (N,) visible fraction of each box.
    Returns:
        (N, 4) boxes, (N,) visible fraction of each mask, or of the box where there is no mask.
    """
    bits, frames = example[MASKS], example[FRAMES]
    rows, columns = _cells(frames)
    low, high = clipped[:, None, :2], clipped[:, None, 2:]
    row_left = (rows[..., None] > low[..., 1:]) & (rows[..., None] < high[..., 1:])
    column_left = (columns[..., None] > low[..., :1]) & (columns[..., None] < high[..., :1])
    left = bits & row_left & tf.transpose(column_left, [0, 2, 1])
    return left_of(example, left, clipped, inside)


def left_of(example, left, boxes, inside):
    """Boxes around the visible part of bitmaps, and its fraction. See `closed_up`.

    Args:
        left: (N, 112, 112) bool, cells of the example's masks that are still visible.
    """
    before, after = _extent(example[MASKS]), _extent(left)
    frames = example[FRAMES]
    side = tf.tile(frames[:, 2:] - frames[:, :2], [1, 2])
    extent = tf.tile(frames[:, :2], [1, 2]) + after * side / MASK_SIDE
    tight = tf.concat(
        [tf.maximum(boxes[:, :2], extent[:, :2]), tf.minimum(boxes[:, 2:], extent[:, 2:])], axis=1
    )
    visible, total = _count(left), _count(example[MASKS])
    changed = (before != after) & (visible > 0)[:, None]
    fraction = tf.where(total > 0, tf.math.divide_no_nan(visible, total), inside)
    return tf.where(changed, tight, boxes), fraction


def seen_at(image, frames):
    """Sample a map of the whole image at the cells of frames.   (N, 112, 112) bool

    Args:
        image:  (H, W) bool; False outside of it.
        frames: (N, 4) xyxy px.
    """
    height, width = tf.unstack(tf.shape(image))
    rows, columns = (tf.cast(tf.floor(side), tf.int32) for side in _cells(frames))
    known = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = tf.clip_by_value(rows, 0, height - 1), tf.clip_by_value(columns, 0, width - 1)
    pixel = rows[:, :, None] * width + columns[:, None, :]
    return tf.gather(tf.reshape(image, [-1]), pixel) & known


def painted(bits, frames, size_hw):
    """Union of all masks on the image.   (H, W) bool

    Painted one by one, each over its own frame, so that memory does not grow with N.
    """
    height, width = size_hw[0], size_hw[1]

    def add(image, bits_and_frame):
        one, frame = bits_and_frame
        low = tf.cast(tf.floor(frame[:2]), tf.int32)
        high = tf.cast(tf.math.ceil(frame[2:]), tf.int32)
        left, top = tf.clip_by_value(low[0], 0, width), tf.clip_by_value(low[1], 0, height)
        right, bottom = tf.clip_by_value(high[0], left, width), tf.clip_by_value(high[1], top, height)
        rows = tf.cast(tf.range(top, bottom), tf.float32) + 0.5
        columns = tf.cast(tf.range(left, right), tf.float32) + 0.5
        row, row_known = _cell_of(rows[None], frame[None, 1::2])
        column, column_known = _cell_of(columns[None], frame[None, 0::2])
        part = tf.gather(tf.gather(one, row[0]), column[0], axis=1)
        part &= row_known[0][:, None] & column_known[0][None, :]
        return image | tf.pad(part, [[top, height - bottom], [left, width - right]])

    return tf.foldl(add, (bits, frames), tf.zeros(size_hw, bool))


def _cells(boxes):
    """Centres of the cells of boxes: (..., 112) along y, (..., 112) along x, px."""
    part = (tf.range(MASK_SIDE, dtype=tf.float32) + 0.5) / MASK_SIDE
    x0, y0, x1, y1 = (side[..., None] for side in tf.unstack(boxes, axis=-1))
    return y0 + part * (y1 - y0), x0 + part * (x1 - x0)


def _cell_of(px, span):
    """Cell of a frame that holds a coordinate, and whether the coordinate is inside the frame.

    Args:
        px:   (N, P); span: (N, 2), start and end of the frame.
    Returns:
        (N, P) int32, (N, P) bool.
    """
    begin, end = span[:, :1], span[:, 1:]
    cell = tf.floor(tf.math.divide_no_nan((px - begin) * MASK_SIDE, end - begin))
    known = (px >= begin) & (px < end)
    return tf.clip_by_value(tf.cast(cell, tf.int32), 0, MASK_SIDE - 1), known


def _extent(bits):
    """Bounding box of the True cells, xyxy; zeros if there are none.   (N, 4) float32"""
    sides = []
    for axis in (1, 2):  # occupied columns, then rows
        occupied = tf.cast(tf.reduce_any(bits, axis=axis), tf.int32)
        any_occupied = tf.reduce_max(occupied, axis=1)
        first = tf.argmax(occupied, axis=1, output_type=tf.int32)
        last = MASK_SIDE - tf.argmax(occupied[:, ::-1], axis=1, output_type=tf.int32)
        sides.append((first * any_occupied, last * any_occupied))
    (x0, x1), (y0, y1) = sides
    return tf.cast(tf.stack([x0, y0, x1, y1], axis=1), tf.float32)


def _count(bits):
    return tf.reduce_sum(tf.cast(bits, tf.float32), axis=[1, 2])
