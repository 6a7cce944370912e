"""Cascade R-CNN's settings by hand: RoIs of later stages, weights of losses and gradients, scores."""

import itertools

import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.cascade_rcnn import CONVENTIONS, CascadeHead, scale_gradient
from kgarden.models.faster_rcnn import Coder, decode
from kgarden.models.fscascade import FSCascadeHead

numpy = ops.convert_to_numpy
SIZE_HW = np.int32([[64, 64]])
OBJECTS = np.float32([[[10, 10, 30, 30], [40, 20, 60, 50], [0, 0, 0, 0]]])
Y = {"boxes": OBJECTS, "labels": np.int32([[1, 0, -1]]), "crowd": np.zeros((1, 3), bool)}
PROPOSALS = np.float32([[[8, 8, 30, 32], [0, 40, 20, 60], [38, 20, 62, 52], [30, 0, 40, 9]]])
UNIFORM = np.random.default_rng(3).uniform(size=(1, 400)).astype("float32")


def head_of(seed=0, kind=CascadeHead, **settings):
    settings = {"width": 8, "num_samples": 8, "positive_fraction": 0.5, **settings}
    head = kind([8, 16], 3, **settings, name="roi_head")
    head.build([(None, None, None, 4)] * 2)
    rng = np.random.default_rng(seed)
    for variable in head.variables:
        scale = 2.0 if "/boxes/" in variable.path else 0.3
        variable.assign(rng.normal(size=variable.shape) * scale)
    return head


def pyramid():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, side, side, 4)).astype("float32") for side in (8, 4)]


def proposals():
    valid = np.ones(PROPOSALS.shape[:2], bool)
    return {"boxes": PROPOSALS, "scores": np.ones(valid.shape, "float32"), "valid": valid}


def trained(head):
    """Input boxes of each stage in training, the valid ones."""
    sampled = head.sample(proposals(), Y, lambda n: UNIFORM[:, :n])
    raw = head(pyramid(), sampled, SIZE_HW, training=True)
    return raw, [numpy(stage["boxes"])[0][numpy(stage["valid"])[0]] for stage in raw["stages"]]


def refined(raw, number, head):
    """What a stage makes of its valid RoIs, clipped."""
    stage = raw["stages"][number]
    boxes = np.clip(numpy(decode(stage, head.coders[number]))[0, :, 0], 0, 64)
    return boxes[numpy(stage["valid"])[0]]


def without_empty(boxes):
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def is_object(boxes):
    return (boxes[:, None] == OBJECTS[0][None, :2]).all(-1).any(-1)


def as_set(boxes):
    return {tuple(map(float, np.round(box, 3))) for box in boxes}


@pytest.mark.parametrize("gt_rois", ["refine", "drop", "readd"])
def test_later_stages_train_on_all_refined_boxes_and_ground_truth_by_policy(gt_rois):
    head = head_of(gt_rois=gt_rois)
    raw, boxes = trained(head)
    assert is_object(boxes[0]).sum() == 2 and len(boxes[0]) == 6
    for number in (1, 2):
        made = refined(raw, number - 1, head)
        if gt_rois != "refine":
            made = made[~is_object(boxes[number - 1])]
        made = without_empty(made)
        expected = np.concatenate([made, OBJECTS[0, :2]]) if gt_rois == "readd" else made
        assert len(made) > 1 and as_set(boxes[number]) == as_set(expected)
    # The number of rows does not grow from stage to stage.
    rows = [stage["boxes"].shape[1] for stage in raw["stages"]]
    assert rows == ([8, 11, 11] if gt_rois == "readd" else [8, 8, 8])


def test_rois_without_area_may_stay():
    head = head_of(drop_empty=False)
    raw, boxes = trained(head)
    for number in (1, 2):
        np.testing.assert_allclose(boxes[number], refined(raw, number - 1, head), atol=1e-3)
    assert any(len(without_empty(of_stage)) < len(of_stage) for of_stage in boxes)


