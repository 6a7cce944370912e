"""Federated loss in the RoI heads: which classes get a gradient, and what the draws depend on."""

import numpy as np
import pytest
from support.gradients import value_and_gradients

from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.faster_rcnn import FasterHead
from kgarden.models.fscascade import FSCascadeHead
from kgarden.ops.random import hash_uniform

CLASSES, SUBSET = 40, 9
COUNTS = np.where(np.arange(CLASSES) < 20, 100, 0)  # the other half is never drawn
FEW = dict(strides=[8, 16], roi_levels=(3, 4), num_classes=CLASSES, width=8, pool_size=2, num_samples=16)
BOX = np.float32([4, 4, 40, 30])


def head_of(kind, **settings):
    head = kind(**FEW, sigmoid=True, federated={"classes": SUBSET, **settings}, name="roi_head")
    head.build([(None, None, None, 4)] * 2)
    head.federated.image_counts = COUNTS
    return head


def trained_classes(head, step=0, images=(7, 8)):
    """Of every stage the classes whose logits get a gradient; objects are of classes 3 and 35."""
    rng = np.random.default_rng(0)
    pyramid = [rng.normal(size=(2, side, side, 4)).astype("float32") for side in (8, 4)]
    corner = rng.uniform(0, 30, (2, 20, 2))
    boxes = np.concatenate([corner, corner + 20], axis=-1).astype("float32")
    boxes[:, 0] = BOX
    proposals = {"boxes": boxes, "valid": np.ones((2, 20), bool)}
    y = {
        "boxes": np.tile(BOX, (2, 1, 1)),
        "labels": np.int32([[3], [35]]),
        "crowd": np.zeros((2, 1), bool),
    }
    ids = np.int32(images)
    sampled = head.sample(proposals, y, lambda n: hash_uniform(0, step, ids, n))

    def total():
        raw = head(pyramid, sampled, np.int32([[64, 64]] * 2), training=True)
        return sum(head.losses(raw, y).values())

    biases = [one for one in head.trainable_variables if one.path.endswith("classes/bias")]
    _, gradients = value_and_gradients(total, [], biases)
    return [np.flatnonzero(gradient).tolist() for gradient in gradients]


@pytest.mark.parametrize("kind, stages", [(FasterHead, 1), (CascadeHead, 3), (FSCascadeHead, 3)])
def test_classes_that_learn(kind, stages):
    """The classes of the RoIs, and as many others as there are up to |S|, which counts the background."""
    head = head_of(kind)
    found = trained_classes(head)
    assert len(found) == stages
    for classes in found:
        assert {3, 35} <= set(classes) and len(classes) == SUBSET - 1
        assert set(classes) - {35} < set(range(20))
    assert len({tuple(one) for one in found}) == stages  # every stage draws its own
    assert trained_classes(head) == found
    assert trained_classes(head, step=1) != found
    assert trained_classes(head, images=(7, 9)) == found  # the key is the first image of the batch
    assert trained_classes(head, images=(9, 8)) != found


def test_each_image_has_its_own_subset():
    [found] = trained_classes(head_of(FasterHead, per="image"))
    assert {3, 35} <= set(found) and SUBSET - 1 < len(found) <= 2 * (SUBSET - 2)
    [other] = trained_classes(head_of(FasterHead, per="image"), images=(7, 9))
    assert found != other
