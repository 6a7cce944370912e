"""Mask targets: which points are supervised by which instance, and per-cell semantic labels."""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.box_masks import masks_on_grid
from kgarden.ops.gather import gather
from kgarden.structures import BOXES, LABELS, MASKS, truth_is_valid
from kgarden.targets.assign_result import BACKGROUND, IGNORED, smallest


class Instances(NamedTuple):
    """Places that learn a mask.

    Attributes:
        place:  (B, N) int32 row of the dense head's places, 0 where not valid.
        object: (B, N) int32 row of the ground truth, 0 where not valid.
        valid:  (B, N) bool.
    """

    place: object
    object: object
    valid: object


def best_of_each(matched, score, wanted, count):
    """An even share of `count` places for every object, its best ones.

    As AdelaiDet with TOPK_PROPOSALS_PER_IM: max(count // objects, 1) places of each object that has any. Of
    more objects than `count`, those with the best first place.

    Args:
        matched: (B, A) int32 object of each place, negative: none.
        score:   (B, A) in [0, 1], by which an object's places are ranked.
        wanted:  (B, M) bool, which objects count.
        count:   N.
    Returns:
        Instances of N rows, which depend on this image alone.
    """
    objects, places = wanted.shape[1], matched.shape[1]
    each = min(count, places)
    own = matched[:, None] == ops.arange(objects, dtype="int32")[:, None]
    own = own & wanted[..., None]  # (B, M, A)
    best, place = ops.top_k(ops.where(own, score[:, None], -1.0), each)  # (B, M, each)
    turn = ops.arange(each, dtype="int32")
    having = ops.sum(ops.cast(best[..., 0] >= 0, "int32"), axis=1)
    share = ops.maximum(count // ops.maximum(having, 1), 1)
    kept = (best >= 0) & (turn < share[:, None, None])

    # first all first places, then all second places: no object misses its first one for another's second
    order = ops.where(kept, 0.5 * best - ops.cast(turn, "float32"), -float("inf"))
    order = ops.reshape(order, (-1, objects * each))
    found, rows = ops.top_k(order, min(count, objects * each))
    valid = found > -float("inf")
    rows = ops.where(valid, ops.cast(rows, "int32"), 0)
    place = gather(ops.reshape(ops.cast(place, "int32"), (-1, objects * each)), rows)
    return Instances(
        _padded(ops.where(valid, place, 0), count), _padded(rows // each, count), _padded(valid, count)
    )


def drawn(matched, wanted, count, random=None):
    """Up to `count` places of an image that have an object, by chance where there are more.

    As AdelaiDet with MAX_PROPOSALS, which bounds the number in all images of a device.

    Args:
        matched: (B, A) int32 object of each place, negative: none.
        wanted:  (B, M) bool, which objects count.
        count:   N, at most A.
        random:  function n -> (B, n) uniform numbers in [0, 1); None: the first places are kept.
    Returns:
        Instances of N rows.
    """
    places = matched.shape[1]
    row = ops.maximum(matched, 0)
    having = (matched >= 0) & gather(wanted, row)
    order = ops.zeros(ops.shape(matched)) if random is None or count >= places else random(places)
    found, place = ops.top_k(ops.where(having, order, -1.0), min(count, places))
    valid, place = found >= 0, ops.cast(place, "int32")
    own = gather(row, place)
    return Instances(ops.where(valid, place, 0), ops.where(valid, own, 0), valid)


def _padded(x, count):
    return ops.pad(x, ((0, 0), (0, count - x.shape[1])))


def semantic_labels(y, known, size, stride):
    """The class at every cell of a grid: that of the smallest object whose mask covers it.

    Args:
        y:      ground truth with masks.
        known:  (B, M) bool, objects with a mask.
        size:   (H, W) of the grid; stride: px of its cells.
    Returns:
        (B, H * W) int32, BACKGROUND, or IGNORED in the box of an object without a mask.
    """
    flat = (-1, y[LABELS].shape[1], size[0] * size[1])
    bitmaps, boxes = y[MASKS], y[BOXES]
    share = ops.mean(ops.cast(bitmaps, "float32"), axis=(2, 3))
    covered = ops.reshape(masks_on_grid(bitmaps, boxes, size, stride), flat) & known[..., None]
    owner = smallest(covered, (box_ops.area(boxes) * share)[..., None])
    label = gather(ops.cast(y[LABELS], "int32"), ops.maximum(owner, 0))

    inside = ops.reshape(masks_on_grid(ops.ones_like(bitmaps[..., :1, :1]), boxes, size, stride), flat)
    unknown = ops.any(inside & (truth_is_valid(y) & ~known)[..., None], axis=1)
    return ops.where(owner >= 0, label, ops.where(unknown, IGNORED, BACKGROUND))
