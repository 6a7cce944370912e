"""FCOS' losses, gradients and detections against mmdetection."""

import pytest
from keras import ops
from support.dense_goldens import detections_of, raw_of, truth_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.models.fcos import FCOSHead
from kgarden.ops.boxes import to_ltrb
from kgarden.targets.fcos import centerness

INPUTS = ["cls_logits", "reg_ltrb_norm", "ctr_logits"]


def head_of(golden):
    settings = params(golden)
    detections = settings["detections"]
    return FCOSHead(
        settings["strides"],
        settings["num_classes"],
        size_ranges=settings["regress_ranges"],
        center_radius=settings["center_radius"] if settings["center_sampling"] else None,
        sqrt_scores=detections["scores_sqrt"],
        gate_by="class" if detections["score_thr_on"] == "class score" else "score",
        weights={"box": settings["giou_weight"]},
        **settings["focal"],
    )


@pytest.mark.parametrize("golden", goldens("onestage_fcos_losses"), ids=str)
def test_losses_and_detections_agree_with_the_reference(golden):
    head, y = head_of(golden), truth_of(golden)

    def term(name):
        def of(*arrays):
            raw = raw_of(golden, "reg_ltrb_norm", **dict(zip(INPUTS, arrays, strict=True)))
            return head.losses(raw, y)[f"fcos/{name}"]

        return of

    got = {}
    terms = [("class", "loss_cls", "grad_cls"), ("box", "loss_giou_unweighted", "grad_reg")]
    for place, (name, loss, gradient) in enumerate([*terms, ("centerness", "loss_centerness", "grad_ctr")]):
        got[loss], gradients = value_and_gradients(term(name), [golden[array] for array in INPUTS])
        got[gradient] = gradients[place]

    raw = raw_of(golden, "reg_ltrb_norm")
    matched, boxes, _ = head.truth(raw, y)
    positive = ops.convert_to_numpy(matched) >= 0
    middle = centerness(to_ltrb(head._cells(raw).points(), boxes))
    got["num_pos"] = positive.sum()
    got["centerness_denorm"] = max(ops.convert_to_numpy(middle)[positive].sum(), 1e-6)
    assert_agrees(golden, got | detections_of(golden, head, raw))
