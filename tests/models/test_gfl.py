"""GFL's quality, losses, gradients and detections against mmdetection."""

import numpy as np
import pytest
from keras import ops
from support.dense_goldens import detections_of, raw_of, truth_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.losses.box_iou import pairwise_iou
from kgarden.models.gfl import GFLHead

INPUTS = ["cls_logits", "reg_logits"]
FIRST = 120  # rows of grad_dfl_reg_pos


def head_of(golden):
    settings = params(golden)
    return GFLHead(
        settings["strides"],
        settings["num_classes"],
        reg_max=settings["reg_max"],
        top_k=settings["topk"],
        beta=settings["qfl_beta"],
        weights={"box": settings["giou_weight"], "distribution": settings["dfl_weight"]},
    )


@pytest.mark.parametrize("golden", goldens("onestage_gfl"), ids=str)
def test_losses_and_detections_agree_with_the_reference(golden):
    head, y = head_of(golden), truth_of(golden)

    def term(name):
        def of(*arrays):
            raw = raw_of(golden, "reg_logits", **dict(zip(INPUTS, arrays, strict=True)))
            return head.losses(raw, y)[f"gfl/{name}"]

        return value_and_gradients(of, [golden[array] for array in INPUTS])

    raw = raw_of(golden, "reg_logits")
    anchors = head.anchors_of(raw)
    np.testing.assert_allclose(anchors.boxes, golden["anchors"])
    matched, gt_boxes, _ = (ops.convert_to_numpy(part) for part in head.truth(raw, y))
    positive, stride = matched >= 0, anchors.stride[:, None]
    boxes = ops.convert_to_numpy(head.boxes(raw))
    quality = ops.convert_to_numpy(pairwise_iou(boxes / stride, gt_boxes / stride))
    surest = ops.convert_to_numpy(ops.sigmoid(golden["cls_logits"])).max(axis=-1)

    qfl, (grad_qfl, _) = term("class")
    giou, (_, grad_giou) = term("box")
    dfl, (_, grad_dfl) = term("distribution")
    got = {
        "loss_qfl": qfl,
        "loss_giou_unweighted": giou,
        "loss_dfl_unweighted": dfl,
        "grad_qfl_cls": grad_qfl,
        "grad_giou_reg_abs_sum": np.abs(grad_giou).sum(),
        "grad_dfl_reg_abs_sum": np.abs(grad_dfl).sum(),
        "grad_dfl_reg_pos": grad_dfl[positive][:FIRST],
        "matched_gt": matched,
        "distances": ops.convert_to_numpy(head.distances(raw)),
        "decoded_boxes": boxes,
        "quality": np.where(positive, quality, 0),
        "weight_targets": np.where(positive, surest, 0),
        "num_pos": positive.sum(),
        "avg_factor": ops.convert_to_numpy(head.count(positive)),
        "weight_denorm": max(surest[positive].sum(), 1.0),
    }
    assert_agrees(golden, got | detections_of(golden, head, raw))


def test_plain_distances():
    """CenterNet2's form: no distribution, no third term; sides are relu(code) strides."""
    head = GFLHead([8], None, reg_max=None, width=8, num_convs=1, norm_groups=4, shared_tower=True)
    head.build([(None, None, None, 8)])
    raw = head([np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype("float32")])
    assert head.loss_names == ["gfl/class", "gfl/box"] and head.class_tower is None
    assert raw["reg_feature"][0] is raw["cls_feature"][0]
    code = ops.convert_to_numpy(raw["code"][0])
    assert code.shape == (1, 4, 4, 4) and (code >= 0).all() and (code > 0).any()
    boxes = ops.convert_to_numpy(head.boxes(raw))[0].reshape(4, 4, 4)
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    left, top, right, bottom = np.moveaxis(code[0], -1, 0) * 8
    x, y = np.meshgrid(np.arange(4) * 8, np.arange(4) * 8)
    for got, wanted in [(x1, x - left), (y1, y - top), (x2, x + right), (y2, y + bottom)]:
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_array_equal(head.candidates(raw)["probability"].shape, (1, 16, 1))


def test_no_term_changes_what_it_is_weighed_by():
    """Classes learn the quality of boxes, and their scores weigh boxes: neither has a gradient."""
    golden = goldens("onestage_gfl")[0]
    head, y = head_of(golden), truth_of(golden)
    for name, own in (("class", 0), ("box", 1), ("distribution", 1)):

        def term(*arrays, name=name):
            raw = raw_of(golden, "reg_logits", **dict(zip(INPUTS, arrays, strict=True)))
            return head.losses(raw, y)[f"gfl/{name}"]

        gradients = value_and_gradients(term, [golden[array] for array in INPUTS])[1]
        assert np.any(gradients[own])
        assert gradients[1 - own] is None or not np.any(gradients[1 - own])
