"""Masks laid onto the picture: by hand, against scipy, and what holds for any mask."""

import json
import types

import keras
import numpy as np
import pytest
from pycocotools import mask as mask_tools
from scipy import ndimage

from kgarden.errors import UserError
from kgarden.inference.postprocess import to_original
from kgarden.models.base.detector import Detector
from kgarden.utils.paste_masks import paste_masks, pasted_part, run_lengths_of


def paste(mask, box, size_hw):
    """(H, W) bool of one mask."""
    return paste_masks(np.asarray(mask, "float32")[None], np.float64([box]), size_hw)[0]


def a_mask(random, side):
    """Smooth probabilities with all values between 0 and 1."""
    mask = ndimage.gaussian_filter(random.random((side, side)), side / 10, mode="nearest")
    return ((mask - mask.min()) / np.ptp(mask)).astype("float32")


def a_box(random, size_hw, beyond=0.0):
    """xyxy around the centre of the picture, up to `beyond` px outside of it."""
    high, wide = size_hw
    low = random.uniform(-beyond, (0.4 * wide, 0.4 * high))
    return np.concatenate([low, random.uniform((0.6 * wide, 0.6 * high), (wide + beyond, high + beyond))])


def places(box, size_hw, side):
    """Where the centres of all pixels lie, counted in cells from the centre of the first.   2 x (H, W)"""
    (height, width), (x0, y0, x1, y1) = size_hw, box
    y, x = np.mgrid[:height, :width] + 0.5
    return (y - y0) / (y1 - y0) * side - 0.5, (x - x0) / (x1 - x0) * side - 0.5


# --- by hand ----------------------------------------------------------------------------------------------


def test_mask_of_the_left_half_of_a_box():
    """4 x 4 cells over 8 x 8 px from (2, 1): cell centres at x = 3, 5, 7, 9; px 5.5 holds 3/4, 6.5 holds 1/4.

    At the left side px 2.5 lies a quarter of a cell before the first centre, so it holds 3/4 of it; the
    corners hold 9/16, and so belong to it as well.
    """
    mask = np.zeros((4, 4))
    mask[:, :2] = 1
    wanted = np.zeros((10, 12), bool)
    wanted[1:9, 2:6] = True
    np.testing.assert_array_equal(paste(mask, [2, 1, 10, 9], (10, 12)), wanted)


@pytest.mark.parametrize("value,width", [(0.2, 4), (0.3, 4), (0.4, 5), (0.5, 5), (0.6, 5), (0.7, 6), (1, 7)])
def test_partial_cell_moves_the_edge(value, width):
    """Columns 1, 1, value, 0 over 8 px: px 4 holds 1/4 + 3/4 value, px 5 3/4 value, px 6 1/4 value.

    So from value 1/3 on px 4 belongs to the object and from 2/3 on px 5; px 6 never does, unless the last
    column holds something too.
    """
    last = 0.5 if value == 1 else 0  # then px 6 holds 1/4 + 3/8, and px 7 3/8
    mask = np.tile([1, 1, value, last], (4, 1))
    got = paste(mask, [2, 0, 10, 8], (8, 12))
    assert np.flatnonzero(got[4]).tolist() == list(range(2, 2 + width))


def test_mask_of_ones_is_the_box_with_rounded_corners():
    """2 x 2 cells of 4 px: the px in a corner holds (5/8)^2 = 0.39, its neighbour 5/8 * 7/8 = 0.55."""
    wanted = np.zeros((10, 10), bool)
    wanted[1:9, 1:9] = True
    wanted[[1, 1, 8, 8], [1, 8, 1, 8]] = False
    np.testing.assert_array_equal(paste(np.ones((2, 2)), [1, 1, 9, 9], (10, 10)), wanted)
    wanted[[1, 1, 8, 8], [1, 8, 1, 8]] = True  # cells of half a px: no pixel lies in the outer half of one
    np.testing.assert_array_equal(paste(np.ones((16, 16)), [1, 1, 9, 9], (10, 10)), wanted)


def test_pixels_belong_to_boxes_that_contain_their_centres():
    for x0, x1, wanted in [(1.4, 3.6, [1, 2, 3]), (1.6, 3.4, [2]), (1.6, 2.4, []), (1.5, 3.5, [1, 2, 3])]:
        got = paste(np.ones((112, 112)), [x0, 0, x1, 8], (8, 6))
        assert np.flatnonzero(got[4]).tolist() == wanted, (x0, x1)


def test_padding_and_boxes_outside_are_empty():
    masks = np.stack([np.zeros((4, 4)), *[np.ones((4, 4))] * 4])
    boxes = [[0, 0, 0, 0], [30, 2, 40, 9], [-9, 2, -1, 9], [3, 30, 9, 40], [4.6, 2, 5.4, 9]]
    assert not paste_masks(masks, np.float32(boxes), (10, 20)).any()
    assert paste_masks(np.zeros((0, 4, 4)), np.zeros((0, 4)), (10, 20)).shape == (0, 10, 20)
    assert paste(np.ones((4, 4)), [-30, -30, 60, 60], (10, 20)).all()  # a box around the whole picture


