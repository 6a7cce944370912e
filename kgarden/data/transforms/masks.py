"""Instance masks as bitmaps (112 x 112) over frames: decodes, resamples and crops them.

A bitmap is sampled once, from the full-size mask, over the box that the object has in the stored image.
Cuts, scales and shifts move the frame alone, mirrors turn the bitmap over. At the very end each mask is
sampled over the box that is left. A bitmap without any cell is "no mask known".
"""

import tensorflow as tf

from kgarden.structures import MASK_SIDE, MASKS

FRAMES = "frames"


def bitmaps(pngs, boxes):
    """Full-size masks -> what they are at the centres of the cells of each box.

    Args:
        pngs:  (N,) string, one-channel PNG of the whole image, or "" for an object without a mask.
        boxes: (N, 4) xyxy, fractions of width and height.
    Returns:
        (N, 112, 112) bool.
    """

    def one(png, box):
        whole = tf.io.decode_png(png, channels=1)
        size = tf.cast(tf.gather(tf.shape(whole), [1, 0, 1, 0]), tf.float32)
        rows, columns = _cells(box * size)
        rows = tf.clip_by_value(tf.cast(tf.floor(rows), tf.int32), 0, tf.shape(whole)[0] - 1)
        columns = tf.clip_by_value(tf.cast(tf.floor(columns), tf.int32), 0, tf.shape(whole)[1] - 1)
        return tf.gather(tf.gather(whole[..., 0], rows), columns, axis=1) > 0

    def one_or_none(png_and_box):
        png, box = png_and_box
        none = tf.zeros((MASK_SIDE, MASK_SIDE), bool)
        return tf.cond(tf.strings.length(png) > 0, lambda: one(png, box), lambda: none)

    return tf.map_fn(one_or_none, (pngs, boxes), fn_output_signature=tf.TensorSpec((MASK_SIDE,) * 2, tf.bool))


def resample_masks(bits, frames, boxes):
    """Resamples bitmaps over other boxes (nearest bitmap cell).   (N, 112, 112) bool

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
    """What a cut leaves of objects with masks.

    A side of the box moves to the mask's new extent only if the cut changed the extent on that side; else it
    stays where it was, since the box knows it better than a bitmap does.

    Args:
        example: boxes, masks, frames, before the cut.
        clipped: (N, 4) boxes after it.
        inside:  (N,) how much of each box is left.
    Returns:
        (N, 4) boxes, (N,) how much of each mask is left, of the box where there is no mask.
    """
    bits, frames = example[MASKS], example[FRAMES]
    rows, columns = _cells(frames)
    low, high = clipped[:, None, :2], clipped[:, None, 2:]
    row_left = (rows[..., None] > low[..., 1:]) & (rows[..., None] < high[..., 1:])
    column_left = (columns[..., None] > low[..., :1]) & (columns[..., None] < high[..., :1])
    left = bits & row_left & tf.transpose(column_left, [0, 2, 1])
    return left_of(example, left, clipped, inside)


def left_of(example, left, boxes, inside):
    """Boxes around what is left of bitmaps, and how much that is. See `closed_up`.

    Args:
        left: (N, 112, 112) bool, cells of the example's masks that are still seen.
    """
    before, after = _extent(example[MASKS]), _extent(left)
    frames = example[FRAMES]
    side = tf.tile(frames[:, 2:] - frames[:, :2], [1, 2])
    around = tf.tile(frames[:, :2], [1, 2]) + after * side / MASK_SIDE
    closer = tf.concat(
        [tf.maximum(boxes[:, :2], around[:, :2]), tf.minimum(boxes[:, 2:], around[:, 2:])], axis=1
    )
    counted, total = _count(left), _count(example[MASKS])
    changed = (before != after) & (counted > 0)[:, None]
    share = tf.where(total > 0, tf.math.divide_no_nan(counted, total), inside)
    return tf.where(changed, closer, boxes), share


def seen_at(image, frames):
    """A map of the whole image, read at the cells of frames.   (N, 112, 112) bool

    Args:
        image: (H, W) bool; False outside of it.
        frames:  (N, 4) xyxy px.
    """
    height, width = tf.unstack(tf.shape(image))
    rows, columns = (tf.cast(tf.floor(side), tf.int32) for side in _cells(frames))
    known = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = tf.clip_by_value(rows, 0, height - 1), tf.clip_by_value(columns, 0, width - 1)
    place = rows[:, :, None] * width + columns[:, None, :]
    return tf.gather(tf.reshape(image, [-1]), place) & known


def painted(bits, frames, size_hw):
    """All masks together on one image.   (H, W) bool

    One after the other, each over its own frame alone: so little memory is needed, whatever N is.
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
    """Which cell of a frame holds a coordinate, and whether one does.

    Args:
        px:   (N, P); span: (N, 2) where the frame begins and ends.
    Returns:
        (N, P) int32, (N, P) bool.
    """
    begin, end = span[:, :1], span[:, 1:]
    cell = tf.floor(tf.math.divide_no_nan((px - begin) * MASK_SIDE, end - begin))
    known = (px >= begin) & (px < end)
    return tf.clip_by_value(tf.cast(cell, tf.int32), 0, MASK_SIDE - 1), known


def _extent(bits):
    """xyxy in cells of what is set; zeros if nothing is.   (N, 4) float32"""
    sides = []
    for axis in (1, 2):  # columns that hold something, then rows
        held = tf.cast(tf.reduce_any(bits, axis=axis), tf.int32)
        any_held = tf.reduce_max(held, axis=1)
        first = tf.argmax(held, axis=1, output_type=tf.int32)
        last = MASK_SIDE - tf.argmax(held[:, ::-1], axis=1, output_type=tf.int32)
        sides.append((first * any_held, last * any_held))
    (x0, x1), (y0, y1) = sides
    return tf.cast(tf.stack([x0, y0, x1, y1], axis=1), tf.float32)


def _count(bits):
    return tf.reduce_sum(tf.cast(bits, tf.float32), axis=[1, 2])
