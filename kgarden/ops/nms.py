"""Greedy non-maximum suppression: exact, batched, with static shapes, on every backend.

Boxes are processed in blocks, best score first. A block is compared with the boxes kept so far and then
resolved within itself; the loop ends once every image has `max_output` boxes. The cost grows with the number
of kept boxes, not with the square of the input. Classes are separated by labels: offsetting the boxes of each
class would cost float32 precision.
"""

import numpy as np
from keras import ops

from kgarden.ops.boxes import area
from kgarden.ops.float32 import quotient
from kgarden.ops.gather import gather

BLOCK, SMALL_BLOCK = 256, 128  # boxes per block; the smaller one if max_output does not exceed it


def nms(boxes, scores, valid, iou_threshold, max_output, labels=None):
    """Greedy NMS: keeps the highest-scoring boxes that do not overlap a kept one.

    A kept box suppresses a box of lower score (among equal scores: of higher index) if their IoU is
    strictly greater than the threshold and, with `labels`, both have the same label.

    Args:
        boxes:         (B, N, 4) xyxy, px; N static.
        scores:        (B, N); rows that are not finite are invalid.
        valid:         (B, N) bool, False on padding.
        iou_threshold: Python number.
        max_output:    K, length of the result.
        labels:        (B, N) int, or None to suppress across classes.
    Returns:
        indices: (B, K) int32 rows of `boxes`, best score first, 0 where not valid.
        valid:   (B, K) bool.
        No gradient flows through either.
    """
    if boxes.shape[1] == 0:
        nothing = ops.zeros((ops.shape(boxes)[0], max_output), dtype="int32")
        return nothing, ops.cast(nothing, "bool")
    size = min(SMALL_BLOCK if max_output <= SMALL_BLOCK else BLOCK, boxes.shape[1])
    order, available, walked = _sort(boxes, scores, valid, labels=labels, size=size)
    threshold = _float32_not_above(iou_threshold)
    batch = ops.shape(order)[0]

    def unfinished(i, kept, count):
        return ops.any((count < max_output) & (i * size < available))

    def walk(i, kept, count):
        block = {name: ops.take(array, i, axis=1) for name, array in walked.items()}
        earlier = {name: _rows(array, kept[:, :max_output]) for name, array in walked.items()}
        is_kept = ops.arange(max_output, dtype="int32") < ops.expand_dims(count, 1)  # (B, K)
        free = i * size + ops.arange(size, dtype="int32") < ops.expand_dims(available, 1)  # (B, S)
        free = free & ~ops.any(_conflict(block, earlier, threshold) & ops.expand_dims(is_kept, 1), axis=2)
        keep = ops.cast(_resolve(free, _conflict(block, block, threshold)), "int32")

        slot = ops.expand_dims(count, 1) + ops.cumsum(keep, axis=1) - 1
        slot = ops.where(keep == 1, ops.minimum(slot, max_output), max_output)  # the last slot is discarded
        row = ops.broadcast_to(i * size + ops.arange(size, dtype="int32"), ops.shape(slot))
        kept = _write(kept, slot, row)
        return i + 1, kept, ops.minimum(count + ops.cast(ops.sum(keep, axis=1), "int32"), max_output)

    kept = ops.zeros((batch, max_output + 1), dtype="int32")
    start = (0, kept, ops.zeros((batch,), dtype="int32"))
    _, kept, count = ops.while_loop(unfinished, walk, start)
    is_kept = ops.arange(max_output, dtype="int32") < ops.expand_dims(count, 1)
    indices = gather(order, kept[:, :max_output])
    return ops.where(is_kept, indices, 0), is_kept


def _sort(boxes, scores, valid, labels, size):
    """Sort by descending score, valid boxes first, and split into blocks of S = `size`.

    Returns:
        order:     (B, N) int32.
        available: (B,) int32, number of valid boxes.
        walked:    {"boxes": (B, blocks, S, 4), "area": (B, blocks, S), "labels": (B, blocks, S)}.
    """
    boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)
    count = boxes.shape[1]
    usable = valid & ops.isfinite(scores)
    order = ops.cast(ops.top_k(ops.where(usable, scores, float("-inf")), count)[1], "int32")
    available = ops.sum(ops.cast(usable, "int32"), axis=1)
    missing = -count % size

    def cut(array):
        array = ops.pad(array, [[0, 0], [0, missing]] + [[0, 0]] * (len(array.shape) - 2))
        return ops.reshape(array, (-1, (count + missing) // size, size, *array.shape[2:]))

    boxes = gather(ops.cast(boxes, "float32"), order)
    walked = {"boxes": cut(boxes), "area": cut(area(boxes))}
    if labels is not None:
        walked["labels"] = cut(gather(labels, order))
    return order, available, walked


def _conflict(a, b, threshold):
    """Pairs of which one suppresses the other.   (B, S, ...), (B, T, ...) -> (B, S, T) bool."""
    a = {name: ops.expand_dims(array, 2) for name, array in a.items()}
    b = {name: ops.expand_dims(array, 1) for name, array in b.items()}
    left, top, right, bottom = ops.unstack(a["boxes"], axis=-1)
    left_b, top_b, right_b, bottom_b = ops.unstack(b["boxes"], axis=-1)
    width = ops.maximum(ops.minimum(right, right_b) - ops.maximum(left, left_b), 0.0)
    height = ops.maximum(ops.minimum(bottom, bottom_b) - ops.maximum(top, top_b), 0.0)
    common = width * height
    # Empty boxes give 0 / 0 = NaN, which compares False.
    conflict = quotient(common, a["area"] + b["area"] - common) > threshold
    if "labels" in a:
        conflict = conflict & (a["labels"] == b["labels"])
    return conflict


def _resolve(free, conflict):
    """Greedy suppression within a block, by fixed-point iteration.

    Every round decides at least one more box, usually all but a few; the fixed point is the greedy result.

    Args:
        free:     (B, S) bool, not suppressed by earlier blocks.
        conflict: (B, S, S) bool, symmetric.
    Returns:
        (B, S) bool.
    """
    rank = ops.arange(free.shape[1])
    by_earlier = conflict & (rank < ops.expand_dims(rank, 1))

    def settle(keep):
        return free & ~ops.any(by_earlier & ops.expand_dims(keep, 1), axis=2)

    def again(keep, _):
        settled = settle(keep)
        return settled, ops.any(settled != keep)

    # The flag is loop state of its own: carrying the previous `keep` instead is converted wrongly by tf2onnx.
    return ops.while_loop(lambda _, changed: changed, again, again(free, None))[0]


def _rows(blocks, rows):
    """Rows (B, K) of an array (B, blocks, S, ...)."""
    flat = ops.reshape(blocks, (-1, blocks.shape[1] * blocks.shape[2], *blocks.shape[3:]))
    return gather(flat, rows)


def _write(buffer, slot, value):
    """buffer[b, slot[b, s]] = value[b, s]."""
    image = ops.broadcast_to(ops.arange(ops.shape(slot)[0], dtype="int32")[:, None], ops.shape(slot))
    where = ops.reshape(ops.stack([image, slot], axis=-1), (-1, 2))
    return ops.scatter_update(buffer, where, ops.reshape(value, (-1,)))


def _float32_not_above(number):
    """The largest float32 <= `number`: for float32 x, x > result exactly if x > number."""
    nearest = np.float32(number)
    return float(nearest if float(nearest) <= number else np.nextafter(nearest, np.float32(-np.inf)))
