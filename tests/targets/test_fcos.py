"""FCOS' targets against the reference, by hand, and what must hold for any objects."""

import numpy as np
import pytest
from keras import ops
from support.dense_goldens import labels_of
from support.golden import assert_agrees, goldens, params

from kgarden.ops.boxes import to_ltrb
from kgarden.ops.points import point_grid
from kgarden.targets.fcos import assign_points, centerness, near_center, possible_points


@pytest.mark.parametrize("golden", goldens("onestage_fcos_targets"), ids=str)
def test_targets_agree_with_the_reference(golden):
    settings = params(golden)
    grid = point_grid(settings["level_sizes"], settings["strides"])
    np.testing.assert_array_equal(grid.points(), golden["points"])
    boxes, got = golden["gt_boxes"], {}
    for case, radius in [("nocs", None), ("cs", settings["center_radius"])]:
        possible = possible_points(
            grid, boxes, golden["gt_valid"] > 0, size_ranges=settings["regress_ranges"], radius=radius
        )
        matched = ops.convert_to_numpy(assign_points(possible, boxes))
        of_object = np.take_along_axis(boxes, np.maximum(matched, 0)[..., None], axis=1)
        ltrb = np.where(matched[..., None] >= 0, to_ltrb(grid.points(), of_object), 0)
        got |= {
            f"matched_gt_{case}": matched,
            f"labels_{case}": labels_of(golden, matched),
            f"num_pos_{case}": (matched >= 0).sum(axis=1),
            f"ltrb_{case}": ltrb,
            f"ltrb_norm_{case}": ltrb / grid.stride[:, None],
            f"centerness_{case}": ops.convert_to_numpy(centerness(ltrb)),
        }
    assert_agrees(golden, got)


GRID = point_grid([(8, 8), (4, 4)], [8, 16])
RANGES = ((-1, 16), (16, 64))


def matched(boxes, valid=None, radius=None):
    boxes = np.float32(boxes)[None]
    valid = np.ones(boxes.shape[:2], bool) if valid is None else np.array([valid])
    possible = possible_points(GRID, boxes, valid, size_ranges=RANGES, radius=radius)
    return ops.convert_to_numpy(assign_points(possible, boxes))[0]


def test_one_box_by_hand():
    # 16 px around (24, 24): the points 20 and 28 of stride 8 lie inside, four in all; the farthest side is
    # 12 px away, so level 0 has it alone.
    found = matched([[16, 16, 32, 32]])
    assert sorted(np.flatnonzero(found == 0)) == [2 * 8 + 2, 2 * 8 + 3, 3 * 8 + 2, 3 * 8 + 3]
    # Its point (20, 20) has 4 px to the left and top, 12 to the right and bottom: sqrt(1/3 * 1/3).
    np.testing.assert_allclose(centerness(np.float32([4, 4, 12, 12])), 1 / 3, rtol=1e-6)


def test_size_ranges_include_both_ends():
    # The point (12, 12) has exactly 16 px to the far sides: the last of level 0. The point (8, 8) of stride
    # 16 has 20 px: level 1.
    found = matched([[8, 8, 28, 28]])
    assert found[1 * 8 + 1] == 0 and found[64] == -1  # (8, 8) lies on the corner, not inside
    found = matched([[6, 6, 24, 24]])  # and (8, 8) has exactly 16 px here: the first of level 1, too
    assert found[64] == 0


def test_point_goes_to_smallest_box_then_lowest_row():
    found = matched([[0, 0, 64, 64], [16, 16, 32, 32], [16, 16, 32, 32]])
    assert found[2 * 8 + 2] == 1 and (found != 2).all() and (found == 0).any()


def test_centre_region_is_clipped_to_the_box():
    boxes, valid = np.float32([[[2, 0, 6, 64], [2, 0, 6, 60]]]), np.array([[True, True]])
    near = ops.convert_to_numpy(near_center(GRID, boxes, valid, 1.5))[0]
    # x = 4 lies inside; x = 12 is less than 1.5 strides away and outside. y = 20 and 44 are just as far as
    # 1.5 strides and not near; 60 px high, the box has its centre at 30, which 20, 28 and 36 are near.
    assert np.flatnonzero(near[0]).tolist() == [3 * 8, 4 * 8]
    assert np.flatnonzero(near[1]).tolist() == [2 * 8, 3 * 8, 4 * 8]


def test_invariant_to_padding_and_no_object_is_background():
    boxes = [[0, 0, 64, 64], [16, 16, 32, 32], [0, 0, 0, 0]]
    np.testing.assert_array_equal(matched(boxes[:2]), matched(boxes, [True, True, False]))
    assert (matched(boxes, [False] * 3) == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_invariant_to_order_of_objects(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (6, 2))], axis=1)
    order = rng.permutation(6)
    one, other = matched(boxes, radius=1.5), matched(boxes[order], radius=1.5)
    assert (one >= 0).any()
    np.testing.assert_array_equal(one, np.where(other >= 0, order[other], -1))
