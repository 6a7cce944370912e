"""Detections of every model of the garden: padded, sorted, independent of the batch, by soft-NMS if asked."""

import dataclasses
import re
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops
from support.jit import fast
from support.marks import slow_on_jax, slow_on_jax_but
from support.variants import CLASSES, VARIANTS, batch

from kgarden.heads.selection import Selection
from kgarden.models import build_detector
from kgarden.models.base.detector import Detector

pytestmark = pytest.mark.both_backends
# With first weights and no norm, RetinaNet's boxes leave the image, and clipping makes them all alike.
NEAR = {"retinanet": {"dense_head": {"num_convs": 1, "norm": "gn"}}}
TOTAL = 30


class Case(NamedTuple):
    """An untrained detector, a batch, its raw outputs on it, and its detections."""

    name: str
    detector: Detector
    x: dict
    raw: object
    found: dict


def built(name, **selection):
    """A detector as it begins, which finds all that it can.

    But for the class scores of RoI heads, and TSD's offsets: features without statistics of their own are
    large, scores would all be 1, or those of bins moved out of the image all the same, and their order
    chance, which differs from processor to processor.
    """
    keras.utils.set_random_seed(0)
    selection = {"score_threshold": 0.0, "total": TOTAL, **selection}
    detector = build_detector({**VARIANTS[name], **NEAR.get(name, {}), "selection": selection}, CLASSES)
    for variable in detector.weights:
        if re.search("/roi_head/.*(classes|classifier/output|_offsets)/kernel$", variable.path):
            variable.assign(variable * 0.01)
    return detector


@pytest.fixture(scope="module")
def case(request):
    detector, (x, _) = built(request.param), batch()
    raw = fast(detector)(x)
    return Case(request.param, detector, x, raw, arrays(fast(detector.detect)(x, raw)))


def arrays(tensors):
    return {key: ops.convert_to_numpy(value) for key, value in tensors.items()}


# On JAX, where each compiles for half a minute, what others repeat is slow.
EVERY = slow_on_jax_but(VARIANTS, kept={"centernet2", "pss_two_stages"})


@pytest.mark.parametrize("case", EVERY, indirect=True)
def test_detections_are_padded_sorted_and_inside_the_image(case):
    found = case.found
    assert found["boxes"].shape == (2, TOTAL, 4) and found["labels"].dtype == np.int32
    assert found["valid"].any()
    for image, (height, width) in enumerate(case.x["size_hw"]):
        valid = found["valid"][image]
        boxes, scores = found["boxes"][image][valid], found["scores"][image][valid]
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert (np.diff(scores) <= 0).all() and (found["labels"][image][valid] >= 0).all()


@pytest.mark.parametrize("case", EVERY, indirect=True)
def test_detections_of_an_image_are_the_same_alone_and_in_a_batch(case):
    """The first image of every second model, the second of the others."""
    image = list(VARIANTS).index(case.name) % 2
    x = {key: value[image : image + 1] for key, value in case.x.items()}
    alone = fast(case.detector.inference_model())(x)
    np.testing.assert_allclose(alone["scores"][0], case.found["scores"][image], atol=1e-5)
    np.testing.assert_allclose(alone["boxes"][0], case.found["boxes"][image], atol=1e-2)


# --- soft-NMS -----------------------------------------------------------------------------------------------

MIN_SCORE, IOU = 1e-25, 0.2
SOFT = {"method": "soft_nms", "iou": IOU, "min_score": MIN_SCORE}
FACTORS = {
    "linear": lambda u: np.where(u > IOU, 1 - u, 1.0),
    "gaussian": lambda u: np.exp(-u * u / 0.5),
}


def overlaps(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    union = area + np.prod(np.maximum(box[2:] - box[:2], 0)) - common
    return np.where(common > 0, common / np.where(common > 0, union, 1), 0)


def softly(boxes, scores, labels, selection):
    """(rows, their scores as they are left), in numpy: Bodla et al. 2017, Fig. 2, each class by itself."""
    left, chosen = scores.astype("float64").copy(), []
    while len(chosen) < selection.total and (left > 0).any():
        best = int(left.argmax())
        chosen.append((best, left[best]))
        same = labels == labels[best]
        left[same] *= FACTORS[selection.soft](overlaps(boxes[best], boxes[same]))
        left[best] = -1
        left[same & (left < MIN_SCORE)] = -1
    return chosen


def compare(selection, picked, found):
    """Whether some detections have lost score and are there nevertheless."""
    picked, found, softened = arrays(picked), arrays(found), False
    for image, valid in enumerate(found["valid"]):
        boxes, scores, labels = (picked[key][image] for key in ("boxes", "scores", "labels"))
        groups = labels if selection.class_wise else np.zeros_like(labels)
        expected = softly(boxes.astype("float64"), np.where(scores > 0, scores, -1), groups, selection)
        left = [score for _, score in expected]
        assert valid.sum() == len(left) > 3
        # the order of scores that are equal but for rounding decides which of them decays the other
        np.testing.assert_allclose(found["scores"][image][valid], left, rtol=1e-3, atol=1e-7)
        softened |= bool((scores[[row for row, _ in expected]] > 1.001 * np.array(left)).any())
    return softened


# One name for what differs before the selection: the forms of heads, stages and masks.
DIFFERENT = [name for name in VARIANTS if name not in ("centernet2_alone", "one_stage", "fcos_pss_dropped")]


@slow_on_jax
@pytest.mark.parametrize("case", DIFFERENT, indirect=True)
def test_every_detector_ends_in_soft_nms_if_asked_to(case, monkeypatch):
    """Against numpy on the pairs that the detector itself picks."""
    # across classes: with first weights some heads' boxes meet none but themselves
    count = 60 if case.name in ("defcn", "fcos_pss") else 24  # their best boxes are far from each other
    few = {"soft": "gaussian", "total": count, "pool": count, "class_wise": False}
    selection = dataclasses.replace(case.detector.selection, **SOFT, **few)
    seen, suppress = [], Selection.suppress

    def spy(self, picked):
        seen.append((self, picked, suppress(self, picked)))
        return seen[-1][2]

    monkeypatch.setattr(case.detector, "selection", selection)
    monkeypatch.setattr(Selection, "suppress", spy)
    found = arrays(case.detector.detect(case.x, case.raw))
    used, picked, kept = seen[-1]  # before it the proposals of a second stage
    assert used is selection and compare(used, picked, kept)
    assert ("masks" in found) == case.name.startswith(("condinst", "mask_rcnn"))
    assert (found["boxes"] <= case.x["size_hw"][:, None, [1, 0, 1, 0]]).all()


@slow_on_jax
@pytest.mark.parametrize("name", ["atss", "faster_rcnn"])  # a box for all classes, a box for each
def test_soft_nms_by_the_keys_of_a_recipe(name):
    settings = {**SOFT, "soft": "linear", "total": 30, "pool": 30, "class_wise": False}
    detector, (x, _) = built(name, **settings), batch()
    candidates = detector.candidates(x, detector(x))
    selection = detector.selection
    assert compare(selection, selection.pick(candidates), selection(candidates))
    selection = dataclasses.replace(selection, class_wise=True)  # then nearly nothing overlaps
    compare(selection, selection.pick(candidates), selection(candidates))
