"""Bilinear interpolation of maps: upsampling by a whole factor, and sampling inside boxes."""

from keras import ops


def aligned_bilinear(x, factor):
    """Maps enlarged so that an enlarged cell n reads the old place (n - factor // 2) / factor.

    The old cells keep their values at n = k * factor + factor // 2, which are their centres counted in whole
    cells; in between is a straight line, at the borders the nearest cell. AdelaiDet enlarges so. (A resize
    with half-pixel centres reads half an enlarged cell further on.)

    Args:
        x:      (B, H, W, D).
        factor: whole number.
    Returns:
        (B, H * factor, W * factor, D).
    """
    return _enlarged(_enlarged(x, factor, axis=1), factor, axis=2)


def _enlarged(x, factor, axis):
    if factor == 1:
        return x
    length, shape = x.shape[axis], list(x.shape)
    following = ops.concatenate([_cut(x, 1, length, axis), _cut(x, length - 1, length, axis)], axis=axis)
    steps = [x + (following - x) * (step / factor) for step in range(factor)]
    shape[0], shape[axis] = -1, length * factor
    between = ops.reshape(ops.stack(steps, axis=axis + 1), shape)
    before = [_cut(x, 0, 1, axis)] * (factor // 2)
    return ops.concatenate([*before, _cut(between, 0, length * factor - factor // 2, axis)], axis=axis)


def _cut(x, begin, end, axis):
    return x[(slice(None),) * axis + (slice(begin, end),)]


def sigmoid_over_boxes(logits, boxes, stride, factor, side):
    """Probabilities in the frames of boxes: maps enlarged, through a sigmoid, read where the boxes lie.

    As `sigmoid(aligned_bilinear(logits, factor))` read bilinearly at the centres of side x side cells of each
    box; but only what is read is computed. Enlarged cell n lies at (n + 0.5) * stride / factor px.

    Args:
        logits: (B, K, H, W), one map for each box.
        boxes:  (B, K, 4) px.
        stride: px for one cell of the maps.
        factor: by which they are enlarged.
        side:   S.
    Returns:
        (B, K, S, S) float32.
    """
    height, width = logits.shape[2:]
    x0, y0, x1, y1 = (boxes[..., n] for n in range(4))
    rows, down = _readings(y0, y1, height, stride=stride, factor=factor, side=side)
    columns, right = _readings(x0, x1, width, stride=stride, factor=factor, side=side)
    at = ops.matmul(ops.matmul(rows, logits), ops.transpose(columns, (0, 1, 3, 2)))  # (B, K, 2 S, 2 S)
    found = ops.sigmoid(at)
    found = _mixed(found[:, :, :side], found[:, :, side:], down[..., None])
    return _mixed(found[..., :side], found[..., side:], right[:, :, None])


def _readings(begin, end, length, stride, factor, side):
    """What the cells of a box read along one axis.

    Returns:
        (B, K, 2 S, length) weights of the map's cells at the enlarged cells before, then after, each centre;
        (B, K, S) how far each centre lies from the one before to the one after.
    """
    part = (ops.arange(side, dtype="float32") + 0.5) / side
    px = begin[..., None] + part * (end - begin)[..., None]
    last = length * factor - 1
    place = ops.clip(px * (factor / stride) - 0.5, 0.0, last)
    before = ops.floor(place)
    enlarged = ops.concatenate([before, ops.minimum(before + 1, last)], axis=-1)
    place_on_map = ops.clip((enlarged - factor // 2) / factor, 0.0, length - 1)
    cells = ops.arange(length, dtype="float32")
    return ops.maximum(1 - ops.abs(place_on_map[..., None] - cells), 0.0), place - before


def _mixed(a, b, share_of_b):
    return a + (b - a) * share_of_b