@pytest.mark.parametrize("gt_rois", ["refine", "drop"])
def test_later_stages_resample(gt_rois):
    """Four of the refined boxes and the objects, half of them foreground at the stage's own threshold."""
    head = head_of(gt_rois=gt_rois, resample=True, num_samples=4, ious=(0.5, 0.6, 0.7))
    raw, boxes = trained(head)
    for number in (1, 2):
        before, made = boxes[number - 1], refined(raw, number - 1, head)
        made = made[~is_object(before)] if gt_rois == "drop" else made
        possible = as_set(without_empty(made)) | as_set(OBJECTS[0, :2])
        assert as_set(boxes[number]) <= possible and 1 <= len(boxes[number]) <= 4
        assert 1 <= is_object(boxes[number]).sum() <= 2  # positives come first, objects among them
        assert raw["stages"][number]["boxes"].shape[1] == 4


@pytest.mark.parametrize(("overlap", "drawn"), [(0.55, 2), (0.65, 1)])
def test_resampling_uses_the_threshold_of_its_stage(overlap, drawn):
    """Of two RoIs one may be foreground: below stage 1's 0.6 a box goes along with the object."""
    head = head_of(resample=True, num_samples=2)
    y = {"boxes": np.float32([[[0, 0, 10, 10]]]), "labels": np.int32([[0]]), "crowd": np.zeros((1, 1), bool)}
    sampled = {"ground_truth": y, "random": UNIFORM[:, None, :2]}
    before = {"boxes": np.float32([[[0, 0, 9, 9]]]), "valid": np.ones((1, 1), bool)}
    _, valid = head._next_rois(1, before, np.float32([[[0, 0, 10, 10 * overlap]]]), sampled)
    assert numpy(valid).sum() == drawn


def test_stages_draw_with_numbers_of_their_own():
    asked = []

    def random(n):
        asked.append(n)
        return UNIFORM[:, :n]

    sampled = head_of(resample=True).sample(proposals(), Y, random)
    first = PROPOSALS.shape[1] + OBJECTS.shape[1]
    later = 8 + OBJECTS.shape[1]
    assert asked == [first, first + 2 * later]
    np.testing.assert_array_equal(
        numpy(sampled["random"])[0], UNIFORM[0, first : first + 2 * later].reshape(2, later)
    )


def test_factors_on_losses_and_on_the_gradient_into_the_features():
    """Features' gradients are linear in both; a head's own gradient knows of its loss's weight alone."""

    def gradients(**settings):
        head = head_of(**settings)
        sampled = head.sample(proposals(), Y, lambda n: UNIFORM[:, :n])
        terms = {}

        def loss(fine, coarse):
            terms.update(head.losses(head([fine, coarse], sampled, SIZE_HW, training=True), Y))
            return sum(terms.values())

        own = [v for v in head.trainable_variables if "/fc1/kernel" in v.path]
        found = value_and_gradients(loss, pyramid(), own)[1]
        return found[0], found[2:]

    plain_features, plain_own = gradients(feature_gradient=1.0)
    factors = (1.0, 0.5, 0.25)
    authors, of_authors = gradients(feature_gradient=factors)
    weighed, of_weighed = gradients(feature_gradient=1.0, stage_weights=factors)
    np.testing.assert_allclose(authors, weighed, atol=1e-6)  # what the trunk sees is the same
    for number, plain in enumerate(plain_own):
        np.testing.assert_allclose(of_authors[number], plain, atol=1e-6)
        np.testing.assert_allclose(of_weighed[number], plain * factors[number], atol=1e-6)
    assert np.abs(authors - plain_features).max() > 1e-3
    thirds, own = gradients()
    np.testing.assert_allclose(thirds, plain_features / 3, atol=1e-6)
    for gradient, plain in zip(own, plain_own, strict=True):
        np.testing.assert_allclose(gradient, plain, atol=1e-6)
    assert np.abs(plain_features).max() > 1e-3


