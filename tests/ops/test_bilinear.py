"""Maps read between their cells, against loops over cells."""

import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from kgarden.ops.bilinear import aligned_bilinear, sigmoid_over_boxes


def enlarged_line(line, factor):
    """AdelaiDet's way: one cell more at the end, ends on ends, then shifted by half a factor."""
    longer = np.append(line, line[-1])
    at = np.linspace(0, len(line), len(line) * factor + 1)  # corners on corners
    between = np.interp(at, np.arange(len(longer)), longer)
    return np.concatenate([[between[0]] * (factor // 2), between])[: len(line) * factor]


def enlarged(x, factor):
    """One map (H, W)."""
    x = np.stack([enlarged_line(column, factor) for column in x.T], axis=1)
    return np.stack([enlarged_line(row, factor) for row in x])


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(3, 5), (1, 4)])
def test_enlarging_agrees_with_loops(factor, size):
    x = np.random.default_rng(factor).normal(size=(2, *size, 3)).astype("float32")
    got = ops.convert_to_numpy(aligned_bilinear(ops.convert_to_tensor(x), factor))
    for image in range(2):
        for depth in range(3):
            want = enlarged(x[image, ..., depth].astype("float64"), factor)
            np.testing.assert_allclose(got[image, ..., depth], want, atol=1e-5)


def test_old_cells_keep_their_values_and_a_slope_stays_a_slope():
    x = np.broadcast_to(np.arange(6.0)[:, None], (6, 4)).astype("float32")[None, ..., None]
    got = ops.convert_to_numpy(aligned_bilinear(x, 4))[0, :, 0, 0]
    np.testing.assert_allclose(got[2::4], np.arange(6))
    np.testing.assert_allclose(np.diff(got[2:-2]), 0.25)


def over_boxes(logits, boxes, stride, factor, side):
    """One cell of one box after the other."""
    found = np.zeros((*logits.shape[:2], side, side))
    for image, box in np.ndindex(*logits.shape[:2]):
        large = 1 / (1 + np.exp(-enlarged(logits[image, box].astype("float64"), factor)))
        x0, y0, x1, y1 = boxes[image, box].astype("float64")
        for row, column in np.ndindex(side, side):
            place = []
            for begin, end, part, length in ((y0, y1, row, 0), (x0, x1, column, 1)):
                px = begin + (part + 0.5) / side * (end - begin)
                place.append(np.clip(px / (stride / factor) - 0.5, 0, large.shape[length] - 1))
            (top, left), total = np.floor(place).astype(int), 0.0
            for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                share = max(1 - abs(place[0] - y), 0) * max(1 - abs(place[1] - x), 0)
                if share:
                    total += share * large[y, x]
            found[image, box, row, column] = total
    return found


@pytest.mark.parametrize("factor, stride", [(1, 8), (2, 8), (4, 8), (4, 4)])
def test_reading_over_boxes_agrees_with_loops(factor, stride):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 3, 5, 7)).astype("float32")
    wide, high = 7 * stride, 5 * stride
    boxes = np.float32(
        [
            [[0, 0, wide, high], [3.3, 2.7, 11.1, 9.4], [5, 5, 5.01, 5.01]],
            [[wide - 4, high - 9, wide, high], [0, 0, 0, 0], [2, 0, 30, 1]],
        ]
    )
    got = sigmoid_over_boxes(logits, boxes, stride, factor, side=9)
    want = over_boxes(logits, boxes, stride, factor, side=9)
    np.testing.assert_allclose(ops.convert_to_numpy(got), want, atol=2e-5)


def test_gradients_of_enlarging():
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(1, 3, 4, 2)), rng.normal(size=(1, 12, 16, 2)).astype("float32")
    gradient = value_and_gradients(lambda x: ops.sum(aligned_bilinear(x, 4) * weight), [x])[1][0]
    for where in [(0, 0, 0, 0), (0, 1, 2, 1), (0, 2, 3, 0)]:
        one = np.zeros_like(x)
        one[where] = 1.0
        want = sum((enlarged(one[0, ..., d], 4) * weight[0, ..., d]).sum() for d in range(2))
        np.testing.assert_allclose(gradient[where], want, rtol=1e-5)
