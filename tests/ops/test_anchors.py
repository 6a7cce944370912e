"""Anchors against detectron2 and mmdetection, and by hand."""

import re

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.ops.anchors import anchor_grid, templates
from kgarden.ops.points import point_grid


@pytest.mark.parametrize("golden", goldens("d2_anchors"), ids=str)
def test_anchors_agree_with_detectron2(golden):
    settings, got = params(golden), {}
    grid_hw = settings.pop("grid_hw")
    for recipe, s in settings.items():
        # A cell's anchors stand around its corner, or around the offset that the grid adds.
        grid = anchor_grid(
            grid_hw, s["strides"], s["sizes"], ratios=s["ratios"], offset=s["offset"], size_major=True
        )
        parts = np.split(grid.boxes, np.cumsum(grid.counts())[:-1])
        for level, (sizes, of_level) in enumerate(zip(s["sizes"], parts, strict=True)):
            got[f"{recipe}_cell_l{level}"] = templates(sizes, s["ratios"], size_major=True)
            got[f"{recipe}_grid_l{level}"] = of_level
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_anchors"), ids=str)
def test_anchors_agree_with_mmdetection(golden):
    settings, got = params(golden), {}
    suffix = settings["legacy"]["suffix"]
    for case in {re.split("/", name)[0] for name in golden.outputs}:
        form = "mmdetection_1" if case.endswith(suffix) else "plain"
        s = settings["cases"][case.removesuffix(suffix)]
        assert s["base_size"] == "stride"
        sizes = [[scale * stride for scale in s["scales"]] for stride in s["strides"]]
        offset = settings["current"]["center_offset"]
        featmap_hw = golden[f"{case}/featmap_hw"].tolist()
        grid = anchor_grid(featmap_hw, s["strides"], sizes, ratios=s["ratios"], offset=offset, form=form)
        parts = np.split(grid.boxes, np.cumsum(grid.counts())[:-1])
        for level, (stride, of_level) in enumerate(zip(s["strides"], parts, strict=True)):
            got[f"{case}/base_{level}"] = templates(sizes[level], s["ratios"], form=form, base=stride)
            got[f"{case}/level_{level}"] = of_level
    assert_agrees(golden, got)


def test_anchors_of_one_point_by_hand():
    # Twice as high as wide at the area of 16x16: 16 / sqrt 2 wide.
    wide = 16 / np.sqrt(2)
    found = templates([16], [1, 2])
    np.testing.assert_allclose(found, [[-8, -8, 8, 8], [-wide / 2, -wide, wide / 2, wide]])
    grid = anchor_grid([(1, 2), (1, 1)], [8, 16], [[16], [32]], offset=0.5)
    assert grid.boxes.tolist() == [[-4, -4, 12, 12], [4, -4, 20, 12], [-8, -8, 24, 24]]
    assert grid.counts() == [2, 1] and grid.stride.tolist() == [8, 8, 16]
    assert grid.points().tolist() == [[4, 4], [12, 4], [8, 8]]


def test_anchors_equal_the_table_of_py_faster_rcnn():
    # The nine anchors that its authors printed, counted from 1.
    printed = """-83 -39 100 56  -175 -87 192 104  -359 -183 376 200  -55 -55 72 72  -119 -119 136 136
    -247 -247 264 264  -35 -79 52 96  -79 -167 96 184  -167 -343 184 360"""
    expected = np.float64(printed.split()).reshape(-1, 4) - 1
    found = templates([128, 256, 512], [0.5, 1, 2], form="maskrcnn_benchmark", base=16)
    np.testing.assert_allclose(found, expected)


def test_anchors_of_torchvision_are_whole_px():
    """By hand: 32 * sqrt(2) / 2 = 22.6 and 11.3; 40.3 and 50.8 are cut off to 40 and 50 before."""
    corners = templates([32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)], [0.5, 1, 2], form="torchvision")[:, 2:]
    expected = [[23, 11], [28, 14], [35, 18], [16, 16], [20, 20], [25, 25], [11, 23], [14, 28], [18, 35]]
    assert corners.tolist() == expected

    # a canvas of 160 x 224 px: 3 rows on 160 px are 53 px apart, 2 columns on 224 px are 112
    sizes, strides = [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)], [8, 16, 32, 64, 128]
    steps = [(8, 8), (16, 16), (32, 32), (56, 53), (112, 80)]
    anchors = anchor_grid(sizes, strides, [[stride] for stride in strides], form="torchvision")
    points = point_grid(sizes, strides, form="torchvision").points()
    np.testing.assert_array_equal(points, anchors.points())
    by_hand = [
        (column * across, row * down)
        for (height, width), (across, down) in zip(sizes, steps, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    np.testing.assert_array_equal(points, by_hand)


def test_anchors_inside_of_an_image_padded_by_itself():
    anchors = anchor_grid([(4, 6), (2, 3)], [32, 64], [[32], [64, 128]])
    inside = ops.convert_to_numpy(anchors.inside(np.int32([[60, 100], [64, 33], [128, 192]]), divisor=32))
    # Padded to 64 x 128, 64 x 64 and 128 x 192 px: rows and columns of cells that begin there.
    for image, cells in enumerate([[(2, 4), (1, 2)], [(2, 2), (1, 1)], [(4, 6), (2, 3)]]):
        fine, coarse = np.zeros((4, 6), bool), np.zeros((2, 3, 2), bool)
        fine[: cells[0][0], : cells[0][1]] = True
        coarse[: cells[1][0], : cells[1][1]] = True
        np.testing.assert_array_equal(inside[image], np.concatenate([fine.ravel(), coarse.ravel()]))
