"""Several views that share their proposals: by hand, and where nothing may change."""

import types

import keras
import numpy as np
import pytest
from keras import ops
from support.variants import CLASSES, VARIANTS, batch

from kgarden.heads.selection import Selection
from kgarden.inference.test_time_augmentation import TestTimeAugmentation
from kgarden.models import build_detector
from kgarden.models.base.static_shapes import ready_to_predict

FIRST_HW = (40, 51)
SIZES = [(40, 51, True), (80, 102, False)]  # the other views: height, width, mirrored
# Proposals of each view, px of the view, with scores; a score of 0 is padding.
A, B, C = (10, 10, 20, 20), (30, 5, 40, 15), (2, 25, 12, 35)
PROPOSED = [
    [(*A, 0.9), (0, 0, 0, 0, 0.0), (0, 0, 0, 0, 0.0)],
    # 1 px less high than A, in the mirror: IoU 0.9 with A, gone; B
    [(51 - 20, 10, 51 - 10, 19, 0.8), (51 - 40, 5, 51 - 30, 15, 0.7), (0, 0, 0, 0, 0.0)],
    # half of A: IoU 0.5; C and B again, where everything is twice as large
    [(20, 20, 30, 40, 0.6), (4, 50, 24, 70, 0.5), (60, 10, 80, 30, 0.65)],
]
SHIFT = [3.0, 1.0, 4.0]  # px of the view, by which its second stage moves boxes to the right
PROBABILITY = [(0.6, 0.02), (0.9, 0.1), (0.3, 0.06)]  # of the two classes, by view


class Known:
    """A two-stage "detector" that reads the number of the view from its first pixel.

    Args:
        total:  proposals of a view, and of all together.
        object: whether proposals carry the probability of being an object, half of their score.
        each:   whether there is a box for each class, the second class's 2 px lower.
    """

    mask_head = None

    def __init__(self, total, object=False, each=False, **selection):
        self.selection = Selection(**{"score_threshold": 0.05, "iou": 0.55, "total": 20, **selection})
        self.proposer = types.SimpleNamespace(test=Selection(total=total, iou=0.7, method="none"))
        self.object, self.each = object, each

    def __call__(self, x, training=False):
        return ops.cast(x["images"][:, 0, 0, 0], "int32")

    def proposals(self, x, view):
        rows = ops.take(ops.array(np.float32(PROPOSED)), view, axis=0)
        more = {"probability": rows[..., 4] / 2} if self.object else {}
        return {"boxes": rows[..., :4], "scores": rows[..., 4], "valid": rows[..., 4] > 0, **more}

    def classified(self, x, view, proposals):
        shift = ops.take(ops.array(np.float32(SHIFT)), view)[:, None, None]
        boxes = proposals["boxes"] + shift * ops.array(np.float32([1, 0, 1, 0]))
        if self.each:
            boxes = ops.stack([boxes, boxes + ops.array(np.float32([0, 2, 0, 2]))], axis=2)
        scores = ops.take(ops.array(np.float32(PROBABILITY)), view, axis=0)[:, None]
        factor = proposals["probability"][..., None] if self.object else 1.0
        return {"boxes": boxes, "scores": scores * factor * ops.ones_like(proposals["boxes"][..., :1])}


def views():
    """x of one picture at FIRST_HW and SIZES; the first pixel is the number of the view."""

    def seen(number, height, width):
        images = np.full((1, 96, 128, 3), number, "uint8")
        return {"images": images, "size_hw": np.int32([[height, width]])}

    others = [{**seen(n, *size), "mirrored": np.array([flip])} for n, (*size, flip) in enumerate(SIZES, 1)]
    return {**seen(0, *FIRST_HW), "views": tuple(others)}


def found_by(detector, x, **settings):
    merged = TestTimeAugmentation(detector, convention="mmdetection_1", **settings)
    found = {key: np.asarray(value)[0] for key, value in merged.predict_on_batch(x).items()}
    return {key: value[found["valid"]] for key, value in found.items()}


# By hand: boxes move by 3 px in the first view, by 1 px in the mirror, which is -1, by 4 px at twice the
# size, which is 2: by 4/3 px on the average. Class 0 has (0.6 + 0.9 + 0.3) / 3 = 0.6, class 1 has 0.06, which
# passes 0.05, though it does not in the first view.
MOVE = np.float32([4 / 3, 0, 4 / 3, 0])


def test_proposals_boxes_and_scores_by_hand():
    """Proposals by score: A 0.9, B 0.7, half of A 0.6, C 0.5. Of A and its half, IoU 0.5, both are left."""
    found = found_by(Known(total=4), views())
    half = (10, 10, 15, 20)
    np.testing.assert_allclose(found["boxes"], np.float32([A, B, half, C] * 2) + MOVE, rtol=1e-5)
    np.testing.assert_allclose(found["scores"], [0.6] * 4 + [0.06] * 4, rtol=1e-5)
    assert found["labels"].tolist() == [0] * 4 + [1] * 4
    assert found["source"].tolist() == [0, 1, 2, 3] * 2


