"""Bitmaps in the frames of boxes, seen on a grid."""

import numpy as np
import pytest
from keras import ops
from support import reference_loops as loops

from kgarden.ops.box_masks import covered_area, masks_on_grid, mass_centers
from kgarden.structures import MASK_SIDE


@pytest.mark.parametrize("stride", [2, 4, 8, 2.5])
def test_agrees_with_loops(stride):
    rng = np.random.default_rng(1)
    bitmaps = rng.random((2, 3, 10, 10)) < 0.5
    boxes = np.float32(
        [
            [[3.1, 4.2, 60.3, 31.7], [0, 0, 40, 40], [0, 0, 0, 0]],
            [[10, 10, 12.5, 90], [-5.5, -7.1, 30.2, 20.4], [30, 20, 41.3, 27.9]],
        ]
    )
    got = ops.convert_to_numpy(masks_on_grid(bitmaps, boxes, (9, 13), stride))
    np.testing.assert_array_equal(got, loops.masks_on_grid(bitmaps, boxes, (9, 13), stride))
    assert got.any() and not got[0, 2].any()


def test_disc_is_resampled_at_its_position():
    """A bitmap sampled at the centres of its cells, see kgarden.structures, and laid back on the pixels."""
    y, x = np.mgrid[0:96, 0:128] + 0.5
    center, radius = (70.3, 41.8), 27.4
    box = np.float32([center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius])
    part = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE * 2 - 1
    bitmap = np.hypot(part[:, None], part[None]) < 1
    got = ops.convert_to_numpy(masks_on_grid(bitmap[None, None], box[None, None], (96, 128), 1))[0, 0]
    disc = np.hypot(x - center[0], y - center[1]) < radius
    assert (got & disc).sum() / (got | disc).sum() > 0.985
    shifted = np.roll(got, 1, axis=1)
    assert (shifted & disc).sum() / (shifted | disc).sum() < 0.975  # half a cell would be seen


def test_covered_area_of_another_box_agrees_with_loops():
    rng = np.random.default_rng(2)
    bitmaps = rng.random((2, 3, 10, 10)) < 0.6
    boxes = np.float32(rng.uniform(0, 30, (2, 3, 4)) + [0, 0, 45, 45])
    others = boxes + np.float32(rng.uniform(-7, 7, (2, 3, 4)))
    others[1, 2] = [500, 500, 510, 520]  # nothing in common
    got = ops.convert_to_numpy(covered_area(bitmaps, boxes, others, 7))
    for image, one in np.ndindex(2, 3):
        want = loops.covered_area(bitmaps[image, one], boxes[image, one], others[image, one], 7)
        np.testing.assert_allclose(got[image, one], want, atol=2e-5)
    assert got.max() > 0.9 and not got[1, 2].any()


def test_covered_area_of_the_same_box_and_of_empty_boxes():
    bitmap = np.random.default_rng(0).random((1, 12, 12)) < 0.5
    box = np.float32([[1000.3, 7.1, 1013.9, 90.2]])
    got = ops.convert_to_numpy(covered_area(bitmap, box, box, 12))
    np.testing.assert_allclose(got, bitmap, atol=1e-5)
    for empty in ([5, 5, 5, 5], [9, 9, 2, 2]):
        for one, other in ((box, np.float32([empty])), (np.float32([empty]), box)):
            assert np.isfinite(ops.convert_to_numpy(covered_area(bitmap, one, other, 12))).all()


def test_centres_of_mass_agree_with_loops():
    rng = np.random.default_rng(3)
    bitmaps = rng.random((2, 3, 7, 7)) < 0.3
    bitmaps[1, 0] = False
    boxes = np.float32(
        [[[3.1, 4.2, 60.3, 31.7], [0, 0, 40, 40], [-5, 7, 9, 90]], [[2, 4, 30, 20], [8, 8, 15, 15], [0] * 4]]
    )
    got = ops.convert_to_numpy(mass_centers(bitmaps, boxes))
    for image, one in np.ndindex(2, 3):
        x0, y0, x1, y1 = boxes[image, one]
        cells = [
            (x0 + (column + 0.5) / 7 * (x1 - x0) - 0.5, y0 + (row + 0.5) / 7 * (y1 - y0) - 0.5)
            for row, column in zip(*np.nonzero(bitmaps[image, one]), strict=True)
        ]
        want = np.mean(cells, axis=0) if cells else [(x0 + x1) / 2, (y0 + y1) / 2]  # no mask: the box's
        np.testing.assert_allclose(got[image, one], want, atol=1e-5)


def test_a_cell_whose_centre_lies_on_the_end_of_a_box_is_not_its_own():
    """Intervals are half open: of two boxes side by side, one alone has the cell between them."""
    full = np.ones((1, 2, 1, 1), bool)
    boxes = np.float32([[[0, 0, 6, 8], [6, 0, 16, 8]]])
    got = ops.convert_to_numpy(masks_on_grid(full, boxes, (2, 4), 4))
    assert got[0, :, 0].tolist() == [[True, False, False, False], [False, True, True, True]]
    turned = ops.convert_to_numpy(masks_on_grid(full, boxes[..., [1, 0, 3, 2]], (4, 2), 4))
    np.testing.assert_array_equal(turned, got.transpose(0, 1, 3, 2))
