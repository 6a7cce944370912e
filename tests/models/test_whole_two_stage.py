"""Whole two-stage detectors with the references' weights: from images to detections, losses and gradients.

Models are built from the recipes of the published configurations; widths and numbers of samples alone are the
files'.
"""

import keras
import numpy as np
import pytest
from support.golden import assert_agrees, goldens, params
from support.jit import fast
from support.whole_models import (
    batch_of,
    detections_of,
    examples_of,
    forward,
    named_gradients,
    named_terms,
    published_settings,
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
    named_statistics,
    named_tests,
    probability,
    proposals_of,
    rois_of,
    with_predictions,
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
    Returns:
        got:     {name: array}
        first:   the first proposals of each image, as many as the file has outputs of.
        of_rois: raw outputs of the RoI head for them.
    """
    got = named_pyramid(s["levels"], raw)
    trained = proposals_of(detector, raw, x["size_hw"], training=True)
    got |= named_proposals("train_proposals", "train_proposal_scores", trained, score)
    tested = proposals_of(detector, raw, x["size_hw"], training=False)
    got |= named_proposals("proposals", "proposal_scores", tested, score)
    predictions = rois_of(detector, raw, tested, x["size_hw"])
    got |= named_tests(detector, x, raw, s["tests"], predictions)
    first, of_rois = keras.tree.map_structure(
        lambda array: array[:, : s["roi_outputs_of_first"]], (tested, predictions)
    )
    stages = of_rois.get("stages", [of_rois])
    for number, stage in enumerate(stages, start=1):
        got |= named_roi_outputs(stage, first, score, f"stage{number}_" if len(stages) > 1 else "")
    return got, first, of_rois


# --- mmdetection --------------------------------------------------------------------------------------------


def mmdetection_settings(s):
    """A row of a recipe with a file's widths and numbers of samples."""
    widths = s["changed_from_the_published"]
    changes = {
        "backbone.stem_channels": widths["backbone.stem_channels"],
        "backbone.res2_channels": 4 * widths["backbone.base_channels"],
        "backbone.width_per_group": widths["backbone.base_channels"],
        "neck.channels": widths["neck.out_channels"],
        "rpn.num_samples": widths["train_cfg.rpn.sampler.num"],
        "roi_head.width": widths["roi_head.bbox_head.fc_out_channels"],
        "roi_head.num_samples": widths["train_cfg.rcnn.sampler.num"],
    }
    recipe = "cascade_rcnn" if s["stages"] > 1 else "faster_rcnn"
    return published_settings(recipe, f"mmdetection.r{s['config']['backbone']['depth']}_1x", changes)


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
    detector = build_detector(mmdetection_settings(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), mmdetection.TWO_STAGE)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    got, _, _ = inference_of(s, detector, x, forward(detector, x), probability)
    step = train_step(detector, x, y)
    got |= named_terms(step.terms, MMDETECTION)
    got |= named_gradients(golden, step.gradients, mmdetection.TWO_STAGE)
    assert_agrees(golden, got)


# --- detectron2 ---------------------------------------------------------------------------------------------


def detectron2_settings(s):
    """A row of recipes/mask_rcnn.yaml with a file's widths and numbers of samples."""
    widths = s["changed_from_the_published"]
    changes = resnet_widths(widths) | {
        "neck.channels": widths["MODEL.FPN.OUT_CHANNELS"],
        "rpn.num_samples": widths["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
        "roi_head.width": widths["MODEL.ROI_BOX_HEAD.FC_DIM"],
        "roi_head.num_samples": widths["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
        "mask_head.width": widths["MODEL.ROI_MASK_HEAD.CONV_DIM"],
    }
    row = "detectron2.cascade_r50_1x" if s["stages"] > 1 else "detectron2.r50_1x"
    return published_settings("mask_rcnn", row, changes)


def resnet_widths(widths):
    """Of the backbone, by detectron2's and maskrcnn-benchmark's keys."""
    return {
        "backbone.stem_channels": widths["MODEL.RESNETS.STEM_OUT_CHANNELS"],
        "backbone.res2_channels": widths["MODEL.RESNETS.RES2_OUT_CHANNELS"],
        "backbone.width_per_group": widths["MODEL.RESNETS.WIDTH_PER_GROUP"],
    }


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
    detector = build_detector(detectron2_settings(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), detectron2.TABLE, ignore=detectron2.IGNORE)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    y["masks"] = bitmaps_of(golden, y)
    raw = forward(detector, x)
    got, _, _ = inference_of(s, detector, x, raw, logit)
    got |= named_masks(golden, detections_of(detector, x, raw), x["size_hw"])
    step = train_step(detector, x, y)
    got |= named_terms(step.terms, DETECTRON2)
    got |= named_gradients(golden, step.gradients, detectron2.TABLE)
    assert_agrees(golden, got)


# --- the Double-Head release --------------------------------------------------------------------------------


def double_head_settings(s, images):
    """Row table3.complementary of recipes/double_head.yaml with a file's widths and numbers of samples."""
    config, widths = s["config"], s["changed_from_the_published"]
    box_head = "MODEL.ROI_BOX_HEAD."
    width = widths[box_head + "NONLOCAL_OUT_CHANNELS"]
    # The release keeps the best of the batch; in plain_* every image has equally many of them. Places are
    # a few more than there are RoIs, and not as many as the file has, since padding takes memory as well.
    proposals = widths["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"] // images
    changes = resnet_widths(widths) | {
        "neck.channels": widths["MODEL.BACKBONE.OUT_CHANNELS"],
        "rpn.num_samples": widths["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
        "proposals.train": {"total": proposals, "shared_by": 1},
        "roi_head.num_samples": min(widths["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"], proposals + 64),
        "roi_head.fc_head.width": widths[box_head + "MLP_HEAD_DIM"],
        "roi_head.conv_head.width": width,
        "roi_head.conv_head.middle": width // 4,
        "roi_head.conv_head.blocks": 1 + 2 * config[box_head + "NONLOCAL_SHARED_NUM_STACK"],
        "roi_head.conv_head.non_local.width": widths[box_head + "NONLOCAL_INTER_CHANNELS"],
    }
    return published_settings("double_head", "table3.complementary", changes)


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
    detector = build_detector(double_head_settings(s, len(x["images"])), s["num_classes"])
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
        with with_predictions(detector, of_rois):
            got |= named_tests(detector, x, raw, {f"plain_mode{mode}": {}})

    step = train_step(detector, x, y)
    got |= named_terms(step.terms, DOUBLE_HEAD)
    table = maskrcnn_benchmark.DOUBLE_HEAD
    gradients = named_gradients(golden, step.gradients, table, prefix="grad/plain/")
    got |= {name: background_first(name, gradient) for name, gradient in gradients.items()}
    got |= named_statistics(golden, detector, table, "plain_updated/")
    assert_agrees(golden, got)


# --- the TSD release ----------------------------------------------------------------------------------------


def tsd_settings(s):
    """Row release.r50 of recipes/tsd.yaml with a file's widths and numbers of samples."""
    widths = s["changed_from_the_published"]
    changes = {
        "backbone.stem_channels": 8,  # in words there
        "backbone.res2_channels": 32,
        "backbone.width_per_group": 8,
        "neck.channels": widths["neck.out_channels"],
        "rpn.num_samples": widths["train_cfg.rpn.sampler.num"],
        "roi_head.width": widths["bbox_head.fc_out_channels"],
        "roi_head.num_samples": widths["train_cfg.rcnn.sampler.num"],
    }
    return published_settings("tsd", "release.r50", changes)


TSD = {
    "rpn/objectness": "loss_rpn_cls",
    "rpn/box": "loss_rpn_bbox",
    "roi/class": "loss_TSD_cls",
    "roi/box": "loss_TSD_bbox",
    "roi/sibling_class": "loss_cls",
    "roi/sibling_box": "loss_bbox",
    "roi/class_constraint": "loss_pc_cls",
    "roi/box_constraint": "loss_pc_loc",
}
LAST_PX = np.float32([0, 0, 1, 1])  # mmdetection 1 gives the last px of a box, not its edge


@pytest.mark.parametrize("golden", goldens("whole_tsd"), ids=str)
def test_tsd(golden):
    s = params(golden)
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])
    y["boxes"] = np.where(y["labels"][..., None] >= 0, y["boxes"] + LAST_PX, 0)
    detector = build_detector(tsd_settings(s), s["num_classes"])
    load_state_dict(detector, golden.state_dict(), mmdetection.TSD, conversions=mmdetection.TSD_CONVERSIONS)
    raw = forward(detector, x)
    got, first, of_rois = inference_of(s, detector, x, raw, probability)
    got |= roi_outputs_of_tsd(golden, detector, raw, first, of_rois=of_rois)
    step = train_step(detector, x, y)
    got |= named_terms(step.terms, TSD)
    gradients = named_gradients(golden, step.gradients, mmdetection.TSD)
    got |= {name: background_first(name, gradient) for name, gradient in gradients.items()}
    got |= {name: boxes - LAST_PX for name, boxes in got.items() if "proposals_" in name or "boxes_" in name}
    assert_agrees(golden, got)


def roi_outputs_of_tsd(golden, detector, raw, first, of_rois):
    """Logits, boxes and offsets of the first proposals of each image, with the release's rows."""
    head, found = detector.roi_head, {}
    weight, bias = (golden.raw(f"param/bbox_head.TSD_fc_reg.{what}")[:4] for what in ("weight", "bias"))

    def features(pyramid, boxes, offset):
        return head.regressor.features(head.pool_moved(pyramid, boxes, offset))

    boxes = fast(features)(raw["pyramid"], first["boxes"], of_rois["offsets"]["box"])
    of_background = np.asarray(boxes) @ weight.T + bias
    of_bins = np.asarray(of_rois["offsets"]["class"]).transpose(0, 1, 4, 2, 3)
    for image, valid in enumerate(first["valid"]):
        rows = int(valid.sum())
        deltas = np.asarray(of_rois["deltas"][image]).reshape(len(valid), -1)
        deltas = np.concatenate([of_background[image], deltas], axis=1)
        found[f"roi_deltas_{image}"] = deltas[:rows]
        found[f"roi_logits_{image}"] = np.roll(np.asarray(of_rois["logits"][image]), 1, axis=1)[:rows]
        found[f"roi_delta_r_{image}"] = np.asarray(of_rois["offsets"]["box"][image]).reshape(-1, 2)[:rows]
        scores = probability(first["scores"][image])
        count = len(golden[f"roi_delta_c_{image}"])
        found[f"roi_delta_c_{image}"] = of_bins[image].reshape(len(valid), -1)[:count]
        found[f"roi_delta_c_scores_{image}"] = scores[:count]
    return found


def background_first(name, gradient):
    """A gradient of an output layer with the rows of the release, in which background has the first ones."""
    if ".cls_score" in name or "fc_cls" in name:
        return np.roll(gradient, 1, axis=-1)
    if ".box.predictor.bbox_pred" in name or "fc_reg" in name:
        return np.pad(gradient, [(0, 0)] * (gradient.ndim - 1) + [(4, 0)])
    return gradient
