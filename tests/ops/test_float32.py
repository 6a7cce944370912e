"""Geometry on a device that rounds products to TF32 and does not round quotients correctly."""

import sys

import keras
import numpy as np
import pytest
from keras import ops
from support.gpu_arithmetic import ON_JAX, divides_correctly, run, with_coarse_division, with_tf32

from kgarden.analyze import statistics
from kgarden.errors import UserError
from kgarden.losses.box_iou import box_iou_loss
from kgarden.models.condinst import dynamic_masks, widths_of
from kgarden.models.mask_rcnn import OwnChannel
from kgarden.models.mask_rcnn import targets as mask_targets
from kgarden.ops import bilinear, box_masks, float32, roi_align
from kgarden.ops import boxes as box_ops
from kgarden.ops.bilinear import sigmoid_over_boxes
from kgarden.ops.box_masks import covered_area
from kgarden.ops.linear_assignment import hungarian
from kgarden.ops.matcher import match
from kgarden.ops.nms import nms
from kgarden.ops.soft_nms import soft_nms
from kgarden.structures import BOXES, CROWD, LABELS, MASKS, VALID
from kgarden.targets.assign_result import under_crowd
from kgarden.targets.max_iou import MaxIoU, assign, in_ignore_region
from kgarden.targets.one_to_one import quality
from kgarden.targets.roi import label_rois


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


RNG = np.random.default_rng(0)
BOXES_PX = np.float32(RNG.uniform(0, 60, (2, 5, 4)) + [0, 0, 45, 33])
OTHERS_PX = BOXES_PX + np.float32(RNG.uniform(-7, 7, BOXES_PX.shape))
BITMAPS = RNG.random((2, 5, 28, 28)) < 0.6
LABELS_5 = np.int32([[0, 1, 2, 1, 0]] * 2)
LEVEL, UPSTREAM = normal(2, 16, 16, 4), normal(2, 5, 3, 3, 4)
WIDTHS = widths_of(8, 8, 3, True)
PARAMETERS = sum((inputs + 1) * outputs for inputs, outputs in WIDTHS)


def pooled_and_gradient(level, boxes, upstream):
    """Of one level: the pooled values, and the gradient of their sum times `upstream`."""

    def loss(level):
        bins = roi_align.roi_align([level], (8,), boxes, 3, sampling_ratio=2)
        return ops.sum(bins * upstream), bins

    if ON_JAX:
        import jax

        gradient, bins = jax.grad(loss, has_aux=True)(level)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(level)
            value, bins = loss(level)
        gradient = tape.gradient(value, level)
    return ops.concatenate([ops.reshape(x, (-1,)) for x in (bins, gradient)])


OWN = OwnChannel(3, "zeros")
OWN.build((None, None, 4, 4, 6))
OWN.bias.assign(normal(3))


def covered(bitmaps, boxes, others):
    return covered_area(bitmaps, boxes, others, 14)


def sampled(logits, boxes):
    return sigmoid_over_boxes(logits, boxes, stride=4, factor=2, side=14)


def conditional_masks(maps, parameters, coordinates):
    return dynamic_masks(maps, parameters, WIDTHS, coordinates)


def targets_of_masks(boxes, gt_boxes, bitmaps):
    rows = np.int32([[0, 1, 2, 3, 4]] * 2)
    return mask_targets(boxes, rows, {BOXES: gt_boxes, MASKS: bitmaps}, 14)[0]


def box_quality(boxes, gt_boxes, probability):
    return quality(probability, boxes, gt_boxes, LABELS_5)


def one_to_one(boxes, gt_boxes, probability):
    return hungarian(box_quality(boxes, gt_boxes, probability), np.ones((2, 5, 5), bool))


def decoded(boxes, others):
    return box_ops.decode_deltas(box_ops.encode_deltas(boxes, others), boxes)


