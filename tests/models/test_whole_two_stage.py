"""Whole two-stage detectors against their references: images to detections, losses and gradients."""

import pytest
from support.golden import assert_agrees, goldens, params
from support.whole_models import (
    batch_of,
    detections_of,
    examples_of,
    forward,
    named_gradients,
    named_terms,
    train_step,
)
from support.whole_two_stage import (
    bitmaps_of,
    double_precision,
    logit,
    named_masks,
    named_proposals,
    named_pyramid,
    named_roi_outputs,
    named_tests,
    probability,
    proposals_of,
)

from kgarden.models import build_detector
from kgarden.weights import detectron2, mmdetection
from kgarden.weights.state_dict import load_state_dict


@pytest.fixture(autouse=True)
def in_double_precision():
    with double_precision():
        yield


def inference_of(s, detector, x, raw, score):
    """Everything from the pyramid to detections, by the names of a file.

    Args:
        s:     the file's settings.
        raw:   of the detector's call.
        score: what the file calls the score of a proposal, `logit` or `probability`.
    """
    got = named_pyramid(s["levels"], raw)
    trained = proposals_of(detector, raw, x["size_hw"], training=True)
    got |= named_proposals("train_proposals", "train_proposal_scores", trained, score)
    tested = proposals_of(detector, raw, x["size_hw"], training=False)
    got |= named_proposals("proposals", "proposal_scores", tested, score)
    first = {key: value[:, : s["roi_outputs_of_first"]] for key, value in tested.items()}
    of_rois = detector.roi_head(raw["pyramid"], first, x["size_hw"])
    stages = of_rois.get("stages", [of_rois])
    for number, stage in enumerate(stages, start=1):
        got |= named_roi_outputs(stage, first, score, f"stage{number}_" if len(stages) > 1 else "")
    return got | named_tests(detector, x, raw, s["tests"])


# --- mmdetection --------------------------------------------------------------------------------------------


def mmdetection_recipe(s):
    """A file's configuration as in recipes/faster_rcnn.yaml, rows mmdetection.*, and cascade_rcnn.yaml."""
    config, widths = s["config"], s["changed_from_the_published"]
    return {
        "name": "cascade_rcnn" if s["stages"] > 1 else "faster_rcnn",
        "convention": "mmdetection",
        "backbone": {
            "name": f"resnet{config['backbone']['depth']}",
            "freeze_at": config["backbone"]["frozen_stages"] + 1,
            "stem_channels": widths["backbone.stem_channels"],
            "res2_channels": 4 * widths["backbone.base_channels"],
            "width_per_group": widths["backbone.base_channels"],
        },
        "pixels": "torchvision",
        "neck": {"channels": widths["neck.out_channels"]},
        "rpn": {"num_samples": widths["train_cfg.rpn.sampler.num"]},
        "roi_head": {
            "width": widths["roi_head.bbox_head.fc_out_channels"],
            "num_samples": widths["train_cfg.rcnn.sampler.num"],
        },
    }


MMDETECTION = {"rpn/objectness": "loss_rpn_cls", "rpn/box": "loss_rpn_bbox"}
MMDETECTION |= {"roi/class": "loss_cls", "roi/box": "loss_bbox"}
MMDETECTION |= {
    f"stage{stage}/{ours}": f"loss_s{stage}_{theirs}"
    for stage in range(3)
    for ours, theirs in (("class", "loss_cls"), ("box", "loss_bbox"))
}


@pytest.mark.parametrize(
    "golden", goldens("whole_mmdet_faster_rcnn") + goldens("whole_mmdet_cascade_rcnn"), ids=str
)
def test_mmdetection(golden):
    s = params(golden)
    detector = build_detector(mmdetection_recipe(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), mmdetection.TWO_STAGE)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    got = inference_of(s, detector, x, forward(detector, x), probability)
    step = train_step(detector, x, y)
    got |= named_terms(step.terms, MMDETECTION)
    got |= named_gradients(golden, step.gradients, mmdetection.TWO_STAGE)
    assert_agrees(golden, got)


# --- detectron2 ---------------------------------------------------------------------------------------------


def detectron2_recipe(s):
    """A file's configuration as in recipes/mask_rcnn.yaml, rows detectron2.*."""
    config, widths = s["config"], s["changed_from_the_published"]
    settings = {
        "name": "mask_rcnn",
        "convention": "detectron2",
        "backbone": {
            "name": f"resnet{config['MODEL.RESNETS.DEPTH']}",
            "freeze_at": config["MODEL.BACKBONE.FREEZE_AT"],
            "stride_in_1x1": config["MODEL.RESNETS.STRIDE_IN_1X1"],
            "stem_channels": widths["MODEL.RESNETS.STEM_OUT_CHANNELS"],
            "res2_channels": widths["MODEL.RESNETS.RES2_OUT_CHANNELS"],
            "width_per_group": widths["MODEL.RESNETS.WIDTH_PER_GROUP"],
        },
        "pixels": "msra",
        "neck": {"channels": widths["MODEL.FPN.OUT_CHANNELS"]},
        "rpn": {"num_samples": widths["MODEL.RPN.BATCH_SIZE_PER_IMAGE"]},
        "roi_head": {
            "name": "cascade" if s["stages"] > 1 else "faster",
            "width": widths["MODEL.ROI_BOX_HEAD.FC_DIM"],
            "num_samples": widths["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
        },
        "mask_head": {"width": widths["MODEL.ROI_MASK_HEAD.CONV_DIM"]},
    }
    if s["stages"] > 1:
        settings["proposals"] = {"train": {"total": config["MODEL.RPN.POST_NMS_TOPK_TRAIN"]}}
    return settings


DETECTRON2 = {"rpn/objectness": "loss_rpn_cls", "rpn/box": "loss_rpn_loc", "roi/mask": "loss_mask"}
DETECTRON2 |= {"roi/class": "loss_cls", "roi/box": "loss_box_reg"}
DETECTRON2 |= {
    f"stage{stage}/{ours}": f"{theirs}_stage{stage}"
    for stage in range(3)
    for ours, theirs in (("class", "loss_cls"), ("box", "loss_box_reg"))
}


@pytest.mark.parametrize(
    "golden", goldens("whole_d2_mask_rcnn") + goldens("whole_d2_cascade_mask_rcnn"), ids=str
)
def test_detectron2(golden):
    s = params(golden)
    detector = build_detector(detectron2_recipe(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), detectron2.TABLE, ignore=detectron2.IGNORE)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    y["masks"] = bitmaps_of(golden, y)
    raw = forward(detector, x)
    got = inference_of(s, detector, x, raw, logit)
    got |= named_masks(golden, detections_of(detector, x, raw), x["size_hw"])
    step = train_step(detector, x, y)
    got |= named_terms(step.terms, DETECTRON2)
    got |= named_gradients(golden, step.gradients, detectron2.TABLE)
    assert_agrees(golden, got)