def test_as_many_proposals_as_of_one_view():
    found = found_by(Known(total=2, class_wise=False), views())
    np.testing.assert_allclose(found["boxes"], np.float32([A, B]) + MOVE, rtol=1e-5)


def test_boxes_of_each_class():
    found = found_by(Known(total=2, each=True), views())
    lower = np.float32([0, 5 / 3, 0, 5 / 3])  # by 2, 2 and 1 px of the first view
    expected = [*(np.float32([A, B]) + MOVE), *(np.float32([A, B]) + MOVE + lower)]
    np.testing.assert_allclose(found["boxes"], expected, rtol=1e-5)


def test_the_last_step_is_that_of_merge():
    """Soft-NMS, linear: half of A overlaps A by 1/2 > 0.4 and keeps half of its score."""
    soft = dict(method="soft_nms", soft="linear", iou=0.4, min_score=0.2)
    found = found_by(Known(total=4, score_threshold=0.1), views(), **soft)
    np.testing.assert_allclose(found["scores"], [0.6, 0.6, 0.6, 0.3], rtol=1e-5)
    hard = found_by(Known(total=4, score_threshold=0.1), views(), iou=0.4)
    np.testing.assert_allclose(hard["boxes"], np.float32([A, B, C]) + MOVE, rtol=1e-5)


def test_probabilities_stay_with_their_proposals():
    """Half of the scores 0.9, 0.7, 0.6, 0.5, times 0.6."""
    found = found_by(Known(total=4, object=True, score_threshold=0.1), views())
    np.testing.assert_allclose(found["scores"], [0.27, 0.21, 0.18, 0.15], rtol=1e-5)


# Real detectors, small.


def small(name, **proposals):
    keras.utils.set_random_seed(0)
    settings = {**VARIANTS[name], "selection": {"score_threshold": 0.0, "total": 30}}
    if proposals:
        of_test = {**settings["proposals"]["test"], **proposals}
        settings["proposals"] = {**settings["proposals"], "test": of_test}
    return build_detector(settings, CLASSES)


def in_a_mirror(x):
    images = np.zeros_like(x["images"])
    for row, (height, width) in enumerate(x["size_hw"]):
        images[row, :height, :width] = x["images"][row, :height, :width][:, ::-1]
    return {"images": images, "size_hw": x["size_hw"]}


def inputs():
    x, _ = batch()
    return {key: x[key] for key in ("images", "size_hw")}


@pytest.mark.parametrize("name", ["faster_rcnn", pytest.param("tsd_cascade", marks=pytest.mark.slow)])
def test_a_single_view_is_the_detector_if_no_proposal_suppresses_another(name):
    """And so are two equal ones, whose proposals are the same: those of the second are suppressed."""
    detector, x = small(name, iou=1.0), inputs()
    plain = ready_to_predict(detector.inference_model()).predict_on_batch(x)
    alone = TestTimeAugmentation(detector, convention="mmdetection_1").predict_on_batch({**x, "views": ()})
    assert plain["valid"].any()
    for key in ("boxes", "scores", "labels", "valid", "source"):
        np.testing.assert_allclose(alone[key], plain[key], rtol=1e-5, atol=1e-4, err_msg=key)
    detector = small(name)
    merged = TestTimeAugmentation(detector, convention="mmdetection_1")
    alone = merged.predict_on_batch({**x, "views": ()})
    twice = merged.predict_on_batch({**x, "views": ({**x, "mirrored": np.zeros(2, bool)},)})
    for key in ("boxes", "scores", "labels", "valid"):
        np.testing.assert_allclose(twice[key], alone[key], rtol=1e-5, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
    "name",
    [
        "tsd",
        pytest.param("centernet2", marks=pytest.mark.slow),
        pytest.param("pss_two_stages", marks=pytest.mark.slow),
    ],
)
def test_flipped_image_gives_flipped_boxes(name):
    detector, x = small(name), inputs()
    other, yes = in_a_mirror(x), np.array([True, True])
    merged = TestTimeAugmentation(detector, convention="mmdetection_1")
    one = merged.predict_on_batch({**x, "views": ({**other, "mirrored": yes},)})
    two = merged.predict_on_batch({**other, "views": ({**x, "mirrored": yes},)})
    assert one["valid"].any()
    np.testing.assert_array_equal(one["valid"], two["valid"])
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-4, atol=1e-5)
    boxes, width = np.array(one["boxes"]), x["size_hw"][:, 1, None]
    boxes[..., 0], boxes[..., 2] = width - one["boxes"][..., 2], width - one["boxes"][..., 0]
    valid = np.asarray(one["valid"])
    np.testing.assert_allclose(boxes[valid], np.asarray(two["boxes"])[valid], atol=5e-3)
