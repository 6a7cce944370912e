"""The dense head of CenterNet* and its proposals against the authors' code."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.heads.selection import Selection
from kgarden.models.centernet import CenterNetHead
from kgarden.ops.points import point_grid
from kgarden.weights.detectron2 import HEAD, TABLE
from kgarden.weights.state_dict import load_state_dict


def head_of(settings, num_classes):
    return CenterNetHead(
        settings["strides"],
        num_classes=num_classes,
        objectness=settings["with_agn_hm"],
        width=settings.get("channels"),
        num_convs=settings.get("num_box_convs", 0),
        norm_groups=settings.get("gn_groups"),
        deformable=settings.get("use_deformable", False),
    )


@pytest.mark.parametrize("golden", goldens("cn2_head"), ids=str)
def test_head_agrees_with_the_reference(golden):
    settings = params(golden)
    state = golden.state_dict()
    num_classes = None if settings["only_proposal"] else len(state["cls_logits.bias"])
    head = head_of(settings, num_classes)
    head.build([(None, None, None, settings["channels"])] * settings["levels"])
    load_state_dict(head, state, TABLE, prefix=HEAD.replace("\\", ""))

    raw = fast(head)([golden[f"x_l{level}"] for level in range(settings["levels"])])
    names = {"ltrb": "reg", "objectness": "agn", "classes": "cls"}
    got = {
        f"{names[key]}_l{level}": ops.convert_to_numpy(map_)
        for key, maps in raw.items()
        for level, map_ in enumerate(maps)
    }
    assert_agrees(golden, got)


def detections_of(golden):
    """The reference's post-processing of given logits and distances, with the file's settings."""
    s = params(golden)
    grid = point_grid(s["level_hw"], s["strides"])
    blind = s["with_agn_hm"] and s["only_proposal"]
    head = head_of(s, None if blind else s["num_classes"])

    def maps(rows):
        parts = np.split(rows, np.cumsum(grid.counts())[:-1], axis=1)
        return [p.reshape(len(rows), h, w, -1) for p, (h, w) in zip(parts, grid.sizes, strict=True)]

    raw = {"ltrb": maps(golden["reg"]), "objectness" if blind else "classes": maps(golden["logits"])}
    if "agn_logits" in golden:
        raw["objectness"] = maps(golden["agn_logits"])
    mode = "train" if s["training"] else "test"
    selection = Selection(
        score_threshold=s["score_thresh"],
        per_level=s[f"pre_nms_topk_{mode}"],
        method="peaks" if s["center_nms"] else "none" if s["not_nms"] else "nms",
        iou=s[f"nms_thresh_{mode}"],
        class_wise=s["nms_class_wise"],
        total=s[f"post_nms_topk_{mode}"],
    )
    found = fast(lambda raw: selection(head.candidates(raw)))(raw)
    return {key: ops.convert_to_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("golden", goldens("cn2_proposals") + goldens("cn2_onestage"), ids=str)
def test_selection_agrees_with_the_reference(golden):
    found, got = detections_of(golden), {}
    for image, valid in enumerate(found["valid"]):
        got[f"boxes_im{image}"] = found["boxes"][image][valid]
        got[f"scores_im{image}"] = found["scores"][image][valid]
        got[f"classes_im{image}"] = found["labels"][image][valid]
    assert_agrees(golden, got)


def test_scores_of_a_head_with_both_maps():
    """The geometric mean of objectness and class; the threshold is the class's alone."""
    head = CenterNetHead([8], 2, objectness=True)
    maps = {"objectness": [[[[0.0]]]], "classes": [[[[1.0, -2.0]]]], "ltrb": [[[[1.0] * 4]]]}
    found = head.candidates({key: [np.float32(level)] for key, level in maps.items()})
    sure = 1 / (1 + np.exp([-1.0, 2.0]))
    expected = {
        "scores": np.sqrt(0.5 * sure),
        "threshold_scores": sure,
        "probability": 0.5 * sure,
        "boxes": [-4, -4, 12, 12],
    }
    for key, value in expected.items():
        np.testing.assert_allclose(ops.convert_to_numpy(found[key])[0, 0], value, rtol=1e-5)
