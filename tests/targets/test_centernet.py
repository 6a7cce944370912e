"""CenterNet's target rule against the authors' code, and what must hold for any objects."""

import functools

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.ops.points import point_grid
from kgarden.targets.centernet import center_targets, levels_of


def truth_of(golden):
    """Boxes, labels and mask of all images of a file, padded to the same length."""
    images = sorted(name for name in golden.files if name.startswith("boxes_im"))
    most = max(1, *(len(golden[name]) for name in images))
    boxes, labels = np.zeros((len(images), most, 4), "float32"), np.full((len(images), most), -1, "int32")
    for row, name in enumerate(images):
        count = len(golden[name])
        boxes[row, :count] = golden[name]
        classes = name.replace("boxes", "classes")
        labels[row, :count] = golden[classes] if classes in golden else 0
    return boxes, labels, labels >= 0


def flat_rows(rows, grid):
    """Rows (B, N) among one image's cells -> the reference's order: level, image, cell."""
    counts = np.array(grid.counts())
    first = np.cumsum(counts) - counts
    level = grid.level[rows]
    image = np.arange(len(rows))[:, None]
    return first[level] * len(rows) + image * counts[level] + rows - first[level]


def by_level(array, grid):
    """(B, A, ...) -> (B * A, ...) in the reference's order: level, image, cell."""
    parts = np.split(array, np.cumsum(grid.counts())[:-1], axis=1)
    return np.concatenate([part.reshape(-1, *array.shape[2:]) for part in parts])


@pytest.mark.parametrize("golden", goldens("cn2_targets"), ids=str)
def test_targets_agree_with_the_reference(golden):
    settings = params(golden)
    grid = point_grid(settings["level_hw"], settings["strides"])
    boxes, labels, valid = truth_of(golden)
    rule = functools.partial(
        center_targets,
        cells=grid,
        size_ranges=settings["soi"],
        num_classes=settings["num_classes"] if settings["heatmap_per_class"] else None,
        min_overlap=settings["hm_min_overlap"],
        min_radius=settings["min_radius"],
    )
    found = fast(rule)(boxes, labels, valid)
    found = type(found)(*(ops.convert_to_numpy(part) for part in found))

    mask = found.positive_valid
    regresses = by_level(found.ltrb_valid, grid)
    heat = by_level(found.heat, grid)
    members = ops.convert_to_numpy(levels_of(boxes, settings["soi"]))
    got = {
        "pos_inds": flat_rows(found.positive, grid)[mask],
        "labels": found.positive_label[mask],
        "reg_targets": np.where(regresses[:, None], by_level(found.ltrb, grid), -1),
        "reg_valid": regresses,
        "heatmap": heat if settings["heatmap_per_class"] else heat[:, 0],
    }
    points = grid.points()
    for name in golden.matching("grid_p[0-9]"):
        stride = 2 ** int(name.removeprefix("grid_p"))
        of_level = points[grid.stride == stride]
        got[name] = of_level[: len(golden[name])]
    for name in golden.matching("level_mask_im[0-9]+"):
        image = int(name.removeprefix("level_mask_im"))
        got[name] = members[image][valid[image]]
    assert_agrees(golden, got)


# What must hold for any objects.

GRID = point_grid([(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)], [8, 16, 32, 64, 128])


targets_of_classes = fast(functools.partial(center_targets, cells=GRID, num_classes=4))
targets = fast(functools.partial(center_targets, cells=GRID))


def random_truth(seed, count, padded):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 200, (1, padded, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 110, (1, padded, 2))], axis=-1).astype("float32")
    labels = np.where(np.arange(padded) < count, rng.integers(0, 4, padded), -1)[None].astype("int32")
    return boxes, labels, labels >= 0


def as_numpy(found):
    return {name: ops.convert_to_numpy(part) for name, part in found._asdict().items()}


@pytest.mark.parametrize("seed", range(3))
def test_invariant_to_padding_rows(seed):
    boxes, labels, valid = random_truth(seed, count=5, padded=9)
    long = as_numpy(targets_of_classes(boxes, labels, valid))
    short = as_numpy(targets_of_classes(boxes[:, :5], labels[:, :5], valid[:, :5]))
    for name in ("heat", "ltrb_valid"):
        np.testing.assert_array_equal(long[name], short[name])
    seen = long["ltrb_valid"]
    np.testing.assert_array_equal(long["ltrb"][seen], short["ltrb"][seen])
    np.testing.assert_array_equal(
        long["positive"][long["positive_valid"]], short["positive"][short["positive_valid"]]
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_objects_does_not_matter(seed):
    boxes, labels, valid = random_truth(seed, count=7, padded=7)
    order = np.random.default_rng(seed + 10).permutation(7)
    one = as_numpy(targets(boxes, labels, valid))
    other = as_numpy(targets(boxes[:, order], labels[:, order], valid[:, order]))
    np.testing.assert_array_equal(one["heat"], other["heat"])
    np.testing.assert_array_equal(one["ltrb_valid"], other["ltrb_valid"])
    np.testing.assert_allclose(one["ltrb"], other["ltrb"], atol=1e-5)
    assert sorted(one["positive"][one["positive_valid"]]) == sorted(
        other["positive"][other["positive_valid"]]
    )


def test_image_without_objects_is_all_background():
    boxes, labels, valid = random_truth(0, count=0, padded=3)
    found = as_numpy(targets_of_classes(boxes, labels, valid))
    assert found["heat"].max() == 0 and not found["ltrb_valid"].any() and not found["positive_valid"].any()


def test_a_box_by_hand():
    # 64 x 48 px around (100, 60): half a diagonal is 40 px, so P3 alone. Its centre lies in cell
    # x = 12, y = 7 of P3, whose point is (100, 60): 32 px to the sides, 24 px up and down, 4 and 3 strides.
    boxes = np.array([[[68.0, 36.0, 132.0, 84.0]]], "float32")
    found = as_numpy(targets(boxes, np.array([[2]]), np.array([[True]])))
    assert found["positive"][found["positive_valid"]].tolist() == [7 * 40 + 12]
    row = 7 * 40 + 12
    np.testing.assert_allclose(found["ltrb"][0, row], [4, 3, 4, 3])
    assert found["ltrb_valid"].sum() == 9
    # Its Gaussian: radius^2 = 2 (1/9)^2 * 64 * 48 = 75.85; one cell, 8 px, away: exp(-64 / 75.85).
    np.testing.assert_allclose(found["heat"][0, row + 1, 0], np.exp(-64 / (2 / 81 * 64 * 48)), rtol=1e-5)
    # The peak is drawn on every level, also where the object does not live: P4 cell x = 6, y = 3.
    assert found["heat"][0, 32 * 40 + 3 * 20 + 6, 0] == 1


def test_ranges_of_sizes_include_both_ends():
    """60 x 80 px, half a diagonal of 50: in the range that ends there and in that which begins."""
    box = np.float32([[[0, 0, 60, 80]]])
    ranges = ((0, 49.9), (0, 50), (50, 100), (50.1, 100))
    assert ops.convert_to_numpy(levels_of(box, ranges)).tolist() == [[[False, True, True, False]]]