# function, its arrays, the module that holds its products
GEOMETRY = {
    "roi_align": (pooled_and_gradient, (LEVEL, BOXES_PX, UPSTREAM), roi_align),
    "covered_area": (covered, (BITMAPS, BOXES_PX, OTHERS_PX), box_masks),
    "sigmoid_over_boxes": (sampled, (3 * normal(2, 5, 24, 28), BOXES_PX), bilinear),
    "own_channel_bias": (
        OWN,
        (np.zeros((2, 5, 4, 4, 6), "float32"), LABELS_5),
        sys.modules[OwnChannel.__module__],
    ),
    "dynamic_masks": (
        conditional_masks,
        (normal(2, 12, 16, 8), normal(2, 5, PARAMETERS), normal(2, 5, 2, 12 * 16)),
        sys.modules[dynamic_masks.__module__],
    ),
    "cosines_of_cells": (statistics.cosines_of_cells, (normal(3, 4, 4, 32),), statistics),
}
PROBABILITY = np.random.default_rng(1).random((2, 5, 3), "float32")
WITHOUT_PRODUCTS = {
    "iou": (box_ops.iou, (BOXES_PX, OTHERS_PX)),
    "giou_loss": (box_iou_loss, (BOXES_PX, OTHERS_PX)),
    "deltas": (decoded, (BOXES_PX, OTHERS_PX)),
    "aligned_bilinear": (lambda x: bilinear.aligned_bilinear(x, 4), (normal(1, 7, 9, 2),)),
    "mass_centers": (box_masks.mass_centers, (BITMAPS, BOXES_PX)),
    "mask_targets": (targets_of_masks, (OTHERS_PX, BOXES_PX, BITMAPS)),
    "one_to_one_quality": (box_quality, (OTHERS_PX, BOXES_PX, PROBABILITY)),
    "hungarian": (one_to_one, (OTHERS_PX, BOXES_PX, PROBABILITY)),
}
CLOSE = 4e-6  # of the largest value: sums in another order differ by less, TF32 by 1e-4


@pytest.fixture(autouse=True)
def static_shapes(monkeypatch):
    monkeypatch.setattr(roi_align, "_may_be_dynamic", lambda: False)


def error(got, want):
    """Largest difference, relative to the largest value."""
    got, want = got.astype("float64"), want.astype("float64")
    assert np.isfinite(got).all() and np.abs(want).max() > 0
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", GEOMETRY)
def test_no_product_of_geometry_is_rounded(name, monkeypatch):
    """And each of them would be noticed without its mark."""
    function, arrays, module = GEOMETRY[name]
    calls = Calls()
    monkeypatch.setattr(module, "matmul", calls)
    want = run(function, *arrays)
    count, calls.number = calls.number, 0
    assert count > 0
    assert error(with_tf32(monkeypatch, function, *arrays), want) < CLOSE
    for calls.unmarked in range(count):
        calls.number = 0
        found = error(with_tf32(monkeypatch, function, *arrays), want)
        assert found > 5 * CLOSE, f"product {calls.unmarked} of {count}"


class Calls:
    """In place of `matmul`: numbers the products of a call, and leaves out the mark of one of them."""

    def __init__(self):
        self.unmarked, self.number = None, 0

    def __call__(self, a, b):
        product = ops.matmul if self.number == self.unmarked else float32.matmul
        self.number += 1
        return product(a, b)


@pytest.mark.parametrize("name", WITHOUT_PRODUCTS)
def test_other_geometry_has_no_rounded_product(name, monkeypatch):
    function, arrays = WITHOUT_PRODUCTS[name]
    assert error(with_tf32(monkeypatch, function, *arrays), run(function, *arrays)) < CLOSE


# --- division -----------------------------------------------------------------------------------------------

UNITS = (-2, -1, 1, 2)  # in the last place


def on_the_threshold():
    """Boxes whose IoU with an object is a tenth, up to rounding, on objects of several sizes.

    Returns:
        boxes (1, 60, 4), gt_boxes (1, 6, 4).
    """
    sizes, first = np.float32([1, 3, 10, 33.3, 77.7, 120]), 300 * np.arange(6)[:, None]
    tenths = np.arange(1, 11)[None]
    left, zero = first + 0 * tenths, 0 * first * tenths
    side = 10 * sizes[:, None] / 10
    right, bottom = left + side * tenths / 10, zero + side
    boxes = np.stack([left, zero, right, bottom], axis=-1).reshape(1, -1, 4).astype("float32")
    return boxes, boxes[:, 9::10]


BOXES_60, OBJECTS = on_the_threshold()
ALL_OBJECTS = np.ones((1, 6), bool)
PAIRS = np.concatenate([OBJECTS, BOXES_60[:, 6::10]], axis=1)  # IoU 0.7
SCORES = np.linspace(1, 0.5, 12, dtype="float32")[None]
OBJECT_TRUTH = {BOXES: OBJECTS, VALID: ALL_OBJECTS, CROWD: ~ALL_OBJECTS, LABELS: np.int32([range(6)])}


def suppressed(boxes, scores):
    return nms(boxes, scores, SCORES > 0, iou_threshold=0.7, max_output=12)


def decayed(boxes, scores):
    return soft_nms(boxes, scores, SCORES > 0, 12, kind="hard", iou_threshold=0.7)


def matched(boxes, gt_boxes):
    overlap = box_ops.iou(gt_boxes, boxes)
    return match(overlap, ALL_OBJECTS, (0.3, 0.7), (0, -1, 1), low_quality=True)


