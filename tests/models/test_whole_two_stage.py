"""Whole two-stage detectors against their references: images to detections, losses and gradients."""

import numpy as np
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
    answering,
    bitmaps_of,
    double_precision,
    logit,
    named_masks,
    named_proposals,
    named_pyramid,
    named_roi_outputs,
    named_statistics,
    named_tests,
    probability,
    proposals_of,
    rois_of,
)

from kgarden.models import build_detector
from kgarden.models.double_head import FIG_8
from kgarden.weights import detectron2, maskrcnn_benchmark, mmdetection
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
    of_rois = rois_of(detector, raw, first, x["size_hw"])
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


# --- the Double-Head release --------------------------------------------------------------------------------


def double_head_recipe(s, images):
    """A file's configuration as in recipes/double_head.yaml, row table3.complementary."""
    config, widths = s["config"], s["changed_from_the_published"]
    box_head = "MODEL.ROI_BOX_HEAD."
    width = widths[box_head + "NONLOCAL_OUT_CHANNELS"]
    # The release keeps the best of the batch; in plain_* every image has equally many of them. Places are
    # a few more than there are RoIs, and not as many as the file has, since padding takes memory as well.
    proposals = widths["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"] // images
    places = min(widths["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"], proposals + 64)
    return {
        "name": "double_head",
        "configuration": "double_head_ext",
        "backbone": {
            "name": "resnet50",
            "freeze_at": config["MODEL.BACKBONE.FREEZE_CONV_BODY_AT"],
            "stride_in_1x1": config["MODEL.RESNETS.STRIDE_IN_1X1"],
            "stem_channels": widths["MODEL.RESNETS.STEM_OUT_CHANNELS"],
            "res2_channels": widths["MODEL.RESNETS.RES2_OUT_CHANNELS"],
            "width_per_group": widths["MODEL.RESNETS.WIDTH_PER_GROUP"],
        },
        "pixels": {"mean": config["INPUT.PIXEL_MEAN"], "std": config["INPUT.PIXEL_STD"], "order": "bgr"},
        "neck": {"channels": widths["MODEL.BACKBONE.OUT_CHANNELS"]},
        "rpn": {"num_samples": widths["MODEL.RPN.BATCH_SIZE_PER_IMAGE"]},
        "proposals": {"train": {"total": proposals}},
        "roi_head": {
            "num_samples": places,
            "fc_head": {"width": widths[box_head + "MLP_HEAD_DIM"]},
            "conv_head": {
                "width": width,
                "middle": width // 4,
                "blocks": 1 + 2 * config[box_head + "NONLOCAL_SHARED_NUM_STACK"],
                "non_local": {"width": widths[box_head + "NONLOCAL_INTER_CHANNELS"]},
            },
        },
    }


DOUBLE_HEAD = {
    "rpn/objectness": "plain_loss_objectness",
    "rpn/box": "plain_loss_rpn_box_reg",
    "roi/conv_class": "plain_loss_classifier",
    "roi/conv_box": "plain_loss_box_reg",
    "roi/fc_class": "plain_loss_classifier_fc",
    "roi/fc_box": "plain_loss_box_reg_fc",
}


@pytest.mark.parametrize("golden", goldens("whole_double_head"), ids=str)
def test_double_head(golden):
    s = params(golden)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    detector = build_detector(double_head_recipe(s, len(x["images"])), s["num_classes"])
    load_state_dict(
        detector,
        golden.state_dict(),
        maskrcnn_benchmark.DOUBLE_HEAD,
        conversions=maskrcnn_benchmark.CONVERSIONS,
    )
    raw = forward(detector, x)
    got = named_pyramid(s["levels"], raw)
    for name, training in (("plain_train_proposal", True), ("plain_proposal", False)):
        proposals = proposals_of(detector, raw, x["size_hw"], training=training)
        got |= named_proposals(f"{name}s", f"{name}_scores", proposals, probability)
    got |= named_tests(detector, x, raw, {"plain_mode3": {}})
    of_rois = rois_of(detector, raw, proposals, x["size_hw"])
    for mode, panel in enumerate("abc"):
        detector.roi_head.classify_with = FIG_8[panel]["classify_with"]
        detector.roi_head.regress_with = FIG_8[panel]["regress_with"]
        with answering(detector, of_rois):
            got |= named_tests(detector, x, raw, {f"plain_mode{mode}": {}})

    step = train_step(detector, x, y)
    got |= named_terms(step.terms, DOUBLE_HEAD)
    table = maskrcnn_benchmark.DOUBLE_HEAD
    gradients = named_gradients(golden, step.gradients, table, prefix="grad/plain/")
    got |= {name: background_first(name, gradient) for name, gradient in gradients.items()}
    got |= named_statistics(golden, detector, table, "plain_updated/")
    assert_agrees(golden, got)


def background_first(name, gradient):
    """A gradient of an output layer with the rows of the release, in which background has the first ones."""
    if ".cls_score" in name:
        return np.roll(gradient, 1, axis=-1)
    if ".box.predictor.bbox_pred" in name:
        return np.pad(gradient, [(0, 0)] * (gradient.ndim - 1) + [(4, 0)])
    return gradient
