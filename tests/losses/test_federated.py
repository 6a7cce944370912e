"""Federated loss against the authors' code: loss and gradient on given classes, and how classes are drawn."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.layers.initializers import prior_bias
from kgarden.losses.federated import make_subsets
from kgarden.losses.roi import sigmoid_class_loss, softmax_class_loss
from kgarden.ops.random import hash_uniform

DRAWS = 4000


def subsets_of(num_classes, image_count, **settings):
    subsets = make_subsets(settings, sigmoid=True, num_classes=num_classes)
    subsets.image_counts = image_count
    return subsets


def chosen(classes, num_classes):
    """Class numbers -> (1, C) bool, the background left out."""
    return np.isin(np.arange(num_classes), classes)[None]


@pytest.mark.parametrize("golden", goldens("cn2_fed_loss"), ids=str)
def test_agrees_with_the_reference(golden):
    s = params(golden)
    num = s["num_classes"]
    logits, labels = golden["logits"][None], golden["gt_classes"][None].astype("int32")
    background = np.full_like(labels, num)
    many = golden["many_gt_classes"][None].astype("int32")
    subset = chosen(golden["sampled_classes"], num)

    def mean(loss, labels, *subset):
        return lambda logits: ops.sum(loss(logits, labels, *subset)) / labels.size

    def value(function):
        return ops.convert_to_numpy(function(logits))

    # The release's softmax weighs classes outside of S with 0. All labels are in S: it is the plain softmax.
    sigmoid, softmax = mean(sigmoid_class_loss, labels, subset), mean(softmax_class_loss, labels)
    allbg, of_many = (chosen(golden[f"{case}_sampled_classes"], num) for case in ("allbg", "many"))
    subsets = subsets_of(
        num, golden["image_count"], classes=s["num_sample_cats"], power=s["freq_exponent"], per="image"
    )
    random = hash_uniform(3, 5, np.arange(DRAWS, dtype="int32"), num)
    drawn = ops.convert_to_numpy(subsets.of(np.repeat(labels, DRAWS, axis=0), random))
    assert (drawn.sum(axis=1) == s["num_sample_cats"] - 1).all()  # the background is one of them
    present = np.isin(np.arange(num + 1), labels)
    weights = np.where(present, 0, np.append(subsets.weights(), 0))
    got = {
        "loss_sigmoid_fed": value(sigmoid),
        "grad_sigmoid_fed": value_and_gradients(sigmoid, [logits])[1][0][0],
        "loss_softmax_fed": value(softmax),
        "grad_softmax_fed": value_and_gradients(softmax, [logits])[1][0][0],
        "loss_softmax_plain": value(softmax),
        "loss_sigmoid_plain": value(mean(sigmoid_class_loss, labels)),
        "allbg_loss_sigmoid_fed": value(mean(sigmoid_class_loss, background, allbg)),
        "many_loss_sigmoid_fed": value(mean(sigmoid_class_loss, many, of_many)),
        "freq_weight": subsets.weights(),
        "cls_bias_init": ops.convert_to_numpy(prior_bias(s["prior_prob"])((1,)))[0],
        "sampling_weight_unnormalised": weights,
        "sampling_prob_first_draw": weights / weights.sum(),
        "empirical_inclusion_freq_4000": np.append(drawn.mean(axis=0), 1.0),
    }
    assert_agrees(golden, got)
    # With as many labels as classes in S, or more, S is the labels.
    got = ops.convert_to_numpy(subsets.of(many, random[:1]))
    np.testing.assert_array_equal(got, of_many)


def test_the_first_draw_is_in_proportion_to_the_weights():
    counts = np.array([1, 4, 0, 9, 100])
    for power, weights in ((0.5, [1, 2, 0, 3, 10]), (0.0, [1, 1, 0, 1, 1])):
        subsets = subsets_of(5, counts, classes=1, power=power, per="image")
        random = hash_uniform(0, 0, np.arange(20_000, dtype="int32"), 5)
        drawn = ops.convert_to_numpy(subsets.of(np.full((20_000, 1), -1, "int32"), random))
        np.testing.assert_allclose(drawn.mean(axis=0), weights / np.sum(weights), atol=0.012)


def test_subsets_of_batches_and_of_images():
    """Image 0 has class 1 and background, image 1 class 2 and padding; class 4 has no images."""
    labels, counts = np.int32([[1, 5, 5], [2, 2, -1]]), np.array([7, 7, 7, 7, 0])
    random = hash_uniform(1, 2, np.int32([30, 40]), 5)
    batch = ops.convert_to_numpy(subsets_of(5, counts, classes=4).of(labels, random))
    assert batch.shape == (1, 5)
    assert batch[0, [1, 2]].all() and batch.sum() == 3 and not batch[0, 4]  # 1, 2, background and one more
    image = ops.convert_to_numpy(subsets_of(5, counts, classes=2, per="image").of(labels, random))
    assert image[0].tolist() == [False, True, False, False, False]  # and background: no room
    assert image[1].sum() == 2 and image[1, 2]
    everything = ops.convert_to_numpy(subsets_of(5, counts).of(labels, random))
    assert everything.tolist() == [
        [True, True, True, True, False]
    ]  # fewer than 50 classes: all that have images
    kept = [
        subsets_of(1203, np.ones(1203)).of(labels, hash_uniform(1, 2, ids, 1203))
        for ids in (np.int32([30, 40]), np.int32([30, 9]), np.int32([9, 40]))
    ]
    kept = [ops.convert_to_numpy(one) for one in kept]
    assert (kept[0] == kept[1]).all() and (kept[0] != kept[2]).any()  # by the first image of the batch
    assert kept[0].sum() == 50  # class 5 of 1203 is no background


def test_numbers_are_none_that_chose_rois():
    """Two images, 3 classes, 2 stages, behind 5 taken numbers; default weights are square roots."""
    numbers = subsets_of(3, [4, 0, 9]).numbers(lambda n: np.tile(np.arange(n), (2, 1)), used=5, stages=2)
    assert ops.convert_to_numpy(numbers).tolist() == [[[5, 6, 7], [8, 9, 10]]] * 2
    assert subsets_of(3, [4, 0, 9]).weights().tolist() == [2, 0, 3]


def test_what_is_refused():
    for settings, sigmoid, message in (
        ({}, False, "set model.roi_head.sigmoid true"),
        ({"clases": 3}, True, "federated.clases: no such setting; did you mean 'classes'"),
        ({"per": "replica"}, True, "federated.per 'replica': one of batch, image"),
        ({"classes": 0}, True, "federated.classes 0: 1 or more"),
        (50, True, "federated 50: settings such as"),
    ):
        with pytest.raises(UserError, match=message):
            make_subsets(settings, sigmoid, 9)
    assert make_subsets(None, True, 9) is None
    with pytest.raises(UserError, match="number of training images of each class is not known"):
        make_subsets({}, True, 9).weights()
    with pytest.raises(UserError, match="8 numbers of images for 9 classes"):
        subsets_of(9, np.ones(8)).weights()
