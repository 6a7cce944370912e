"""Focal, quality focal and distribution focal loss against mmdetection."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.losses.focal import (
    distribution_focal_loss,
    expectation,
    quality_focal_loss,
    sigmoid_focal_loss,
)


def loss_and_gradient(function, logits):
    """Every element's loss, and the gradient of their sum."""
    _, (gradient,) = value_and_gradients(lambda at: ops.sum(function(at)), [logits])
    return ops.convert_to_numpy(function(ops.convert_to_tensor(logits))), gradient


@pytest.mark.parametrize("golden", goldens("mmdet_focal_losses"), ids=str)
def test_losses_agree_with_the_reference(golden):
    settings, logits, got = params(golden), golden["logits"], {}
    target = np.float32(golden["labels"][:, None] == np.arange(settings["num_classes"]))
    cases = {name: s for name, s in settings.items() if name.startswith("focal_")}
    assert cases
    for case, s in cases.items():
        loss, gradient = loss_and_gradient(lambda at, s=s: sigmoid_focal_loss(at, target, **s), logits)
        got |= {f"{case}/loss": loss, f"{case}/grad": gradient}

    quality = target * golden["qfl/score"][:, None]
    beta = settings["qfl"]["beta"]
    loss, gradient = loss_and_gradient(
        lambda at: ops.sum(quality_focal_loss(at, quality, beta), axis=-1), logits
    )
    got |= {"qfl/loss": loss, "qfl/grad": gradient}

    sides = golden["dfl/logits"]
    assert sides.shape[1] == settings["dfl"]["reg_max"] + 1
    loss, gradient = loss_and_gradient(lambda at: distribution_focal_loss(at, golden["dfl/target"]), sides)
    got |= {"dfl/loss": loss, "dfl/grad": gradient}
    got["integral/expectation"] = ops.convert_to_numpy(expectation(sides))
    assert_agrees(golden, got)


def test_large_logits_give_finite_losses_and_gradients():
    logits = np.float32([[-200, -90, 90, 200]])
    for target in (np.zeros_like(logits), np.ones_like(logits)):
        for function in (sigmoid_focal_loss, quality_focal_loss):
            loss, gradient = loss_and_gradient(lambda at, f=function, t=target: f(at, t), logits)
            assert np.isfinite(loss).all() and np.isfinite(gradient).all()
