"""Geometry on a device that rounds products to TF32 and does not round quotients correctly."""

import sys

import numpy as np
import pytest
from keras import ops
from support.gpu_arithmetic import ON_JAX, with_coarse_division, with_tf32

from kgarden.analyze.statistics import cosines_of_cells
from kgarden.errors import UserError
from kgarden.losses.box_iou import box_iou_loss
from kgarden.models.condinst import dynamic_masks, widths_of
from kgarden.models.mask_rcnn import OwnChannel
from kgarden.models.mask_rcnn import targets as mask_targets
from kgarden.ops import boxes as box_ops
from kgarden.ops import float32, roi_align
from kgarden.ops.bilinear import aligned_bilinear, sigmoid_over_boxes
from kgarden.ops.box_masks import covered_area, masks_on_grid, mass_centers
from kgarden.ops.linear_assignment import hungarian
from kgarden.ops.matcher import match
from kgarden.ops.nms import nms
from kgarden.ops.soft_nms import soft_nms
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, VALID
from kgarden.targets.assign_result import under_crowd
from kgarden.targets.atss import atss_candidates
from kgarden.targets.max_iou import MaxIoU, assign, in_ignore_region
from kgarden.targets.one_to_one import quality
from kgarden.targets.roi import label_rois

RNG = np.random.default_rng(0)
BOXES_PX = np.float32(RNG.uniform(0, 60, (2, 5, 4)) + [0, 0, 45, 33])
OTHERS_PX = BOXES_PX + np.float32(RNG.uniform(-7, 7, BOXES_PX.shape))
BITMAPS = RNG.random((2, 5, 28, 28)) < 0.6
TRUTH = {BOXES: BOXES_PX, MASKS: BITMAPS, LABELS: np.int32([[0, 1, 2, 1, 0]] * 2)}
TRUTH |= {VALID: np.ones((2, 5), bool), CROWD: np.zeros((2, 5), bool)}


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


def pooled():
    pyramid = [ops.convert_to_tensor(3 + normal(2, side, side, 6)) for side in (32, 16)]
    return roi_align.roi_align(pyramid, (4, 8), BOXES_PX, 7)


def pooled_gradient():
    """Of the sum of all pooled values times random numbers, with respect to one level."""
    level = ops.convert_to_tensor(normal(2, 16, 16, 6))
    upstream = normal(2, 5, 7, 7, 6)

    def loss(level):
        return ops.sum(roi_align.roi_align([level], (8,), BOXES_PX, 7) * upstream)

    if ON_JAX:
        import jax

        return jax.grad(loss)(level)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(level)
        value = loss(level)
    return tape.gradient(value, level)


def own_bias():
    layer = OwnChannel(3)
    layer.build((None, None, 4, 4, 6))
    layer.bias.assign(normal(3))
    return layer(np.zeros((2, 5, 4, 4, 6), "float32"), TRUTH[LABELS])


def conditional_masks():
    widths = widths_of(8, 8, 3, True)
    number = sum((inputs + 1) * outputs for inputs, outputs in widths)
    coordinates = normal(2, 5, 2, 12 * 16)
    return dynamic_masks(normal(2, 12, 16, 8), normal(2, 5, number), widths, coordinates)


def box_qualities():
    probability = np.random.default_rng(1).random((2, 5, 3), "float32")
    return quality(probability, OTHERS_PX, BOXES_PX, TRUTH[LABELS])


GEOMETRY = {
    "roi_align": (pooled, "kgarden.ops.roi_align"),
    "roi_align_gradient": (pooled_gradient, "kgarden.ops.roi_align"),
    "covered_area": (lambda: covered_area(BITMAPS, BOXES_PX, OTHERS_PX, 14), "kgarden.ops.box_masks"),
    "sigmoid_over_boxes": (
        lambda: sigmoid_over_boxes(3 * normal(2, 5, 24, 28), BOXES_PX, stride=4, factor=2, side=14),
        "kgarden.ops.bilinear",
    ),
    "own_channel_bias": (own_bias, "kgarden.models.mask_rcnn"),
    "dynamic_masks": (conditional_masks, "kgarden.models.condinst"),
    "cosines_of_cells": (lambda: cosines_of_cells(normal(3, 4, 4, 32)), "kgarden.analyze.statistics"),
}
WITHOUT_PRODUCTS = {
    "iou": lambda: box_ops.iou(BOXES_PX, OTHERS_PX),
    "giou_loss": lambda: box_iou_loss(BOXES_PX, OTHERS_PX),
    "deltas": lambda: box_ops.decode_deltas(box_ops.encode_deltas(BOXES_PX, OTHERS_PX), BOXES_PX),
    "aligned_bilinear": lambda: aligned_bilinear(ops.convert_to_tensor(normal(1, 7, 9, 2)), 4),
    "masks_on_grid": lambda: masks_on_grid(BITMAPS, BOXES_PX, (24, 28), 4),
    "mass_centers": lambda: mass_centers(BITMAPS, BOXES_PX),
    "mask_targets": lambda: mask_targets(OTHERS_PX, np.int32([[0, 1, 2, 3, 4]] * 2), TRUTH, 14)[0],
    "one_to_one_quality": box_qualities,
    "hungarian": lambda: hungarian(box_qualities(), np.ones((2, 5, 5), bool)),
}
CLOSE = 4e-6  # of the largest value: sums in another order differ by less, TF32 by 1e-4


@pytest.fixture(autouse=True)
def static_shapes(monkeypatch):
    monkeypatch.setattr(roi_align, "_may_be_dynamic", lambda: False)


def error_under_tf32(monkeypatch, function):
    """Largest difference to the result of true float32, relative to the largest value."""
    want = ops.convert_to_numpy(function()).astype("float64")
    got = ops.convert_to_numpy(with_tf32(monkeypatch, function)).astype("float64")
    assert np.isfinite(got).all() and np.abs(want).max() > 0
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", GEOMETRY)
def test_no_product_of_geometry_is_rounded(name, monkeypatch):
    """And every single one of them would be seen."""
    function, module = GEOMETRY[name]
    assert error_under_tf32(monkeypatch, function) < CLOSE
    calls = Calls()
    monkeypatch.setattr(sys.modules[module], "matmul", calls)
    function()
    assert calls.count > 0
    for unmarked in range(calls.count):
        calls.unmarked = unmarked
        assert error_under_tf32(monkeypatch, function) > 2 * CLOSE, f"product {unmarked} of {calls.count}"


class Calls:
    """In place of `matmul`: counts the products of a call, and leaves out the mark of one of them."""

    def __init__(self):
        self.unmarked, self.count = None, 0

    def __call__(self, a, b):
        number, self.count = self.count, self.count + 1
        if self.unmarked is None:
            return float32.matmul(a, b)
        return (ops.matmul if number == self.unmarked else float32.matmul)(a, b)


@pytest.mark.parametrize("name", WITHOUT_PRODUCTS)
def test_other_geometry_has_no_products(name, monkeypatch):
    assert error_under_tf32(monkeypatch, WITHOUT_PRODUCTS[name]) < CLOSE
