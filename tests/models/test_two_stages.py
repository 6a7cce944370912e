"""What connects two stages: who is asked for what, in which mode, and where gradients end."""

from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.heads.selection import Selection
from kgarden.models.base.two_stage import AsProposer, TwoStage

BOXES = np.float32([[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]])
SCORES = np.float32([[[0.2], [0.9], [0.5]]])
PROBABILITY = np.float32([[[0.04], [0.81], [0.25]]])
X = {"size_hw": np.int32([[64, 64]])}
Y = {"image_id": np.int32([3])}


def proposer():
    def candidates(raw, size_hw):
        return {"boxes": raw["boxes"], "scores": raw["scores"], "probability": raw["probability"]}

    limits = {"score_threshold": 0.0, "class_wise": False}
    train, test = Selection(total=3, **limits), Selection(total=2, **limits)
    return AsProposer(SimpleNamespace(candidates=candidates), train, test)


def test_proposals_are_the_best_of_each_mode_with_their_own_probability():
    raw = {"boxes": BOXES, "scores": SCORES, "probability": PROBABILITY}
    for training, rows in ((True, [1, 2, 0]), (False, [1, 2])):
        found = proposer().proposals(raw, X["size_hw"], training)
        for key, array in (
            ("boxes", BOXES),
            ("scores", SCORES[..., 0]),
            ("probability", PROBABILITY[..., 0]),
        ):
            np.testing.assert_array_equal(ops.convert_to_numpy(found[key]), array[:, rows])


def test_no_gradient_flows_through_proposals():
    def total(boxes, scores, probability):
        raw = {"boxes": boxes, "scores": scores, "probability": probability}
        found = proposer().proposals(raw, X["size_hw"], training=True)
        return sum(ops.sum(found[key]) for key in ("boxes", "scores", "probability")) + 0.0 * ops.sum(boxes)

    for gradient in value_and_gradients(total, [BOXES, SCORES, PROBABILITY])[1]:
        assert gradient is None or not np.any(gradient)


class RoIHead:
    """Notes how it is called."""

    def __init__(self):
        self.modes = []

    def __call__(self, pyramid, proposals, size_hw, training=False):
        self.modes.append(training)
        return proposals

    def sample(self, proposals, y, random):
        return {"sampled": proposals}

    def candidates(self, predictions, proposals, size_hw):
        return {"scores": 0.5}

    def losses(self, predictions, y):
        return {"roi": 1.0}


class Proposer:
    """Notes in which mode proposals are asked for."""

    def __init__(self):
        self.modes = []

    def proposals(self, raw, size_hw, training):
        self.modes.append(training)
        return {"scores": 0.25}

    def losses(self, raw, y, step=None):
        return {"step": step}


class Parts(SimpleNamespace):
    """A TwoStage of parts that need no layers."""

    refined, fused = TwoStage.refined, TwoStage.fused
    proposals, classified = TwoStage.proposals, TwoStage.classified


def detector(**parts):
    return Parts(
        proposer=Proposer(),
        roi_head=RoIHead(),
        mask_head=None,
        **{"fuse": None, "seed": 0, "step": 7, **parts},
    )


RAW = {"pyramid": [], "proposer": None}


@pytest.mark.parametrize(
    ("fuse", "score"), [(None, 0.5), (lambda scores, proposals: scores * proposals["scores"], 0.125)]
)
def test_candidates_are_those_of_inference_with_fused_scores(fuse, score):
    two = detector(fuse=fuse)
    assert TwoStage.candidates(two, X, RAW)["scores"] == score
    assert two.proposer.modes == [False] and two.roi_head.modes == [False]


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_those_of_training_and_know_the_step_in_training_alone(training):
    two = detector()
    terms = TwoStage.loss_terms(two, X, Y, RAW, training)
    assert terms == {"step": 7 if training else None, "roi": 1.0}
    assert two.proposer.modes == [True] and two.roi_head.modes == [True]