def assigned(boxes, gt_boxes):
    return assign(box_ops.iou(gt_boxes, boxes), ALL_OBJECTS, MaxIoU())[0]


def of_rois(boxes):
    valid = np.ones((1, 60), bool)
    return [label_rois(boxes, valid, OBJECT_TRUTH, iou, num_classes=6)[0] for iou in (0.3, 0.5, 0.6, 0.7)]


def ignored(boxes, regions):
    rule = MaxIoU(ignore_share=0.7, share_of="region")
    return in_ignore_region(boxes, regions, ALL_OBJECTS, rule)


def in_crowds(boxes, objects):
    """Shares of the objects' areas."""
    found = []
    for tenth in (3, 7):
        crowds = {BOXES: boxes[:, tenth - 1 :: 10], CROWD: ALL_OBJECTS}
        found.append(under_crowd(objects[0], crowds, tenth / 10))
    return found


DECISIONS = {
    "nms": (suppressed, (PAIRS, SCORES)),
    "soft_nms": (decayed, (PAIRS, SCORES)),
    "match": (matched, (BOXES_60, OBJECTS)),
    "max_iou": (assigned, (BOXES_60, OBJECTS)),
    "label_rois": (of_rois, (BOXES_60,)),
    "ignore_regions": (ignored, (BOXES_60, OBJECTS)),
    "under_crowd": (in_crowds, (BOXES_60, OBJECTS)),
}


def same(got, want):
    pairs = zip(keras.tree.flatten(got), keras.tree.flatten(want), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_do_not_depend_on_the_rounding_of_quotients(name, monkeypatch):
    """And they would, if they were taken from the device's quotients."""
    function, arrays = DECISIONS[name]
    want = run(function, *arrays)
    for units in (-1, 1):
        assert same(with_coarse_division(monkeypatch, units, function, *arrays), want), units
    for module in ("ops.boxes", "ops.nms", "ops.soft_nms", "targets.max_iou", "targets.assign_result"):
        monkeypatch.setattr(f"kgarden.{module}.quotient", lambda a, b: a / b)
    assert not all(same(with_coarse_division(monkeypatch, u, function, *arrays), want) for u in (-1, 1))


@pytest.mark.parametrize("units", [0, *UNITS])
def test_a_quotient_is_correctly_rounded(units, monkeypatch):
    """NumPy divides correctly. Whole numbers give quotients at powers of two, where the spacing changes."""
    if abs(units) > 1 and not divides_correctly():
        pytest.skip("with the device's own error it is more than two units")
    rng = np.random.default_rng(3)
    whole = rng.integers(1, 300, (2, 5000)).astype("float32")
    areas = rng.uniform(1e-3, 1e6, (2, 5000)).astype("float32")
    a, b = np.concatenate([whole, areas], axis=1)
    got = with_coarse_division(monkeypatch, units, float32.quotient, a, b)
    np.testing.assert_array_equal(got, a / b)


def test_quotients_of_zero(monkeypatch):
    zero, one = np.float32([0, 0, 1]), np.float32([0, 5, 0])
    np.testing.assert_array_equal(
        with_coarse_division(monkeypatch, 1, float32.quotient, zero, one), [np.nan, 0, np.inf]
    )


# --- the setting of the process -----------------------------------------------------------------------------


def setting():
    return float32._setting_of_backend()[0]


def test_tf32_can_be_forbidden_and_allowed_again():
    before = setting()
    try:
        for _ in range(2):
            float32.allow_tf32(False)
            assert setting() == ("highest" if ON_JAX else False)
    finally:
        float32.allow_tf32(True)
    assert setting() == before
    float32.allow_tf32(True)
    assert setting() == before


def test_a_network_without_tf32_is_not_rounded(monkeypatch):
    """JAX marks every product; TensorFlow's switch cannot be simulated, its kernels read it."""
    if not ON_JAX:
        pytest.skip("TensorFlow's kernels read the switch")
    dense, x = keras.layers.Dense(4), normal(8, 16)
    dense.build(x.shape)
    kernel, bias = (ops.convert_to_numpy(part).astype("float64") for part in (dense.kernel, dense.bias))
    want = x @ kernel + bias
    assert error(with_tf32(monkeypatch, dense, x), want) > 5 * CLOSE
    float32.allow_tf32(False)
    try:
        assert error(with_tf32(monkeypatch, dense, x), want) < CLOSE
    finally:
        float32.allow_tf32(True)


def test_a_driver_that_forces_tf32_is_refused(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UserError, match="NVIDIA_TF32_OVERRIDE"):
        float32.allow_tf32(False)
    float32.allow_tf32(True)
