"""Whole models of DeFCN's release, FCOS and POTO: from images to detections, losses and gradients."""

import numpy as np
import pytest
from support import whole_models as whole
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.models import build_detector
from kgarden.weights.cvpods import IGNORE, TABLE
from kgarden.weights.state_dict import load_state_dict

ROWS = {
    "whole_defcn_fcos": "fcos",
    "whole_defcn_fcos_wo_ctrness": "fcos_no_centerness",
    "whole_defcn_poto": "poto",
    "whole_defcn_poto_3dmf_aux": "poto_3dmf_aux",
}
OUTPUTS = {"classes": "cls", "code": "box", "centerness": "ctr", "filter": "filter"}
LOSSES = {"class": "cls", "box": "box_reg", "centerness": "centerness", "auxiliary": "cls_aux"}


def loaded(golden):
    s = params(golden)
    overrides = whole.backbone_widths(s) | {"neck.channels": s["fpn"]["OUT_CHANNELS"]}
    if "poto" in s:
        overrides["dense_head.unmatched"] = "released"
    settings = whole.published_settings("defcn", ROWS[golden.entry["prefix"]], overrides)
    detector = build_detector(settings, s["num_classes"])
    load_state_dict(detector, golden.state_dict(), TABLE, ignore=IGNORE)
    return detector


@pytest.mark.parametrize("golden", [golden for prefix in ROWS for golden in goldens(prefix)], ids=str)
def test_it_agrees_with_the_reference(golden):
    s = params(golden)
    detector = loaded(golden)
    x, y = whole.batch_of(whole.examples_of(golden), s["canvas_hw"])
    step = whole.train_step(detector, x, y)

    features = whole.named_maps("feat", s["levels"], fast(detector.pyramid)(x))
    got = {}
    for name, map_ in features.items():
        stored = golden[f"{name}_ch0to3"]
        got[f"{name}_ch0to3"] = map_[..., : stored.shape[-1]]  # fewer channels on the large canvas
    for key, name in OUTPUTS.items():
        if key in step.raw:
            got |= whole.named_maps(f"head_{name}", s["levels"], step.raw[key])
    for level, stride in zip(s["levels"], s["strides"], strict=True):
        got[f"head_box_{level}"] = got[f"head_box_{level}"] * np.float32(stride)  # px there, strides here

    terms = {f"{detector.dense_head.name}/{ours}": f"loss_{theirs}" for ours, theirs in LOSSES.items()}
    got |= whole.named_terms(step.terms, terms)
    got["loss_total"] = sum(step.terms.values())
    got |= whole.named_gradients(golden, step.gradients, TABLE)

    asked = {
        "det": {},
        "small_det": {"per_level": s["small_test"]["topk"], "total": s["small_test"]["total"]},
    }
    if "all_test" in s:
        asked["all_det"] = {"total": s["all_test"]["total"]}
    for name, settings in asked.items():
        got |= whole.named_detections(name, whole.detections_of(detector, x, step.raw, **settings))
    assert_agrees(golden, got)
