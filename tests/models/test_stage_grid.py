"""Every first stage with every RoI head, as `two_stage` assembles them: a training step, and detections."""

import itertools

import keras
import numpy as np
import pytest
from support.gradients import value_and_gradients
from support.marks import ON_JAX
from support.small_backbone import RESNET10
from support.variants import batch

from kgarden.models import build_detector

DENSE = {"num_convs": 1, "width": 8}
FIRST_STAGES = {
    "rpn": {"name": "rpn", "width": 8, "sizes": [[8], [16], [32], [64], [128]], "num_samples": 32},
    "retinanet": {"name": "retinanet", **DENSE},
    "fcos": {"name": "fcos", **DENSE, "norm_groups": 4},
    "atss": {"name": "atss", **DENSE, "norm_groups": 4},
    "gfl": {"name": "gfl", **DENSE, "norm_groups": 4},
    "centernet": {"name": "centernet", **DENSE, "norm_groups": 4, "objectness": True},
    "pss": {
        "name": "pss",
        "base": {"name": "fcos", **DENSE, "norm_groups": 4},
        "selector": {"num_convs": 1, "norm_groups": 4},
    },
}
ROI_HEADS = {
    "2fc": {"name": "faster", "width": 4},
    "conv": {"name": "faster", "width": 4, "num_convs": 1, "num_fcs": 1},
    "double_head": {
        "name": "double_head",
        "fc_head": {"width": 4},
        "conv_head": {"blocks": 1, "non_local": False, "width": 8, "middle": 4},
    },
    "tsd": {"name": "tsd", "width": 4, "offset_width": 4},
    "cascade": {"name": "cascade", "width": 4},
    "tsd_cascade": {"name": "tsd_cascade", "width": 4, "offset_width": 4},
    "fscascade": {"name": "fscascade", "width": 4},
}
HOW = {"pss": {"method": "none"}}  # proposals without NMS
# Each first stage and each head once; on JAX, which compiles every shape, a pair that no paper has.
DIAGONAL = [("rpn", "tsd_cascade"), ("centernet", "tsd"), ("pss", "tsd"), ("retinanet", "2fc")]
DIAGONAL += [("fcos", "conv"), ("atss", "double_head"), ("gfl", "cascade"), ("centernet", "fscascade")]
ON_BOTH = [("centernet", "tsd")]


def pairs():
    for pair in itertools.product(FIRST_STAGES, ROI_HEADS):
        fast = pair in (ON_BOTH if ON_JAX else DIAGONAL)
        yield pytest.param(*pair, marks=[] if fast else pytest.mark.slow, id="-".join(pair))


@pytest.mark.parametrize("first, second", list(pairs()))
def test_a_pair_trains_and_detects(first, second):
    keras.utils.set_random_seed(0)
    proposals = HOW.get(first, {})
    fuse = "released" if first == "centernet" else "off"
    settings = {
        "name": "two_stage",
        "backbone": RESNET10,
        "neck": {"channels": 8},
        "proposer": {
            "head": FIRST_STAGES[first],
            "train": {"total": 16, "per_level": 16, **proposals},
            "test": {"total": 8, **proposals},
        },
        "roi_head": {**ROI_HEADS[second], "num_samples": 8, "fuse": fuse},
        "selection": {"score_threshold": 0.0, "total": 8},
    }
    detector = build_detector(settings, 2)
    x, y = batch(images=1, height=64, width=64)
    y["labels"] = np.minimum(y["labels"], 1)

    def loss():
        terms = detector.loss_terms(x, y, detector(x, training=True), training=True)
        assert terms.keys() == set(detector.loss_names)
        return sum(terms.values())

    weights = detector.trainable_variables
    value, gradients = value_and_gradients(loss, [], weights)
    assert np.isfinite(value) and all(np.isfinite(one).all() for one in gradients)
    moved = {v.path for v, one in zip(weights, gradients, strict=True) if np.any(one)}
    assert any("roi_head" in path for path in moved) and any("neck" in path for path in moved)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.assign_sub(0.01 * gradient)
    found = detector.detect(x, detector(x))
    found = {key: keras.ops.convert_to_numpy(one) for key, one in found.items()}
    assert found["boxes"].shape == (1, 8, 4) and found["valid"].any()
    assert all(np.isfinite(one).all() for one in found.values())
