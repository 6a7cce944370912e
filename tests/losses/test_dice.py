"""Dice loss: by hand, by loops, by finite differences."""

import numpy as np
from keras import ops
from support import reference_loops as loops
from support.gradients import value_and_gradients

from kgarden.losses.dice import dice_loss


def test_by_hand():
    # 2 * 0.5 / (0.25 + 0.25 + 1) = 2/3; squares below the line, or it would be 2 * 0.5 / 2
    got = dice_loss(np.float32([[[0.5, 0.5]]]), np.array([[[True, False]]]))
    np.testing.assert_allclose(ops.convert_to_numpy(got), [1 - 2 / 3], atol=1e-5)
    same = np.array([[[True, False]]])
    np.testing.assert_allclose(ops.convert_to_numpy(dice_loss(same, same)), [0], atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(dice_loss(~same, same)), [1])
    np.testing.assert_allclose(ops.convert_to_numpy(dice_loss(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))), [1])


def test_agrees_with_loops_and_finite_differences():
    rng = np.random.default_rng(0)
    probability, target = rng.random((3, 4, 5)), rng.random((3, 4, 5)) < 0.4
    got, gradients = value_and_gradients(lambda p: ops.sum(dice_loss(p, target)), [probability])
    np.testing.assert_allclose(got, sum(map(loops.dice_loss, probability, target)), rtol=1e-6)
    for where in [(0, 0, 0), (1, 3, 2), (2, 1, 4)]:
        near = []
        for step in (1e-5, -1e-5):
            moved = probability.copy()
            moved[where] += step
            near.append(loops.dice_loss(moved[where[0]], target[where[0]]))
        np.testing.assert_allclose(gradients[0][where], (near[0] - near[1]) / 2e-5, rtol=1e-3, atol=1e-6)
