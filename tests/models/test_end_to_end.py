"""Whole tiny models with the release's weights: from pixels to detections, losses and gradients."""

import re

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.whole_models import batch_of, examples_of, gradient_named

from kgarden.models import build_detector
from kgarden.weights.detectron2 import IGNORE, TABLE
from kgarden.weights.state_dict import load_state_dict


def recipe_of(s):
    """A file's settings as the `model` section of a recipe."""
    first = s["first_stage"]
    settings = {
        "name": "centernet2" if first["only_proposal"] else "centernet",
        "backbone": {
            "name": f"resnet{s['depth']}",
            "norm": "frozen_bn",
            "stride_in_1x1": s["stride_in_1x1"],
            "groups": s["num_groups"],
            "width_per_group": s["width_per_group"],
            "stem_channels": s["stem_out"],
            "res2_channels": s["res2_out"],
        },
        "neck": {"channels": s["fpn_channels"]},
        "pixels": {"mean": s["pixel_mean"], "std": s["pixel_std"], "order": "rgb"},
        "selection": {"score_threshold": s["score_thresh"], "iou": s["nms"], "total": s["dets"]},
    }
    head = {"num_convs": first["num_box_convs"], "norm_groups": first["gn_groups"]}
    if not first["only_proposal"]:
        return settings | {"dense_head": head}
    roi = s["roi"]
    levels = [int(level.removeprefix("p")) for level in s["roi_levels"]]
    head |= {
        "test": s["post_nms_topk"],
        "test_per_level": first["pre_nms_topk"],
        "nms_iou": first["nms_thresh"],
    }
    roi_head = {
        "name": roi["kind"],
        "ious": roi["ious"],
        "delta_weights": roi["bbox_reg_weights"],
        "roi_levels": [levels[0], levels[-1]],
        "pool_size": roi["pooler_resolution"],
        "sampling_ratio": roi["sampling_ratio"],
        "width": s["fc_dim"],
        "fuse": "released" if roi["mult_proposal_score"] else "off",
    }
    if roi["kind"] == "faster":
        roi_head |= {"iou": roi["ious"][0], "delta_weights": roi["bbox_reg_weights"][0]}
        del roi_head["ious"]
    return settings | {"proposer": head | {"score_threshold": first["score_thresh"]}, "roi_head": roi_head}


def with_loss_settings(settings, loss):
    """The same recipe with the file's loss settings."""
    return settings | {
        "proposer": settings["proposer"]
        | {
            "alpha": loss["alpha"],
            "beta": loss["beta"],
            "gamma": loss["gamma"],
            "clamp": loss["sigmoid_clamp"],
            "ignore_above": loss["ignore_high_fp"],
            "box_loss": loss["loc_loss"],
            "size_ranges": loss["soi"],
            "min_overlap": loss["hm_min_overlap"],
            "min_radius": loss["min_radius"],
            "weigh_by_heat": not loss["not_norm_reg"],
            "weights": {
                "positive": loss["pos_weight"],
                "negative": loss["neg_weight"],
                "box": loss["reg_weight"],
            },
        }
    }


def loaded(golden, settings):
    detector = build_detector(settings, params(golden)["num_classes"])
    state = golden.state_dict()
    partial = {name for name in state if name.startswith("roi_heads.")} == set()
    load_state_dict(detector, state, TABLE, ignore=IGNORE, partial=partial)
    return detector


HEADS = {"ltrb": "head_reg", "objectness": "head_agn_logit", "classes": "head_cls_logit"}


@pytest.mark.parametrize("golden", goldens("cn2_e2e_tiny") + goldens("cn2_e2e_tiny_onestage"), ids=str)
def test_detections_agree_with_the_reference(golden):
    s = params(golden)
    detector = loaded(golden, recipe_of(s))
    x, _ = batch_of(examples_of(golden), divisor=s["size_divisor"])
    raw = detector(x)
    two_stage = s["first_stage"]["only_proposal"]

    got, levels = {}, s["first_stage"]["levels"]
    pyramid = raw["pyramid"] if two_stage else detector.pyramid(x)
    for level, features in zip(levels, pyramid, strict=True):
        got[f"feat_{level}_ch0to3"] = ops.convert_to_numpy(features)[..., :4]
    for key, maps in (raw["proposer"] if two_stage else raw).items():
        got |= {
            f"{HEADS[key]}_{level}": ops.convert_to_numpy(map_)
            for level, map_ in zip(levels, maps, strict=True)
        }
    if two_stage:
        proposals = detector.proposer.proposals(raw["proposer"], x["size_hw"], training=False)
        for image, valid in enumerate(ops.convert_to_numpy(proposals["valid"])):
            got[f"proposals_{image}"] = ops.convert_to_numpy(proposals["boxes"])[image][valid]
            got[f"proposal_scores_{image}"] = ops.convert_to_numpy(proposals["scores"])[image][valid]

    found = {key: ops.convert_to_numpy(value) for key, value in detector.inference_model()(x).items()}
    for image, output_hw in enumerate(s["output_hw"]):
        rows = found["valid"][image]
        scale = np.float32(output_hw) / np.float32(x["size_hw"][image])
        boxes = found["boxes"][image][rows] * np.tile(scale[::-1], 2)
        got[f"det_boxes_{image}"] = np.clip(boxes, 0, np.tile(output_hw[::-1], 2))
        got[f"det_scores_{image}"] = found["scores"][image][rows]
        got[f"det_classes_{image}"] = found["labels"][image][rows]
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("cn2_e2e_tiny_train"), ids=str)
def test_first_stage_training_agrees_with_the_reference(golden):
    s = params(golden)
    detector = loaded(golden, with_loss_settings(recipe_of(s), s["loss"]))
    x, y = batch_of(examples_of(golden), divisor=s["size_divisor"])

    def terms():
        return detector.proposer.losses(detector(x, training=True)["proposer"], y)

    names = {"positive": "agn_pos", "negative": "agn_neg", "box": "loc"}
    found = terms()
    got = {f"loss_centernet_{names[key.split('/')[1]]}": ops.convert_to_numpy(v) for key, v in found.items()}

    variables = {variable.path: variable for variable in detector.trainable_variables}
    _, gradients = value_and_gradients(lambda: sum(terms().values()), [], list(variables.values()))
    gradient_of = dict(zip(variables, gradients, strict=True))
    for name in golden.matching("grad/.*"):
        got[name] = gradient_named(name.removeprefix("grad/"), gradient_of, TABLE)
        if is_analytically_zero(name, s):
            # Rounding noise on both sides; no digit of it can agree. Both must be noise, though.
            largest = max(np.abs(golden[other]).max() for other in golden.matching("grad/.*"))
            assert np.abs(got[name]).max() < 1e-6 * largest and np.abs(golden[name]).max() < 1e-6 * largest
            got[name] = golden[name]
    assert_agrees(golden, got)


def is_analytically_zero(name, s):
    """A bias right before a group norm with one channel in each group: the norm subtracts it again."""
    alone = s["fpn_channels"] == s["first_stage"]["gn_groups"]
    match = re.fullmatch(r"grad/.*_tower\.(\d+)\.bias", name)
    return alone and match is not None and int(match.group(1)) % 3 == 0
