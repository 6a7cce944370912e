"""Quality of one-to-one assignment by hand."""

import numpy as np
from keras import ops
from support.gradients import value_and_gradients

from kgarden.targets.one_to_one import quality

BOXES = np.float32([[[0, 0, 10, 5], [0, 0, 10, 10]]])
PROBABILITY = np.float32([[[0.16, 0.5], [0.25, 0.5]]])
GT_BOXES, GT_LABELS = np.float32([[[0, 0, 10, 10]]]), np.int32([[0]])


def test_geometric_and_arithmetic_mean():
    """Wang et al. 2021, arXiv:2012.03544: the IoU has the exponent, or the weight, alpha."""
    truth = {"gt_boxes": GT_BOXES, "gt_labels": GT_LABELS, "alpha": 0.75}
    p, u = np.array([0.16, 0.25]), np.array([0.5, 1.0])
    for form, expected in (("mul", p**0.25 * u**0.75), ("add", 0.25 * p + 0.75 * u)):
        got = quality(PROBABILITY, BOXES, **truth, form=form)
        np.testing.assert_allclose(ops.convert_to_numpy(got)[0, 0], expected, rtol=1e-5)


def test_it_has_no_gradient():
    """Which candidate learns an object is not learned."""
    for form in ("mul", "add"):

        def total(probability, boxes, form=form):
            of_objects = quality(probability, boxes, GT_BOXES, GT_LABELS, form=form)
            return ops.sum(of_objects) + 0.0 * (ops.sum(probability) + ops.sum(boxes))

        for gradient in value_and_gradients(total, [PROBABILITY, BOXES])[1]:
            assert not np.any(gradient)