def test_terms_are_weighted():
    def terms(**settings):
        head = head_of(**settings)
        raw, _ = trained(head)
        return np.array([float(term) for term in head.losses(raw, Y).values()])

    np.testing.assert_allclose(
        terms(stage_weights=(1.0, 0.5, 0.25)), terms() * [1, 1, 0.5, 0.5, 0.25, 0.25], rtol=1e-6
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_scores_of_every_ensemble():
    head = head_of(ensemble="last_rois")
    raw = head(pyramid(), proposals(), SIZE_HW)
    own = np.stack([numpy(stage["logits"]) for stage in raw["stages"]])
    last = numpy(raw["stages"][-1]["boxes"])
    # All heads on the RoIs of the last stage: each head put in the first place of a cascade of one stage.
    on_last = []
    for number in range(3):
        alone = head_of(ious=(0.5,))
        for to, of in zip(alone.variables, head.box_heads[number].variables, strict=True):
            to.assign(of)
        again = alone(pyramid(), {**proposals(), "boxes": last}, SIZE_HW)
        on_last.append(numpy(again["stages"][0]["logits"]))
    np.testing.assert_allclose(on_last[-1], own[-1], rtol=1e-5, atol=1e-5)
    assert np.abs(on_last[0] - own[0]).max() > 0.1
    expected = {
        "probability": softmax(own).mean(0),
        "logits": softmax(own.mean(0)),
        "last": softmax(own[-1]),
        "last_rois": softmax(np.stack(on_last)).mean(0),
    }
    for (name, wanted), (_, other) in itertools.permutations(expected.items(), 2):
        head = head_of(ensemble=name)
        found = head.candidates(head(pyramid(), proposals(), SIZE_HW), proposals(), SIZE_HW)
        np.testing.assert_allclose(numpy(found["scores"]), wanted[..., :-1], rtol=1e-4, atol=1e-6)
        assert np.abs(wanted - other).max() > 1e-3
    assert "on_last" not in head_of(ensemble="last_rois")(pyramid(), proposals(), SIZE_HW, training=True)


@pytest.mark.parametrize("kind", [CascadeHead, FSCascadeHead])
def test_one_stage_alone_is_the_last_of_a_shorter_cascade(kind):
    """Its boxes and scores, whatever the ensemble; training runs all stages."""

    def detections(head):
        raw = head(pyramid(), proposals(), SIZE_HW)
        found = head.candidates(raw, proposals(), SIZE_HW)
        return raw, [numpy(found[key]) for key in ("boxes", "scores")]

    whole = head_of(kind=kind, ensemble="probability")
    raw, together = detections(whole)
    seen = [together]
    for stage in (1, 2, 3):
        _, wanted = detections(head_of(kind=kind, ious=(0.5, 0.6, 0.7)[:stage], ensemble="last"))
        one = head_of(kind=kind, ensemble="last_rois", test_stage=stage)
        of_one, found = detections(one)
        assert len(of_one["stages"]) == stage and "on_last" not in of_one
        of_stage = whole.of_stage(raw, stage, SIZE_HW)
        for key, own, mine, theirs in zip(("boxes", "scores"), found, of_stage.values(), wanted, strict=True):
            np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-4, err_msg=key)
            np.testing.assert_allclose(numpy(mine), theirs, rtol=1e-5, atol=1e-4, err_msg=key)
        assert all(np.abs(found[1] - other[1]).max() > 1e-3 for other in seen)
        seen.append(found)
        sampled = one.sample(proposals(), Y, lambda n: UNIFORM[:, :n])
        assert len(one(pyramid(), sampled, SIZE_HW, training=True)["stages"]) == 3


