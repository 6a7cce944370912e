"""First stages of CenterNet2 by name: their settings, their selections, and what P(O) is of each."""

import numpy as np
import pytest
from keras import ops

from kgarden.errors import UserError
from kgarden.models.centernet2 import _proposer
from kgarden.models.rpn import ranking
from kgarden.necks import make_neck

NECK = {"channels": 8}
SIZE_HW = np.int32([[64, 64]])


def first_stage(name, **settings):
    return _proposer(make_neck(NECK), 5, name=name, **settings)


@pytest.fixture(scope="module")
def pyramid():
    rng = np.random.default_rng(0)
    return [np.float32(rng.normal(size=(1, side, side, 8))) for side in (8, 4, 2, 1, 1)]


def proposals_of(stage, pyramid, training=False):
    stage.build([level.shape for level in pyramid])
    raw = stage([ops.convert_to_tensor(level) for level in pyramid])
    found = stage.proposals(raw, SIZE_HW, training)
    return raw, {key: ops.convert_to_numpy(value) for key, value in found.items()}


def test_rpn_proposes_with_its_own_selection_and_a_probability(pyramid):
    own = first_stage("rpn", width=8)
    assert (own.train.total, own.train.per_level, own.test.total, own.test.per_level) == (
        1000,
        2000,
        1000,
        1000,
    )
    assert own.test.iou == 0.7 and own.test.method == "nms" and own.test.level_wise
    assert own.head.seed == 5
    given = first_stage("rpn", width=8, test=3, train_per_level=7, nms_iou=0.8)
    assert (given.test.total, given.train.per_level, given.train.total) == (3, 7, 1000)
    assert given.test.iou == given.train.iou == 0.8
    raw, found = proposals_of(given, pyramid)
    logits = np.concatenate([ops.convert_to_numpy(level).ravel() for level in raw["classes"]])
    rows = np.abs(found["scores"][0][:, None] - ops.convert_to_numpy(ranking(logits))).argmin(axis=1)
    assert found["valid"].all()
    np.testing.assert_allclose(found["probability"][0], 1 / (1 + np.exp(-logits[rows])), rtol=1e-5)


def test_fcos_proposes_half_as_loud_on_one_tower(pyramid):
    stage = first_stage("fcos", num_convs=1, norm_groups=4, test=4)
    head = stage.head
    assert head.class_tower is None and head.num_classes is None and head.width == 8
    assert head.weights_of_terms == {"class": 0.5, "box": 0.5, "centerness": 0.5}
    assert (stage.test.iou, stage.test.total, stage.train.total) == (0.9, 4, 2000)
    assert (stage.train.per_level, stage.test.per_level) == (4000, 1000)
    assert stage.test.method == stage.train.method == "nms" and stage.test.score_threshold == 1e-4
    raw, found = proposals_of(stage, pyramid)
    scores = ops.convert_to_numpy(head.scores(raw))[0, :, 0]
    nearest = np.abs(found["probability"][0][:, None] - scores).min(axis=1)
    assert found["valid"].all() and nearest.max() < 1e-7 and (np.diff(found["probability"][0]) <= 0).all()
    np.testing.assert_allclose(found["scores"], np.sqrt(found["probability"]), rtol=1e-6)


@pytest.mark.parametrize("base", ["fcos", "atss"])
def test_pss_proposes_without_nms(pyramid, base):
    small = {"name": base, "num_convs": 1, "norm_groups": 4}
    stage = first_stage("pss", base=small, selector={"num_convs": 1, "norm_groups": 4}, test=4)
    head = stage.head
    assert stage.test.method == stage.train.method == "none"
    assert head.base.class_tower is None and head.base.width == 8 and head.prediction == "end_to_end"
    assert head.weights_of_terms == {"class": 0.5, "rank": 0.125}
    assert head.base.weights_of_terms["class"] == head.base.weights_of_terms["centerness"] == 0.5
    assert head.base.weights_of_terms["box"] == {"fcos": 0.5, "atss": 1.0}[base]
    raw, found = proposals_of(stage, pyramid)
    joint = np.exp(ops.convert_to_numpy(head.probability(raw).yes))[0, :, 0]
    np.testing.assert_allclose(found["probability"][0], np.sort(joint)[::-1][:4], rtol=1e-5)


def test_without_a_name_the_base_of_pss_is_fcos_and_one_to_many_uses_nms():
    stage = first_stage("pss", base={"num_convs": 1}, prediction="one_to_many")
    assert type(stage.head.base).__name__ == "FCOSHead"
    assert stage.test.method == "nms"
    assert first_stage("pss", method="nms").test.method == "nms"


def test_unknown_first_stages_are_refused():
    with pytest.raises(UserError, match=r"proposer\.name 'defcn': one of centernet, .*fcos, pss, rpn"):
        first_stage("defcn")
    with pytest.raises(UserError, match=r"model\.proposer\.base\.name 'centernet': one of fcos"):
        first_stage("pss", base={"name": "centernet"})
