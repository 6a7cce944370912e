"""soft-NMS by recipe keys, as the last step of every detector of the garden."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import ops
from support.marks import slow_on_jax_but
from support.variants import CLASSES, VARIANTS, batch

from kgarden.models import MODELS, build_detector

TOTAL, MIN_SCORE, IOU = 60, 1e-25, 0.2
FACTORS = {
    "linear": lambda u: np.where(u > IOU, 1 - u, 1.0),
    "gaussian": lambda u: np.exp(-u * u / 0.5),
}
# One name for what differs before the selection: the forms of heads, stages and masks.
NAMES = [name for name in VARIANTS if name not in ("centernet2_alone", "one_stage", "fcos_pss_dropped")]
# With first weights and no norm, RetinaNet's boxes leave the image, and clipping makes them all alike.
NEAR = {"retinanet": {"dense_head": {"num_convs": 1, "norm": "gn"}}}


def overlaps(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    union = area + np.prod(np.maximum(box[2:] - box[:2], 0)) - common
    return np.where(common > 0, common / np.where(common > 0, union, 1), 0)


def softly(boxes, scores, labels, factor):
    """(rows, their scores as they are left), in numpy: Bodla et al. 2017, Fig. 2, each class by itself."""
    left, chosen = scores.astype("float64").copy(), []
    while len(chosen) < TOTAL and (left > 0).any():
        best = int(left.argmax())
        chosen.append((best, left[best]))
        same = labels == labels[best]
        left[same] *= factor(overlaps(boxes[best], boxes[same]))
        left[best] = -1
        left[same & (left < MIN_SCORE)] = -1
    return chosen


@pytest.mark.parametrize("name", slow_on_jax_but(NAMES, kept=["fcos", "centernet2"]))
def test_every_detector_ends_in_soft_nms_if_asked_to(name):
    """By the keys of a recipe; against numpy on the pairs that the detector itself picks."""
    selection = {"method": "soft_nms", "soft": "gaussian", "iou": IOU, "min_score": MIN_SCORE}
    # across classes: with first weights some heads' boxes meet none but themselves
    selection |= {"score_threshold": 0.0, "total": TOTAL, "pool": TOTAL, "class_wise": False}
    keras.utils.set_random_seed(0)
    detector = build_detector({**VARIANTS[name], **NEAR.get(name, {}), "selection": selection}, CLASSES)
    for variable in detector.weights:  # features without statistics are large: scores would all be 0 or 1
        if re.search("/roi_head/.*classes/kernel$", variable.path):
            variable.assign(variable * 0.01)
    x, _ = batch()
    raw = detector({key: x[key] for key in ("images", "size_hw")})
    candidates = detector.candidates(x, raw)
    assert compare(detector.selection, candidates)
    compare(dataclasses.replace(detector.selection, soft="linear", class_wise=True), candidates)
    answer = detector.detect(x, raw)
    assert ("masks" in answer) == name.startswith(("condinst", "mask_rcnn"))
    inside = ops.convert_to_numpy(answer["boxes"]) <= x["size_hw"][:, None, [1, 0, 1, 0]]
    assert inside.all()


def compare(selection, candidates):
    """Whether some detections have lost score and are there nevertheless."""
    picked, found = (
        {key: ops.convert_to_numpy(value) for key, value in part.items()}
        for part in (selection.pick(candidates), selection(candidates))
    )
    softened = False
    for image, valid in enumerate(found["valid"]):
        boxes, scores, labels = (picked[key][image] for key in ("boxes", "scores", "labels"))
        groups = labels if selection.class_wise else np.zeros_like(labels)
        usable = np.where(scores > 0, scores, -1)
        expected = softly(boxes.astype("float64"), usable, groups, FACTORS[selection.soft])
        left = [score for _, score in expected]
        assert valid.sum() == len(left) > 3
        # the order of scores that are equal but for rounding decides which of them decays the other
        np.testing.assert_allclose(found["scores"][image][valid], left, rtol=1e-3, atol=1e-7)
        softened |= bool((scores[[row for row, _ in expected]] > 1.001 * np.array(left)).any())
    return softened


def test_every_model_is_among_them():
    assert {VARIANTS[name]["name"] for name in NAMES} == MODELS.keys() - {"one_stage"}