def test_a_gradient_is_scaled_and_the_value_is_not():
    value, (gradient,) = value_and_gradients(
        lambda x: ops.sum(scale_gradient(x, 0.25) ** 2), [np.float32([3.0])]
    )
    assert value == 9 and gradient == pytest.approx(1.5)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_are_settings_of_both_stages(convention):
    settings = {"name": "cascade_rcnn", "backbone": "resnet18", "convention": convention}
    detector = build_detector(settings, 3)
    head, rpn = detector.roi_head, detector.proposer.head
    assert detector.proposer.train.total == 2000 and detector.proposer.test.total == 1000
    legacy, ours = convention == "maskrcnn_benchmark", convention.startswith("mmdetection")
    assert head.coders[0].plus_one is legacy and head.coders[0].clamp_below is ours
    assert head.box_loss.keywords == {"beta": 0.0 if convention == "detectron2" else 1.0}
    assert (rpn.box_beta, rpn.straddle) == {
        "detectron2": (0.0, None),
        "mmdetection": (1 / 9, 0.0),
        "mmdetection_1": (1 / 9, 0.5),
        "maskrcnn_benchmark": (1 / 9, 0.0),
    }[convention]
    third = Coder((30.0, 30.0, 15.0, 15.0), legacy, legacy)
    if ours:
        assert head.coders[2].weights == pytest.approx((30.303, 30.303, 14.925, 14.925), abs=1e-3)
    else:
        assert head.coders[2].weights == third.weights
    assert (head.stage_weights, head.feature_gradient) == {
        "detectron2": ((1, 1, 1), (1 / 3, 1 / 3, 1 / 3)),
        "mmdetection": ((1, 0.5, 0.25), (1, 1, 1)),
        "mmdetection_1": ((1, 0.5, 0.25), (1, 1, 1)),
        "maskrcnn_benchmark": ((1, 1, 1), (1, 0.5, 0.25)),
    }[convention]
    assert (head.resample, head.gt_rois, head.ensemble) == {
        "detectron2": (False, "refine", "probability"),
        "mmdetection": (True, "drop", "logits"),
        "mmdetection_1": (True, "drop", "logits"),
        "maskrcnn_benchmark": (False, "readd", "last_rois"),
    }[convention]
    assert head.drop_empty is not ours
    assert (rpn.pad_divisor, rpn.match_discarded) == ((32, False) if ours else (None, True))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="resample adds ground truth anyway; use .drop."):
        head_of(resample=True, gt_rois="readd")
    with pytest.raises(UserError, match="3 ious but 2 stage_weights"):
        head_of(stage_weights=(1.0, 0.5))
    with pytest.raises(UserError, match="roi_head.ensemble 'mean': one of probability"):
        head_of(ensemble="mean")
    for stage in (0, 4, True, 1.0, "2"):
        with pytest.raises(UserError, match=f"test_stage {stage!r}: a number from 1 to 3, .*, or null"):
            head_of(test_stage=stage)
    with pytest.raises(UserError, match="convention 'caffe': one of detectron2"):
        build_detector({"name": "cascade_rcnn", "convention": "caffe"}, 3)


def test_later_stages_teach_nothing_to_the_boxes_that_they_start_from():
    """Boxes go on without a gradient: stage 1's deltas know of stage 1's loss alone."""
    head = head_of()
    sampled = head.sample(proposals(), Y, lambda n: UNIFORM[:, :n])
    deltas = head.box_heads[0].boxes.kernel
    for weight in head.box_heads[0].boxes.weights:  # the second stage sees the same RoIs: it has foreground
        weight.assign(np.zeros(weight.shape))

    def terms(*maps):
        return head.losses(head(list(maps), sampled, SIZE_HW, training=True), Y)

    def later(*maps):
        return sum(term for name, term in terms(*maps).items() if name != "stage0/box")

    assert float(terms(*pyramid())["stage1/box"]) > 0
    _, gradients = value_and_gradients(later, pyramid(), [deltas])
    assert gradients[-1] is None or not np.any(gradients[-1])
