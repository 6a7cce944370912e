"""Whole two-stage detectors against their references: images to detections, losses and gradients."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.whole_models import (
    batch_of,
    examples_of,
    forward,
    named_gradients,
    named_maps,
    named_terms,
    train_step,
)
from support.whole_two_stage import (
    first_of,
    logit,
    named_proposals,
    named_roi_outputs,
    named_tests,
    probability,
    proposals_of,
)

from kgarden.models import build_detector
from kgarden.structures import BOXES, VALID
from kgarden.weights import detectron2, maskrcnn_benchmark, mmdetection
from kgarden.weights.state_dict import load_state_dict

MAPS = ["p2", "p3", "p4", "p5", "p6"]


def first_stage(s, golden, detector, x, raw, score):
    """Pyramid, outputs of RPN and proposals of both modes."""
    of_rpn = raw["proposer"]
    got = {f"{name}_ch0to3": map_ for name, map_ in named_maps("feat", MAPS, raw["pyramid"], 4).items()}
    got |= named_maps("rpn_logits", MAPS, of_rpn["classes"]) | named_maps("rpn_deltas", MAPS, of_rpn["code"])
    got["rpn_deltas_p2_ch0to3"] = got.pop("rpn_deltas_p2")[..., :4]
    return got


# --- mmdetection --------------------------------------------------------------------------------------------


def mmdetection_recipe(s):
    """A file's configuration as the `model` section of a recipe."""
    config = s["config"]
    backbone, rpn = config["backbone"], config["train_cfg"]["rpn"]
    heads, sampler = config["roi_head"]["bbox_head"], config["roi_head"]["train_cfg"]
    head, sampler = (part[0] if isinstance(part, list) else part for part in (heads, sampler))
    return {
        "name": "cascade_rcnn" if s["stages"] > 1 else "faster_rcnn",
        "convention": "mmdetection",
        "backbone": {
            "name": f"resnet{backbone['depth']}",
            "freeze_at": backbone["frozen_stages"] + 1,
            "stem_channels": backbone["stem_channels"],
            "res2_channels": 4 * backbone["base_channels"],
            "width_per_group": backbone["base_channels"],
        },
        "pixels": "torchvision",
        "neck": {"channels": config["neck"]["out_channels"]},
        "rpn": {"num_samples": rpn["sampler"]["num"]},
        "roi_head": {"width": head["fc_out_channels"], "num_samples": sampler["sampler"]["num"]},
    }


@pytest.mark.parametrize(
    "golden", goldens("whole_mmdet_faster_rcnn") + goldens("whole_mmdet_cascade_rcnn"), ids=str
)
def test_mmdetection(golden):
    s = params(golden)
    detector = build_detector(mmdetection_recipe(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), mmdetection.TWO_STAGE)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    raw = forward(detector, x)
    got = first_stage(s, golden, detector, x, raw, probability)

    tested = proposals_of(detector, raw, x["size_hw"], training=False)
    got |= named_proposals("proposals", "proposal_scores", tested, probability)
    trained = proposals_of(detector, raw, x["size_hw"], training=True)
    got |= named_proposals("train_proposals", "train_proposal_scores", trained, probability)
    tested = first_of(tested, s["roi_outputs_of_first"])
    of_rois = detector.roi_head(raw["pyramid"], tested, x["size_hw"])
    if s["stages"] == 1:
        got |= named_roi_outputs(of_rois, tested, probability)
    for number, stage in enumerate(of_rois.get("stages", []), start=1):
        got |= named_roi_outputs(stage, tested, probability, f"stage{number}_")
    got |= named_tests(detector, x, raw, s["tests"], 10_000)

    step = train_step(detector, x, y)
    names = {"rpn/objectness": "loss_rpn_cls", "rpn/box": "loss_rpn_bbox"}
    names |= {"roi/class": "loss_cls", "roi/box": "loss_bbox"}
    for stage in range(s["stages"]):
        names |= {f"stage{stage}/class": f"loss_s{stage}_loss_cls"}
        names |= {f"stage{stage}/box": f"loss_s{stage}_loss_bbox"}
    got |= named_terms(step.terms, names)
    got |= named_gradients(golden, step.gradients, mmdetection.TWO_STAGE)
    assert_agrees(golden, got)