def test_masks_of_several_images_are_rejected():
    with pytest.raises(UserError, match=r"\(2, 3, 4, 4\).*\(2, 3, 4\)") as caught:
        paste_masks(np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4)), (10, 20))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not supported; pass"):
        paste_masks(np.zeros((3, 4, 4)), np.zeros((2, 4)), (10, 20))


# --- against scipy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 7, 28, 112])
@pytest.mark.parametrize("seed", range(6))
def test_interpolation_agrees_with_scipy(side, seed):
    """map_coordinates on the whole picture, zeros around the mask; values at the threshold are left out."""
    random = np.random.default_rng([side, seed])
    size_hw = tuple(random.integers(20, 70, 2))
    mask = a_mask(random, side) if side > 1 else np.ones((1, 1), "float32")
    box = a_box(random, size_hw, beyond=15)
    values = ndimage.map_coordinates(
        mask.astype("float64"), places(box, size_hw, side), order=1, mode="grid-constant", cval=0.0
    )
    clear = abs(values - 0.5) > 1e-5
    assert clear.mean() > 0.99
    got = paste(mask, box, size_hw)
    np.testing.assert_array_equal(got[clear], (values >= 0.5)[clear])


# --- what holds for any mask ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_equivariant_to_flips_and_shifts(seed):
    random = np.random.default_rng(seed)
    size_hw, mask = (60, 80), a_mask(random, 28)
    x0, y0, x1, y1 = box = a_box(random, size_hw)
    plain = paste(mask, box, size_hw)
    assert plain.any()
    mirrored = paste(mask[:, ::-1], [80 - x1, y0, 80 - x0, y1], size_hw)
    np.testing.assert_array_equal(mirrored[:, ::-1], plain)
    upside_down = paste(mask[::-1], [x0, 60 - y1, x1, 60 - y0], size_hw)
    np.testing.assert_array_equal(upside_down[::-1], plain)
    turned = paste(mask.T, [y0, x0, y1, x1], size_hw[::-1])
    np.testing.assert_array_equal(turned.T, plain)
    shifted = paste(mask, box + np.array([7, 11, 7, 11]), (60 + 11, 80 + 7))
    np.testing.assert_array_equal(shifted[11:, 7:], plain)
    assert not shifted[:11].any() and not shifted[:, :7].any()
    cut = paste(mask, box - np.array([20, 10, 20, 10]), (30, 40))  # a part of the picture, of the box too
    np.testing.assert_array_equal(cut, plain[10:40, 20:60])


@pytest.mark.parametrize("radius,least", [(5, 0.95), (20, 0.985), (80, 0.993), (200, 0.993)])
def test_sampled_disc_is_reconstructed(radius, least):
    """The bitmap of an analytic disc, as ground truth has it, pasted, against the disc itself."""
    random = np.random.default_rng(radius)
    size_hw = (2 * radius + 20,) * 2
    for center in random.uniform(radius + 5, radius + 15, (5, 2)):
        offset = (np.arange(112) + 0.5) / 56 - 1  # of the cells' centres, in radii
        bitmap = offset[:, None] ** 2 + offset**2 < 1
        y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
        disc = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
        got = paste(bitmap, [*(center - radius), *(center + radius)], size_hw)
        assert (got & disc).sum() / (got | disc).sum() > least


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_equal_the_pasted_mask(seed):
    random = np.random.default_rng(seed)
    size_hw = tuple(int(side) for side in random.integers(1, 90, 2))
    for beyond in (0, 30):
        mask, box = random.random((9, 9)).astype("float32"), a_box(random, size_hw, beyond)
        whole = paste(mask, box, size_hw)
        code = json.loads(json.dumps(run_lengths_of(mask, box, np.int64(size_hw))))
        assert code["size"] == list(size_hw) and isinstance(code["counts"], str)
        np.testing.assert_array_equal(mask_tools.decode(code), whole)
        rows, columns, inside = pasted_part(mask, box, size_hw)
        np.testing.assert_array_equal(whole[rows, columns], inside)
        assert whole.sum() == inside.sum() == mask_tools.area(code)


# --- frames -----------------------------------------------------------------------------------------------


def test_clipping_to_the_image_keeps_mask_frames():
    """Whatever is selected is cut in px of the network input; on the way back nothing more is cut."""
    random = np.random.default_rng(0)
    size_hw = np.int32([[64, 85], [47, 96], [61, 93]])
    corners = np.sort(random.uniform(-50, 150, (3, 40, 2, 2)), axis=2).reshape(3, 40, 4).astype("float32")
    selected = {"boxes": corners, "valid": np.ones((3, 40), bool)}
    parts = types.SimpleNamespace(selection=lambda found: found)
    found = Detector.select(parts, {"size_hw": size_hw}, selected)
    boxes = keras.ops.convert_to_numpy(found["boxes"])
    limit = np.tile(size_hw[:, None, ::-1], (1, 1, 2))
    assert (boxes >= 0).all() and (boxes <= limit).all() and (boxes == limit).any()
    for original_hw in random.integers(20, 3000, (20, 3, 2)):
        back = to_original(found, size_hw, original_hw.astype("int32"))
        scale = (original_hw / size_hw)[:, None, ::-1]
        exact = boxes.astype("float64") * np.tile(scale, (1, 1, 2))
        np.testing.assert_allclose(keras.ops.convert_to_numpy(back["boxes"]), exact, rtol=1e-6, atol=1e-6)
