"""Focal loss on products of sigmoids and the ranking loss, against float64 and by hand."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.losses.product_focal import (
    focal_loss,
    focal_of_negative,
    focal_of_positive,
    sigmoid_product,
)
from kgarden.losses.ranking import NEGATIVES, ranking_loss

CASES = {"target0": focal_of_negative, "target1": focal_of_positive}
WORDS = {"locmax": "best_class", "pairs": "other_pairs", "locpairs": "pairs_of_negatives"}


@pytest.mark.parametrize("golden", goldens("onestage_pss_focal_unit"), ids=str)
def test_one_element_agrees_with_float64(golden):
    settings = params(golden)
    factors = list(golden["logits_cls_ctr_pss"].T)
    probability = sigmoid_product(*factors)
    got = {"log_p": probability.yes, "log_1mp": probability.no}
    for case, focal in CASES.items():

        def loss(*factors, focal=focal):
            return focal(sigmoid_product(*factors), settings["alpha"], settings["gamma"])

        got[f"loss_{case}"] = ops.convert_to_numpy(loss(*factors))
        gradients = value_and_gradients(lambda *f, loss=loss: ops.sum(loss(*f)), factors)[1]
        got[f"grad_{case}"] = np.stack(gradients, axis=-1)
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("onestage_pss_losses"), ids=str)
def test_both_losses_agree_with_float64(golden):
    settings = params(golden)
    focal, rank = settings["focal"], settings["rank"]
    labels = np.int32(golden["one_to_one_labels"])  # (B, A), C is background
    classes = settings["num_classes"]
    arrays = [golden["cls_logits"], golden["ctr_logits"][..., None], golden["pss_logits"][..., None]]
    count = (labels < classes).sum()
    rows, row_labels, valid = positives_of(labels, classes)

    def pss(cls, *gates):
        return focal_loss(sigmoid_product(*gates, cls), labels, **focal)

    def ranked(cls, ctr, pss, kind="locmax", n=100):
        scores = sigmoid_product(ctr, pss, cls).value()
        return ranking_loss(
            scores,
            rows,
            row_labels,
            valid=valid,
            margin=rank["gamma"],
            num_negatives=n,
            negatives=WORDS[kind],
        )

    got = {"num_pos": count, "loss_pss_full_per_image_sum": ops.convert_to_numpy(pss(*arrays))}
    loss, gradients = value_and_gradients(lambda *a: ops.sum(pss(*a)) / max(count, 1), arrays)
    got["loss_pss_full"] = loss
    got |= named("grad_pss_", gradients)
    loss, gradients = value_and_gradients(
        lambda cls, pss_logits: ops.sum(pss(cls, pss_logits)) / max(count, 1), [arrays[0], arrays[2]]
    )
    got |= {"loss_pss_noctr": loss, "grad_pss_noctr_pss": gradients[1][..., 0]}
    loss, gradients = value_and_gradients(lambda *a: ops.mean(ranked(*a)), arrays)
    got["loss_rank_mean"] = loss
    got |= named("grad_rank_", gradients)
    for kind in rank["kinds"]:
        for n in rank["n"]:
            per_image = ranked(*arrays, kind=kind, n=n)
            got[f"rank_{kind}_n{n}_per_image"] = ops.convert_to_numpy(per_image)
    assert_agrees(golden, got)


def named(prefix, gradients):
    of_class, of_centerness, of_pss = gradients
    return {f"{prefix}cls": of_class, f"{prefix}ctr": of_centerness[..., 0], f"{prefix}pss": of_pss[..., 0]}


def positives_of(labels, classes):
    """Labels of candidates -> padded rows, labels and mask, (B, M) each."""
    found = [np.flatnonzero(image < classes) for image in labels]
    most = max(1, max(map(len, found)))
    rows, row_labels = np.zeros((2, len(labels), most), "int32")
    valid = np.zeros((len(labels), most), bool)
    for image, columns in enumerate(found):
        rows[image, : len(columns)] = columns
        row_labels[image, : len(columns)] = labels[image, columns]
        valid[image, : len(columns)] = True
    return rows, row_labels, valid


EXTREMES = [-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4]


def test_large_logits_give_finite_losses_and_gradients():
    grid = np.float32(np.stack(np.meshgrid(EXTREMES, EXTREMES, EXTREMES), axis=-1)).reshape(-1, 3)
    for focal in CASES.values():
        loss, gradients = value_and_gradients(
            lambda *f, focal=focal: ops.sum(focal(sigmoid_product(*f))), list(grid.T)
        )
        assert np.isfinite(loss) and all(np.isfinite(gradient).all() for gradient in gradients)
    # A background candidate of which everything is sure loses about its smallest logit, and can mend that.
    loss, gradients = value_and_gradients(
        lambda *f: ops.sum(focal_of_negative(sigmoid_product(*f))), [np.float32([300.0])] * 3
    )
    np.testing.assert_allclose(loss, 0.75 * (300 - np.log(3)), rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), [0.25] * 3, rtol=1e-5)


def test_single_factor_equals_focal_loss():
    logit = np.linspace(-9, 9, 41).astype("float32")
    p = 1 / (1 + np.exp(-np.float64(logit)))
    probability = sigmoid_product(logit)
    np.testing.assert_allclose(focal_of_positive(probability), -0.25 * (1 - p) ** 2 * np.log(p), rtol=1e-5)
    np.testing.assert_allclose(focal_of_negative(probability), -0.75 * p**2 * np.log(1 - p), rtol=1e-4)


def test_ranking_by_hand():
    # Two candidates, two classes; candidate 1 is the positive, of class 0.
    scores = np.float32([[[0.2, 0.3], [0.6, 0.8]]])
    positive, labels, valid = np.int32([[1, 0]]), np.int32([[0, -1]]), np.array([[True, False]])

    def loss(negatives, **settings):
        return float(ranking_loss(scores, positive, labels, valid, negatives=negatives, **settings)[0])

    np.testing.assert_allclose(loss("best_class"), 0.5 - 0.6 + 0.3, rtol=1e-6)
    np.testing.assert_allclose(loss("other_pairs"), (0.1 + 0.2 + 0.7) / 3, rtol=1e-6)
    np.testing.assert_allclose(loss("pairs_of_negatives"), (0.1 + 0.2) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss("other_pairs", num_negatives=1), 0.7, rtol=1e-6)
    np.testing.assert_allclose(loss("best_class", margin=0.2), 0.0, atol=1e-7)
    for negatives in NEGATIVES:
        nothing = ranking_loss(scores, positive, labels, np.zeros_like(valid), negatives=negatives)
        assert float(nothing[0]) == 0
    with pytest.raises(UserError, match="best_class"):
        loss("worst")
