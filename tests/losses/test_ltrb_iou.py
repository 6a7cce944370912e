import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.losses.ltrb_iou import ltrb_iou_loss


@pytest.mark.parametrize("golden", goldens("cn2_ltrb_iou_losses"), ids=str)
def test_losses_and_gradients_agree_with_the_reference(golden):
    smoothing = params(golden)["iou_smoothing"]
    got = {}
    for kind in ("iou", "linear_iou", "giou"):
        if kind not in golden:
            continue

        def summed(predicted, kind=kind):
            return ops.sum(ltrb_iou_loss(predicted, golden["target"], kind, smoothing))

        got[kind] = ops.convert_to_numpy(ltrb_iou_loss(golden["pred"], golden["target"], kind, smoothing))
        _, (got[f"grad_{kind}"],) = value_and_gradients(summed, [golden["pred"]])
    assert_agrees(golden, got)


def test_loss_is_zero_for_equal_and_above_one_for_disjoint_boxes():
    box = np.array([[2.0, 3.0, 4.0, 5.0]], "float32")
    np.testing.assert_allclose(ltrb_iou_loss(box, box, "giou"), [0.0], atol=1e-6)
    np.testing.assert_allclose(ltrb_iou_loss(box, box, "iou"), [0.0], atol=1e-6)
    # By hand: 6 x 8 inside 12 x 16, no smoothing: IoU = 48 / 192, hull = union.
    np.testing.assert_allclose(ltrb_iou_loss(box, 2 * box, "giou", smoothing=0.0), [0.75], rtol=1e-6)


def test_unknown_kind_raises():
    with pytest.raises(UserError, match="diou"):
        ltrb_iou_loss(np.ones((1, 4)), np.ones((1, 4)), "diou")
