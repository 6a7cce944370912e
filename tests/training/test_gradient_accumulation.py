"""Micro-batches in turn train as the big batch does."""

import keras
import numpy as np
import pytest
from support.variants import CLASSES, VARIANTS, batch

from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD
from kgarden.training.gradient_accumulation import accumulated_train_step

pytestmark = pytest.mark.tensorflow


def trained(variant, parts, eager=True, steps=2):
    """(weights, terms) after some steps on batches of four, one picture of them empty.

    Two steps take less time without a graph than one takes to be traced.
    """
    keras.utils.set_random_seed(0)
    settings = VARIANTS[variant]
    settings = {**settings, "backbone": {**settings["backbone"], "norm": "frozen_bn"}}
    detector = build_detector(settings, CLASSES)
    detector.compile(optimizer=SGD(0.02, weight_decay=1e-4), jit_compile=False, run_eagerly=eager)
    if parts > 1:
        detector.train_step = accumulated_train_step(detector, parts)
    terms = []
    for step in range(steps):
        x, y = batch(seed=step, images=4)
        y["labels"][2] = -1
        y["labels"][0, 1:] = -1
        terms.append(detector.fit(x, y, batch_size=4, verbose=0, shuffle=False).history)
    weights = [keras.ops.convert_to_numpy(variable.value).astype("float64") for variable in detector.weights]
    return weights, {name: [one[name][0] for one in terms] for name in terms[0]}


@pytest.mark.parametrize(
    "variant, parts, eager",
    [
        ("retinanet", 2, False),  # a normaliser that remembers earlier steps
        ("two_stage", 2, True),  # RoIs sampled by step and image; its graph is large
        pytest.param("two_stage", 4, False, marks=pytest.mark.slow),
        pytest.param("centernet2", 2, False, marks=pytest.mark.slow),
        pytest.param("fcos_pss", 2, False, marks=pytest.mark.slow),
        pytest.param("condinst_pss", 2, False, marks=pytest.mark.slow),
        pytest.param("mask_rcnn", 2, False, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_equal_the_whole_batch(variant, parts, eager):
    whole, terms = trained(variant, 1)
    parted, terms_parted = trained(variant, parts, eager)
    for one, other in zip(whole, parted, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=2e-6)
    for name, values in terms.items():
        np.testing.assert_allclose(terms_parted[name], values, rtol=2e-5, atol=1e-7, err_msg=name)
