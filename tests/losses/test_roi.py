"""Losses of deltas against mmdetection's, and by hand."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.losses.roi import balanced_l1, make_box_loss, sigmoid_class_loss, smooth_l1


@pytest.mark.parametrize("golden", goldens("mmdet_reg_losses"), ids=str)
def test_box_losses_agree_with_mmdetection(golden):
    cases = {name.split("/")[0] for name in golden.outputs}
    got = {}
    for case in cases:
        settings = params(golden)[case]
        loss = balanced_l1 if "alpha" in settings else smooth_l1

        def summed(predicted, loss=loss, settings=settings):
            return ops.sum(loss(predicted, golden["target"], **settings))

        got[f"{case}/loss"] = ops.convert_to_numpy(loss(golden["pred"], golden["target"], **settings))
        got[f"{case}/grad_pred"] = value_and_gradients(summed, [golden["pred"]])[1][0]
    assert_agrees(golden, got)


def test_gradient_of_balanced_l1_equals_the_paper():
    """Eq. 8: alpha log(b error + 1) below 1, gamma above; the loss has no step at 1."""
    errors = np.float32([0.01, 0.3, 0.7, 0.999999, 1.000001, 4.0])
    for alpha, gamma in ((0.5, 1.5), (0.2, 1.0)):
        b = np.exp(gamma / alpha) - 1

        def summed(predicted, alpha=alpha, gamma=gamma):
            return ops.sum(balanced_l1(predicted, 0.0, alpha=alpha, gamma=gamma))

        expected = np.where(errors < 1, alpha * np.log(b * errors + 1), gamma)
        np.testing.assert_allclose(value_and_gradients(summed, [errors])[1][0], expected, rtol=1e-4)
        below, above = ops.convert_to_numpy(balanced_l1(errors, 0.0, alpha=alpha, gamma=gamma))[3:5]
        np.testing.assert_allclose(below, above, rtol=1e-4)


def test_make_box_loss_by_name():
    error = np.float32([0.5, 2.0])
    np.testing.assert_allclose(make_box_loss("smooth_l1", 0.0)(error, 0.0), error)
    np.testing.assert_allclose(make_box_loss("smooth_l1", 1.0)(error, 0.0), [0.125, 1.5])
    np.testing.assert_allclose(make_box_loss("balanced_l1", 1.0)(error, 0.0), balanced_l1(error, 0.0))
    with pytest.raises(UserError, match="roi_head.box_loss 'l1': one of smooth_l1, balanced_l1"):
        make_box_loss("l1", 0.0)
    with pytest.raises(UserError, match="balanced_l1 needs one above 0"):
        make_box_loss("balanced_l1", 0.0)


def test_the_logit_of_the_background_is_not_trained_with_sigmoids():
    logits, labels = np.float32([[[0, 0, 9], [0, 0, -9]]]), np.int32([[1, 2]])
    loss = ops.convert_to_numpy(sigmoid_class_loss(logits, labels))
    np.testing.assert_allclose(loss, [[2 * np.log(2)] * 2], rtol=1e-6)
