"""Bilinear interpolation of maps: upsampling by an integer factor, and sampling inside boxes."""

from keras import ops

from kgarden.ops.float32 import matmul


def aligned_bilinear(x, factor):
    """Bilinear upsampling of AdelaiDet: output cell n reads input position (n - factor // 2) / factor.

    Input cell k keeps its value at n = k * factor + factor // 2; in between is linear interpolation, beyond
    the borders the nearest cell. (A resize with half-pixel centres is shifted by half an output cell.)

    Args:
        x:      (B, H, W, D).
        factor: int.
    Returns:
        (B, H * factor, W * factor, D).
    """
    return _upsampled(_upsampled(x, factor, axis=1), factor, axis=2)


def _upsampled(x, factor, axis):
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
    """Probabilities on a grid inside each box, sampled from upsampled logits.

    Equals `sigmoid(aligned_bilinear(logits, factor))` sampled bilinearly at the centres of side x side cells
    of each box, but computes only the samples. Upsampled cell n lies at (n + 0.5) * stride / factor px.

    Args:
        logits: (B, K, H, W), one map for each box.
        boxes:  (B, K, 4) px.
        stride: of the maps, px.
        factor: of the upsampling.
        side:   S.
    Returns:
        (B, K, S, S) float32.
    """
    height, width = logits.shape[2:]
    x0, y0, x1, y1 = (boxes[..., n] for n in range(4))
    rows, down = _sampling(y0, y1, height, stride=stride, factor=factor, side=side)
    columns, right = _sampling(x0, x1, width, stride=stride, factor=factor, side=side)
    at = matmul(matmul(rows, logits), ops.transpose(columns, (0, 1, 3, 2)))  # (B, K, 2 S, 2 S)
    probability = ops.sigmoid(at)
    probability = _lerp(probability[:, :, :side], probability[:, :, side:], down[..., None])
    return _lerp(probability[..., :side], probability[..., side:], right[:, :, None])


def _sampling(begin, end, length, stride, factor, side):
    """Interpolation weights of the cells of a box along one axis.

    Returns:
        (B, K, 2 S, length) weights of the map's cells at the upsampled cells before, then after, each centre;
        (B, K, S) fractional position of each centre between the two.
    """
    part = (ops.arange(side, dtype="float32") + 0.5) / side
    px = begin[..., None] + part * (end - begin)[..., None]
    last = length * factor - 1
    position = ops.clip(px * (factor / stride) - 0.5, 0.0, last)
    before = ops.floor(position)
    upsampled = ops.concatenate([before, ops.minimum(before + 1, last)], axis=-1)
    position_on_map = ops.clip((upsampled - factor // 2) / factor, 0.0, length - 1)
    cells = ops.arange(length, dtype="float32")
    return ops.maximum(1 - ops.abs(position_on_map[..., None] - cells), 0.0), position - before


def _lerp(a, b, weight_of_b):
    return a + (b - a) * weight_of_b
