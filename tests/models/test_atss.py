"""ATSS' targets, losses and gradients against mmdetection."""

import numpy as np
import pytest
from keras import ops
from support.dense_goldens import labels_of, maps_of, raw_of, truth_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.models.atss import ATSSHead
from kgarden.ops.boxes import to_ltrb
from kgarden.targets.fcos import centerness

INPUTS = ["cls_logits", "reg_deltas", "ctr_logits"]


def head_of(golden):
    settings = params(golden)
    return ATSSHead(
        settings["strides"],
        settings["num_classes"],
        top_k=settings["topk"],
        deviations=settings["stds"],
        weights={"box": settings["giou_weight"]},
        **settings["focal"],
    )


@pytest.mark.parametrize("golden", goldens("onestage_atss"), ids=str)
def test_targets_and_losses_agree_with_the_reference(golden):
    head, y, got = head_of(golden), truth_of(golden), {}

    def term(name, y=y):
        def of(*arrays):
            raw = raw_of(golden, "reg_deltas", **dict(zip(INPUTS, arrays, strict=True)))
            return head.losses(raw, y)[f"atss/{name}"]

        return of

    terms = [("class", "loss_cls", "grad_cls"), ("box", "loss_giou_unweighted", "grad_reg")]
    for place, (name, loss, gradient) in enumerate([*terms, ("centerness", "loss_centerness", "grad_ctr")]):
        got[loss], gradients = value_and_gradients(term(name), [golden[array] for array in INPUTS])
        got[gradient] = gradients[place]

    raw = raw_of(golden, "reg_deltas")
    anchors = head.anchors_of(raw)
    np.testing.assert_allclose(anchors.boxes, golden["anchors"])
    candidates, _ = head._candidates(raw, y)
    matched, boxes, _ = head.truth(raw, y)
    matched, boxes = ops.convert_to_numpy(matched), ops.convert_to_numpy(boxes)
    positive = matched >= 0
    middle = ops.convert_to_numpy(centerness(to_ltrb(anchors.points(), boxes)))
    threshold = ops.convert_to_numpy(candidates.threshold)
    got |= {
        "matched_gt": matched,
        "matched_iou": np.where(positive, ops.convert_to_numpy(ops.max(candidates.overlap, axis=1)), 0),
        "iou_threshold": np.where(golden["gt_valid"] > 0, threshold, 0),
        "omega_atss": ops.convert_to_numpy(head.candidate_mask(raw, y)),
        "labels": labels_of(golden, matched),
        "box_targets": np.where(positive[..., None], boxes, 0),
        "centerness": np.where(positive, middle, 0),
        "decoded_boxes": ops.convert_to_numpy(head.boxes(raw)),
        "num_pos": positive.sum(),
        "avg_factor": ops.convert_to_numpy(head.count(positive)),
        "centerness_denorm": max(middle[positive].sum(), settings_floor(golden)),
        "loss_cls_per_level": per_level(golden, head, y),
    }
    assert_agrees(golden, got)


def settings_floor(golden):
    return params(golden)["centerness_denorm_floor"]


def per_level(golden, head, y):
    """The class loss of each level alone: what is lost where all others are as sure as can be."""
    sizes, strides = params(golden)["level_sizes"], len(params(golden)["strides"])
    labels = ops.convert_to_numpy(head.truth(raw_of(golden, "reg_deltas"), y)[2])
    right = np.where(labels[..., None] == np.arange(params(golden)["num_classes"]), 100.0, -100.0)
    right = maps_of(np.float32(right), sizes)
    losses = []
    for level in range(strides):
        raw = raw_of(golden, "reg_deltas")
        raw["classes"] = [m if n == level else right[n] for n, m in enumerate(raw["classes"])]
        losses.append(ops.convert_to_numpy(head.losses(raw, y)["atss/class"]))
    return np.array(losses)


def test_boxes_from_points():
    """The anchor-free form: distances from the anchor's centre, in strides."""
    head = ATSSHead([8, 16], 2, box_code="ltrb", width=8, num_convs=1, norm_groups=4)
    pyramid = [np.zeros((1, 4, 4, 8), "float32"), np.zeros((1, 2, 2, 8), "float32")]
    head.build([(None, None, None, 8)] * 2)
    raw = head(pyramid)
    raw["code"] = [np.full((1, 4, 4, 4), 1.5, "float32"), np.full((1, 2, 2, 4), 0.5, "float32")]
    boxes = ops.convert_to_numpy(head.boxes(raw))[0]
    assert boxes[5].tolist() == [8 - 12, 8 - 12, 8 + 12, 8 + 12]
    assert boxes[16 + 3].tolist() == [16 - 8, 16 - 8, 16 + 8, 16 + 8]


def test_a_tiny_prediction_is_clamped():
    """mmdetection limits the logarithm of a side on both ends: 16/1000 of the anchor's."""
    head = ATSSHead([8], 1)
    raw = {"classes": [np.zeros((1, 1, 1, 1), "float32")], "code": [np.float32([[[[0, 0, -99, 99]]]])]}
    left, top, right, bottom = ops.convert_to_numpy(head.boxes(raw))[0, 0]
    np.testing.assert_allclose([right - left, bottom - top], [64 * 16 / 1000, 64 * 1000 / 16], rtol=1e-4)
