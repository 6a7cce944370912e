"""IoU losses against mmdetection, by hand, and where gradients have corners."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.losses.box_iou import KINDS, bounded_iou_loss, box_iou_loss

NAMES = {
    "iou_log": "iou",
    "iou_linear": "linear_iou",
    "iou_square": "square_iou",
    "giou": "giou",
    "diou": "diou",
    "ciou": "ciou",
}


@pytest.mark.parametrize("golden", goldens("mmdet_iou_losses"), ids=str)
def test_losses_agree_with_the_reference(golden):
    settings, target, got = params(golden), golden["target"], {}
    losses = {
        name: lambda at, kind=kind, name=name: box_iou_loss(at, target, kind, settings[name]["eps"])
        for name, kind in NAMES.items()
    }
    bounded = settings["bounded_iou"]
    losses["bounded_iou"] = lambda at: bounded_iou_loss(at, target, bounded["beta"], bounded["eps"])
    for name, loss in losses.items():
        got[f"{name}/loss"] = ops.convert_to_numpy(loss(ops.convert_to_tensor(golden["pred"])))
        _, (gradient,) = value_and_gradients(lambda at, loss=loss: ops.sum(loss(at)), [golden["pred"]])
        got[f"{name}/grad_pred"] = gradient
    weighted = np.sum(golden["weight"] * got["giou/loss"])
    got["giou/weighted_mean"] = weighted / settings["weighted_mean"]["avg_factor"]
    assert_agrees(golden, got)


def test_two_boxes_by_hand():
    # 2x2 and 2x2, one apart in x: 2 common, 6 together, a hull of 3x2.
    a, b = np.float32([[0, 0, 2, 2]]), np.float32([[1, 0, 3, 2]])
    expected = {"linear_iou": 2 / 3, "giou": 2 / 3, "square_iou": 8 / 9, "iou": np.log(3)}
    expected |= {"diou": 2 / 3 + 1 / 13, "ciou": 2 / 3 + 1 / 13}
    for kind, loss in expected.items():
        np.testing.assert_allclose(ops.convert_to_numpy(box_iou_loss(a, b, kind)), [loss], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gradient_of_perfect_and_finite_gradient_of_degenerate_boxes(kind):
    box = np.float32([[3, 4, 10, 12]])
    loss, (gradient,) = value_and_gradients(lambda at: ops.sum(box_iou_loss(at, box, kind)), [box])
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    flat = np.float32([[3, 4, 3, 4]])
    loss, (gradient,) = value_and_gradients(lambda at: ops.sum(box_iou_loss(at, box, kind)), [flat])
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_gradient_of_zero_width_box_equals_that_of_a_narrow_one(kind):
    """A relu leaves distances of exactly 0: the corner there must not cut the gradient off."""
    target = np.float32([[0, 0, 8, 8]])

    def gradient(width):
        box = np.float32([[5, 1, 5 + width, 7]])
        return value_and_gradients(lambda at: ops.sum(box_iou_loss(at, target, kind)), [box])[1][0]

    np.testing.assert_allclose(gradient(0.0), gradient(1e-3), rtol=0.01, atol=1e-4)
    assert gradient(0.0)[0, 2] < -0.01


def test_unknown_kind_raises():
    with pytest.raises(UserError, match="one of giou"):
        box_iou_loss(np.zeros((1, 4)), np.zeros((1, 4)), "gioux")


def test_ciou_by_hand():
    """Zheng et al. 2020, arXiv:1911.08287; shape counts above an IoU of 1/2, as in mmdetection."""
    box, at_half, above = ([0, 0, 10, height] for height in (10, 20, 18))
    loss = ops.convert_to_numpy(box_iou_loss(np.float32([box]), np.float32([at_half]), "ciou"))
    np.testing.assert_allclose(loss, 1 - (0.5 - 25 / 500), rtol=1e-5)

    def terms(height):
        iou, distance = height / 18, (9 - height / 2) ** 2 / (10**2 + 18**2)
        return 1 - iou + distance, 4 / np.pi**2 * (np.arctan(10 / 18) - np.arctan(10 / height)) ** 2

    (rest, shape), step = terms(10.0), 1e-4
    weight = shape / (1 - 10 / 18 + shape)
    slopes = [(up - down) / (2 * step) for up, down in zip(terms(10 + step), terms(10 - step), strict=True)]
    value, (gradient,) = value_and_gradients(
        lambda predicted: ops.sum(box_iou_loss(predicted, np.float32([above]), "ciou")), [np.float32([box])]
    )
    assert value == pytest.approx(rest + weight * shape, rel=1e-4)
    assert gradient[0, 3] == pytest.approx(slopes[0] + weight * slopes[1], rel=1e-3)
    assert abs(weight * slopes[1]) > 5e-4
