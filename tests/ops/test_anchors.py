"""Anchors against detectron2 and mmdetection, and by hand."""

import re

import numpy as np
import pytest
from golden import assert_agrees, goldens, params

from kgarden.ops.anchors import anchor_grid, templates


@pytest.mark.parametrize("golden", goldens("d2_anchors"), ids=str)
def test_anchors_agree_with_detectron2(golden):
    settings, got = params(golden), {}
    grid_hw = settings.pop("grid_hw")
    for recipe, s in settings.items():
        # A cell's anchors stand around its corner, or around the offset that the grid adds.
        grid = anchor_grid(grid_hw, s["strides"], s["sizes"], s["ratios"], s["offset"], size_major=True)
        parts = np.split(grid.boxes, np.cumsum(grid.counts())[:-1])
        for level, (sizes, of_level) in enumerate(zip(s["sizes"], parts, strict=True)):
            got[f"{recipe}_cell_l{level}"] = templates(sizes, s["ratios"], size_major=True)
            got[f"{recipe}_grid_l{level}"] = of_level
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_anchors"), ids=str)
def test_anchors_agree_with_mmdetection(golden):
    settings, got = params(golden), {}
    suffix = settings["legacy"]["suffix"]
    for case in {re.split("/", name)[0] for name in golden.outputs()}:
        legacy = case.endswith(suffix)
        s = settings["cases"][case.removesuffix(suffix)]
        assert s["base_size"] == "stride"
        sizes = [[scale * stride for scale in s["scales"]] for stride in s["strides"]]
        offset = settings["current"]["center_offset"]
        featmap_hw = golden[f"{case}/featmap_hw"].tolist()
        grid = anchor_grid(featmap_hw, s["strides"], sizes, s["ratios"], offset, legacy=legacy)
        parts = np.split(grid.boxes, np.cumsum(grid.counts())[:-1])
        for level, (stride, of_level) in enumerate(zip(s["strides"], parts, strict=True)):
            base = stride if legacy else None
            got[f"{case}/base_{level}"] = templates(sizes[level], s["ratios"], legacy_base=base)
            got[f"{case}/level_{level}"] = of_level
    assert_agrees(golden, got)


def test_a_cell_by_hand():
    # Twice as high as wide at the area of 16x16: 16 / sqrt 2 wide.
    wide = 16 / np.sqrt(2)
    found = templates([16], [1, 2])
    np.testing.assert_allclose(found, [[-8, -8, 8, 8], [-wide / 2, -wide, wide / 2, wide]])
    grid = anchor_grid([(1, 2), (1, 1)], [8, 16], [[16], [32]], offset=0.5)
    assert grid.boxes.tolist() == [[-4, -4, 12, 12], [4, -4, 20, 12], [-8, -8, 24, 24]]
    assert grid.counts() == [2, 1] and grid.stride.tolist() == [8, 8, 16]
    assert grid.points().tolist() == [[4, 4], [12, 4], [8, 8]]
