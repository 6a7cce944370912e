"""Examples of the documentation that run as they are, on both backends."""

import pathlib
import re

import numpy as np
import pytest
from keras import ops

pytestmark = pytest.mark.both_backends
PAGE = pathlib.Path(__file__).parents[1] / "docs/parts.md"
HEADINGS = ("RoIAlign on any feature map", "A dense head", "NMS, box arithmetic")


def example(heading):
    """The code below a heading, run; its names."""
    section = PAGE.read_text().split(f"## {heading}")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {"__name__": "example"}
    exec(code, names)
    return names


def test_roi_align_in_a_model_of_ones_own():
    names = example(HEADINGS[0])
    first, last = names["history"].history["loss"]
    assert np.isfinite([first, last]).all() and first != last
    x = {"images": names["images"], "boxes": names["boxes"]}
    assert names["model"](x).shape == (4, 5, 3)


def test_a_dense_head_in_a_model_of_ones_own():
    names = example(HEADINGS[1])
    first, last = names["history"].history["loss"]
    assert np.isfinite(last) and last < first
    assert names["found"]["boxes"].shape == (4, 96, 4) and names["found"]["scores"].shape == (4, 96, 2)
    assert names["best"].shape == (4,)


def test_nms_boxes_and_the_giou_loss():
    """By hand: halfway to their objects, the first two overlap by more than half, the third with none."""
    names = example(HEADINGS[2])
    boxes = ops.convert_to_numpy(names["boxes"])[0]
    np.testing.assert_allclose(boxes[:2], [[1, 1, 41, 41], [3, 1, 43, 41]], atol=1e-4)
    common, union = 39 * 39, 2 * 1600 - 39 * 39
    giou = common / union - (41 * 41 - union) / (41 * 41)  # the hull of the first box and its object
    np.testing.assert_allclose(ops.convert_to_numpy(names["loss"])[0, 0], 1 - giou, rtol=1e-5)
    kept = ops.convert_to_numpy(names["detections"])[0]
    np.testing.assert_allclose(kept, boxes[[0, 2]], rtol=1e-6)
    assert names["overlap"].shape == (1, 3, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(names["rows"])[0], [0, 2, 1])
    decayed = ops.convert_to_numpy(names["decayed"])[0]
    iou = 38 * 40 / (2 * 1600 - 38 * 40)
    np.testing.assert_allclose(decayed, [0.9, 0.7, 0.8 * np.exp(-(iou**2) / 0.5)], rtol=1e-5)


def test_every_example_has_a_test():
    assert len(re.findall(r"```python\n", PAGE.read_text())) == len(HEADINGS)
