"""PSS: the branch, the assignment, decoding without NMS, and what the branch must leave alone."""

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops
from support.dense_goldens import maps_of, raw_of, truth_of
from support.golden import HERE, Golden, assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.jit import jitted

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.losses.product_focal import focal_loss
from kgarden.losses.ranking import ranking_loss
from kgarden.models import build_detector
from kgarden.models.pss import PSSHead, selection_for
from kgarden.ops.boxes import clip, iou
from kgarden.ops.linear_assignment import hungarian, objects_of, top_one
from kgarden.ops.points import flatten
from kgarden.targets.one_to_one import at_labels, choose, quality


def numpy_of(x):
    return ops.convert_to_numpy(x)


STRIDES = [8, 16, 32, 64, 128]


def file_here(name):
    """A file of the repository, whichever directory the run compares with."""
    return Golden(HERE / f"{name}.npz")


# --- the head -----------------------------------------------------------------------------------------------


def head_with_weights(golden, **selector):
    s = params(golden)
    shape = dict(width=s["feature_channels"], norm_groups=s["gn_groups"])
    head = PSSHead(
        s["strides"],
        s["num_classes"],
        base={"name": "fcos", "num_convs": s["tower_convs"], **shape},
        selector={"num_convs": s["pss_convs"], **shape, **selector},
    )
    head.build([(None, None, None, s["feature_channels"])] * len(s["strides"]))
    towers = {"cls": head.base.class_tower, "reg": head.base.box_tower, "pss": head.selector.tower}
    for name, tower in towers.items():
        for number, conv in enumerate(tower.convs):
            conv.set_weights([golden[f"{name}_tower_{number}_{w}"] for w in ("kernel", "gamma", "beta")])
    outputs = {"cls": head.base.classes, "reg": head.base.code, "ctr": head.base.centerness}
    outputs["pss"] = head.selector.predictor
    for name, conv in outputs.items():
        conv.set_weights([golden[f"{name}_pred_{w}"] for w in ("kernel", "bias")])
    head.base.scales.assign(golden["scales"])
    return head


@pytest.mark.parametrize("golden", goldens("onestage_pss_head"), ids=str)
def test_the_head_agrees_with_the_reference(golden):
    head = head_with_weights(golden)
    pyramid = list(golden.matching("feat_[0-9]").values())
    raw = head(pyramid)
    for name, maps in head.base(pyramid).items():  # the branch changes nothing beside itself
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(raw[name], maps, strict=True))
    classes = params(golden)["num_classes"]
    got = {
        "out_cls": numpy_of(flatten(raw["classes"], classes)),
        "out_reg_norm": numpy_of(flatten(raw["code"], 4)),
        "out_ctr": numpy_of(flatten(raw["centerness"], 1)),
        "out_pss": numpy_of(flatten(raw["pss"], 1)),
        "out_pss_on_cls": numpy_of(flatten(head_with_weights(golden, branch="class")(pyramid)["pss"], 1)),
    }

    def total(*features):
        return sum(ops.sum(level) for level in head(list(features))["pss"])

    own = [head.selector.predictor.kernel, head.selector.tower.convs[0].kernel]
    others = [v for v in head.base.trainable_variables]
    assert len(others) == 3 * 2 * params(golden)["tower_convs"] + 7
    gradients = value_and_gradients(total, pyramid, own + others)[1]
    got["grad_pss_pred_kernel_of_sum"], got["grad_pss_tower_0_kernel_of_sum"] = gradients[len(pyramid) :][:2]
    assert_agrees(golden, got)
    # The branch changes nothing in front of itself.
    assert all((g == 0).all() for g in gradients[: len(pyramid)] + gradients[len(pyramid) + 2 :])


@pytest.mark.parametrize("golden", goldens("onestage_pss_head"), ids=str)
def test_without_stop_gradient_the_box_tower_learns_from_the_branch(golden):
    pyramid = list(golden.matching("feat_[0-9]").values())
    for branch, learns in (("box", "box_tower"), ("class", "class_tower")):
        head = head_with_weights(golden, stop_gradient=False, branch=branch)
        kernels = {name: getattr(head.base, name).convs[0].kernel for name in ("box_tower", "class_tower")}
        gradients = value_and_gradients(
            lambda *features, head=head: sum(ops.sum(level) for level in head(list(features))["pss"]),
            pyramid,
            list(kernels.values()),
        )[1]
        for name, gradient in zip(kernels, gradients[-2:], strict=True):
            assert (np.abs(gradient).max() > 0) == (name == learns)


def test_parameters_of_the_branch():
    for num_convs, count in ((2, 1_182_977), (1, 590_336 + 2_305), (3, 3 * 590_336 + 2_305)):
        head = PSSHead(STRIDES, 80, selector={"num_convs": num_convs})
        head.build([(None, None, None, 256)] * 5)
        assert head.selector.count_params() == count


# --- assignment ---------------------------------------------------------------------------------------------


def pss_raw(golden, **replaced):
    raw = raw_of(golden, "reg_ltrb_norm", **replaced)
    logits = replaced.get("pss_logits", golden["pss_logits"])
    return {**raw, "pss": maps_of(logits, params(golden)["level_sizes"])}


def head_for(golden, base=None, **settings):
    s = params(golden)
    ranges = {"size_ranges": s["regress_ranges"], "center_radius": s["center_radius"]} if base is None else {}
    return PSSHead(
        s["strides"],
        int(golden["num_classes"]),
        base={"name": "fcos", "width": 8, "norm_groups": 1, **ranges, **(base or {})},
        **settings,
    )


@pytest.mark.parametrize("golden", goldens("onestage_pss_assign"), ids=str)
def test_assignments_agree_with_the_reference(golden):
    raw, y = pss_raw(golden), truth_of(golden)
    head = head_for(golden)
    boxes = head.base.boxes(raw)
    omegas = {
        rule: numpy_of(head.base.candidate_mask(raw, y, rule))
        for rule in ("center", "candidates", "positives")
    }
    valid = golden["gt_valid"][..., None] > 0
    probability = head.probability(raw).value()
    got = {f"omega_{rule}": omega for rule, omega in omegas.items()}
    got["pred_boxes"] = numpy_of(boxes)
    got["iou"] = np.where(valid, numpy_of(iou(golden["gt_boxes"], boxes)), 0)
    got["p_hat_at_gt"] = np.where(valid, numpy_of(at_labels(probability, y["labels"])), 0)
    for form in ("mul", "add"):
        good = quality(probability, boxes, y["boxes"], gt_labels=y["labels"], alpha=0.8, form=form)
        got[f"q_{form}_080"] = np.where(omegas["candidates"], numpy_of(good), 0)
    for name in golden.outputs:
        if name.startswith("assigned_"):
            rule = rule_of(golden, name)
            good = quality(
                probability, boxes, y["boxes"], gt_labels=y["labels"], alpha=rule["alpha"], form=rule["form"]
            )
            assign = {"hungarian": jitted(hungarian), "top_one": jitted(top_one)}[rule["matching"]]
            settings = [np.float32(rule["outside"])] if rule["matching"] == "hungarian" else []
            rows = assign(good, omegas[rule["omega"]], *settings)
            got[name] = numpy_of(objects_of(rows, boxes.shape[1]))
    best = got["assigned_hungarian_mul_080_candidates"]
    at_best = np.take_along_axis(got["q_mul_080"], np.maximum(best, 0)[:, None], axis=1)[:, 0]
    got["hungarian_total_q"] = np.where(best >= 0, at_best, 0).sum(axis=1)
    assert_agrees(golden, got)


def rule_of(golden, name):
    """assigned_<method>[_outside0]_<form>_<100 alpha>_<omega> -> settings of PSSHead.assignment."""
    _, method, *outside, form, alpha, omega = name.split("_")
    rule = {"matching": {"topone": "top_one"}.get(method, method), "form": form, "alpha": int(alpha) / 100}
    return {**rule, "outside": params(golden)[(outside or ["outside"])[0]], "omega": omega}


@pytest.mark.parametrize(
    "name",
    [
        "assigned_hungarian_add_040_candidates",
        "assigned_topone_mul_080_center",
    ],
)
def test_the_head_assigns_by_its_settings(name):
    golden = file_here("onestage_pss_assign_crowded")
    head = head_for(golden, assignment=rule_of(golden, name))
    found = numpy_of(head.match(pss_raw(golden), truth_of(golden)).object)
    np.testing.assert_array_equal(found, golden[name])
    default = head_for(golden).match(pss_raw(golden), truth_of(golden)).object
    assert (found != numpy_of(default)).any()


@pytest.mark.parametrize("golden", goldens("onestage_pss_assign"), ids=str)
def test_every_object_has_at_most_one_place_and_only_where_it_may(golden):
    raw, y = pss_raw(golden), truth_of(golden)
    for rule in ("candidates", "center", "positives"):
        head = head_for(golden, assignment={"omega": rule})
        found, omega = head.match(raw, y), numpy_of(head.base.candidate_mask(raw, y, rule))
        objects, labels = numpy_of(found.object), numpy_of(found.labels)
        for image in range(len(objects)):
            places = np.flatnonzero(objects[image] >= 0)
            owners = objects[image, places]
            assert len(set(owners)) == len(owners) and omega[image, owners, places].all()
            np.testing.assert_array_equal(labels[image, places], y["labels"][image, owners])
            assert (labels[image, objects[image] < 0] == -1).all()
    # Where no place may answer for two objects, both ways of matching are one.
    one, other = (
        head_for(golden, assignment={"omega": "positives", "matching": m}).match(raw, y).object
        for m in ("hungarian", "top_one")
    )
    np.testing.assert_array_equal(numpy_of(one), numpy_of(other))


def test_equal_objects_get_places_of_their_own_from_hungarian_alone():
    good = np.tile(np.float32([0.9, 0.5, 0.4, 0.1]), (1, 3, 1))
    omega, labels = np.ones_like(good, bool), np.int32([[2, 2, 2]])
    rows = numpy_of(choose(good, omega, labels).row)
    assert sorted(rows[0]) == [0, 1, 2]
    assert numpy_of(choose(good, omega, labels, "top_one").valid).tolist() == [[True, False, False]]
    omega[:, 1] = False
    found = choose(good, omega, labels)
    assert numpy_of(found.valid).tolist() == [[True, False, True]]
    assert numpy_of(found.labels).tolist() == [[2, 2, -1, -1]]


# --- decoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", goldens("onestage_nmsfree_decode"), ids=str)
def test_detections_without_nms_agree_with_the_reference(golden):
    size_hw = np.tile(np.int32(params(golden)["image_size"]), (len(golden["cls_logits"]), 1))
    got = {}
    for case, rule in params(golden)["cases"].items():
        raw = pss_raw(golden)
        if "ctr" not in rule["factors"]:
            del raw["centerness"]
        head = head_for(golden, base={})
        asked = {"score_threshold": rule["score_thr"], "total": rule["top"]}
        found = selection_for("end_to_end", 0.6, asked)(head.candidates(raw, size_hw))
        got[f"{case}_boxes"] = numpy_of(clip(found["boxes"], size_hw))
        names = {"scores": "scores", "labels": "labels", "source": "locations"}
        got |= {f"{case}_{theirs}": numpy_of(found[ours]) for ours, theirs in names.items()}
        got[f"{case}_num"] = numpy_of(found["valid"]).sum(axis=1)
    assert_agrees(golden, got)


# --- what the branch leaves alone ---------------------------------------------------------------------------


def test_the_losses_of_the_base_do_not_know_of_the_branch():
    """lambda_1 = lambda_2 = 0 is the base: its loss and gradients, bit for bit."""
    golden = file_here("onestage_pss_assign")
    y = truth_of(golden)
    arrays = ["cls_logits", "ctr_logits", "reg_ltrb_norm", "pss_logits"]

    def gradients_of(terms):
        def loss(*values):
            raw = pss_raw(golden, **dict(zip(arrays, values, strict=True)))
            return sum(terms(raw).values())

        return value_and_gradients(loss, [golden[name] for name in arrays])

    off = head_for(golden, weights={"class": 0.0, "rank": 0.0})
    value, gradients = gradients_of(lambda raw: off.losses(raw, y))
    of_base, base_gradients = gradients_of(lambda raw: off.base.losses(raw, y))
    assert value == of_base
    for mine, theirs in zip(gradients, base_gradients, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert np.abs(gradients[0]).max() > 0 and (gradients[3] == 0).all()


@pytest.mark.parametrize("detach", [False, True])
def test_the_new_losses_reach_the_scores_unless_detached(detach):
    golden = file_here("onestage_pss_assign")
    head = head_for(golden, detach_scores=detach)
    arrays = ["cls_logits", "ctr_logits", "pss_logits", "reg_ltrb_norm"]
    y = truth_of(golden)

    def loss(*values):
        raw = pss_raw(golden, **dict(zip(arrays, values, strict=True)))
        return sum(head.one_to_one_losses(raw, y).values())

    gradients = value_and_gradients(loss, [golden[name] for name in arrays])[1]
    of_classes, of_centerness, of_pss, of_boxes = (np.abs(gradient).max() for gradient in gradients)
    assert of_pss > 0 and of_boxes == 0
    assert (of_classes > 0) == (of_centerness > 0) == (not detach)


def test_one_to_many_prediction_is_the_base():
    golden = file_here("onestage_nmsfree_decode")
    raw, head = pss_raw(golden), head_for(golden, base={}, prediction="one_to_many")
    size_hw = np.tile(np.int32(params(golden)["image_size"]), (len(golden["cls_logits"]), 1))
    mine, theirs = head.candidates(raw, size_hw), head.base.candidates(raw, size_hw)
    assert mine.keys() == theirs.keys()
    np.testing.assert_array_equal(numpy_of(mine["scores"]), numpy_of(theirs["scores"]))


def test_mistakes_are_named():
    for settings, words in (
        ({"base": "fcoss"}, "model.base.name 'fcoss'"),
        ({"base": {"name": "fcos", "center_radios": 1}}, "did you mean 'center_radius'"),
        ({"selector": {"convs": 2}}, "model.selector.convs"),
        ({"selector": {"branch": "reg"}}, "one of box, class"),
        ({"assignment": {"matching": "greedy"}}, "hungarian, top_one"),
        ({"weights": {"clas": 1}}, "did you mean 'class'"),
        ({"prediction": "nms"}, "end_to_end, one_to_many"),
        ({"ranking": {"negatives": "all"}}, "best_class"),
    ):
        with pytest.raises(UserError, match=words):
            PSSHead(STRIDES, 3, **settings)


# --- the paper's sentences, by hand -------------------------------------------------------------------------
#
# One level of stride 8 and height 1: points at x = 4, 12, 20, ..., y = 4. Every predicted box is
# [0, 0, W, 8], so that its IoU with an object [0, 0, 32, 8] is W / 32.

OBJECT = (0, 0, 32, 8)  # its centre region holds the points 1 and 2 of four


def logit(p):
    return np.log(p) - np.log1p(-np.float64(p))


def raw_by_hand(pss, scores, widths, centerness=0.5):
    """Raw outputs of images (B, A): probabilities pss, scores (of class 0; class 1 has 1e-6), box widths."""
    pss, scores, widths = (np.atleast_2d(np.float64(x)) for x in (pss, scores, widths))
    x = 8.0 * np.arange(pss.shape[1]) + 4
    half = np.full_like(widths, 0.5)
    classes = np.stack([logit(scores), np.full_like(scores, logit(1e-6))], axis=-1)
    code = np.stack([np.zeros_like(widths) + x / 8, half, (widths - x) / 8, half], axis=-1)
    raw = {"pss": logit(pss)[..., None], "classes": classes, "code": code}
    if centerness is not None:
        raw["centerness"] = np.full_like(pss, logit(centerness))[..., None]
    return {name: [ops.convert_to_tensor(rows[:, None], "float32")] for name, rows in raw.items()}


def truth_by_hand(*images):
    """Objects of class 0, padded to two for each image."""
    boxes, labels = np.zeros((len(images), 2, 4), "float32"), np.full((len(images), 2), -1, "int32")
    for image, objects in enumerate(images):
        for row, box in enumerate(objects):
            boxes[image, row], labels[image, row] = box, 0
    return {"boxes": boxes, "labels": labels, "crowd": np.zeros(labels.shape, bool)}


def head_by_hand(base=None, **settings):
    small = {"name": "fcos", "width": 8, "norm_groups": 1, "num_convs": 1, "size_ranges": [[-1, 1e5]]}
    selector = {"norm_groups": 1, **settings.pop("selector", {})}
    return PSSHead([8], 2, base={**small, **(base or {})}, selector=selector, **settings)


def negative(p):
    """-0.75 p^2 log(1 - p), the focal loss of a background score."""
    return 0.75 * p**2 * -np.log1p(-p)


def test_eq_4_multiplies_three_sigmoids():
    """Eq. 4: "P_i(c_j) = sigma(pss_i) sigma(s_i) sigma(ctr_i)"."""
    got = head_by_hand().probability(raw_by_hand([0.8, 0.5], [0.5, 0.25], [32, 32])).value()
    np.testing.assert_allclose(numpy_of(got)[0, :, 0], [0.8 * 0.5 * 0.5, 0.5 * 0.25 * 0.5], rtol=1e-5)


def test_l_pss_is_the_focal_loss_of_the_product_over_the_positives_of_the_batch():
    """3.1.1: "the focal loss between the multiplied score [...] against the ground-truth labels of C
    categories", where "we now have only one positive sample for each object instance in an image".

    Two objects in the first of two images, none in the second: the sum is divided by 2, those of the batch.
    Points 1 and 2 answer for the two; the third one inside, of a lower score, is background.
    """
    p = np.array([[0.04, 0.2, 0.1, 0.05], [0.01, 0.02, 0.03, 0.04]])  # = 0.8 * s * 0.5
    raw = raw_by_hand(np.full((2, 4), 0.8), p / 0.4, np.full((2, 4), 32))
    positives = 0.25 * (0.8**2 * -np.log(0.2) + 0.9**2 * -np.log(0.1))
    others = negative(0.04) + negative(0.05) + negative(p[1]).sum()
    loss = head_by_hand().one_to_one_losses(raw, truth_by_hand([OBJECT, OBJECT], []))["pss/class"]
    np.testing.assert_allclose(numpy_of(loss), (positives + others) / 2, rtol=1e-4)
    without = head_by_hand().one_to_one_losses(raw, truth_by_hand([], []))["pss/class"]
    np.testing.assert_allclose(numpy_of(without), negative(p).sum(), rtol=1e-4)  # divided by 1, not by 0


def ranked(p, truth, **settings):
    raw = raw_by_hand(np.full(np.shape(p), 0.8), np.divide(p, 0.4), np.full(np.shape(p), 32))
    return float(numpy_of(head_by_hand(**settings).one_to_one_losses(raw, truth)["pss/rank"]))


def test_l_rank_is_the_mean_of_all_pairs_with_a_margin_of_one_half():
    """Eq. 2: "1 / (n_- n_+) sum sum max(0, gamma - P_+ + P_-)"; "we set gamma = 0.5 by default".

    Of the positive 0.38 and the negatives 0.3, 0.1, 0.02, and of 0.2 where it is 0.38 twice that much.
    """
    pairs = np.mean([0.5 - 0.38 + 0.3, 0.5 - 0.38 + 0.1, 0.5 - 0.38 + 0.02])
    one = truth_by_hand([OBJECT])
    np.testing.assert_allclose(ranked([0.3, 0.38, 0.1, 0.02], one, weights={"rank": 1.0}), pairs, rtol=1e-4)
    two = np.mean([[0.5 - plus + minus for plus in (0.38, 0.2)] for minus in (0.3, 0.1)])
    both = truth_by_hand([OBJECT, OBJECT])
    np.testing.assert_allclose(ranked([0.3, 0.38, 0.2, 0.1], both, weights={"rank": 1.0}), two, rtol=1e-4)


def test_l_rank_of_a_pair_beyond_the_margin_is_zero():
    """Eq. 2, "max(0, ...)": a positive of 0.88 and negatives of at most 0.23 are more than 0.5 apart."""
    raw = raw_by_hand([0.5, 0.99, 0.05, 0.05], [0.5, 0.99, 0.05, 0.05], np.full(4, 32), centerness=0.9)
    loss = head_by_hand().one_to_one_losses(raw, truth_by_hand([OBJECT]))["pss/rank"]
    assert float(numpy_of(loss)) == 0.0


def test_l_rank_takes_the_100_highest_negatives():
    """3.1.2: "we choose the top n_- scored P from all negative samples and we set n_- = 100"."""
    p = np.full((1, 121, 1), 0.02, "float32")
    p[0, 1], p[0, 4:104] = 0.38, 0.3  # the positive, 100 hard negatives; 20 easy ones are left out
    where = np.int32([[1]]), np.int32([[0]]), np.array([[True]])
    loss = ranking_loss(p, *where, **head_by_hand().ranking)
    np.testing.assert_allclose(numpy_of(loss), [0.5 - 0.38 + 0.3], rtol=1e-4)


def test_l_rank_is_that_of_each_image():
    """3.1.2: "we add the ranking loss of Equ. (2) for each training image"; here their mean.

    An image without objects counts as 0: it has no pair.
    """
    p = [[0.3, 0.38, 0.1, 0.02], [0.3, 0.38, 0.1, 0.02]]
    both = ranked(p, truth_by_hand([OBJECT], [OBJECT]))
    np.testing.assert_allclose(ranked(p, truth_by_hand([OBJECT], [])), both / 2, rtol=1e-5)


def test_lambda_1_and_lambda_2():
    """Eq. 1, "L = L_fcos + lambda_1 L_pss + lambda_2 L_rank"; 3.1: "We have set lambda_2 to 0.25 in all the
    experiments"; 4.2.6: "lambda_1 = 1 already works well". L_fcos is not changed.
    """
    raw, truth = raw_by_hand([0.8] * 4, [0.75, 0.95, 0.25, 0.05], [32] * 4), truth_by_hand([OBJECT])
    head = head_by_hand()
    losses = {name: float(numpy_of(value)) for name, value in head.losses(raw, truth).items()}
    p = 0.4 * np.array([0.75, 0.95, 0.25, 0.05])
    of_class = 0.25 * (1 - p[1]) ** 2 * -np.log(p[1]) + negative(p[[0, 2, 3]]).sum()
    of_rank = np.mean(0.5 - p[1] + p[[0, 2, 3]])
    np.testing.assert_allclose(losses["pss/class"], 1.0 * of_class, rtol=1e-4)
    np.testing.assert_allclose(losses["pss/rank"], 0.25 * of_rank, rtol=1e-4)
    of_base = head.base.losses(raw, truth)
    assert sorted(losses) == sorted([*of_base, "pss/class", "pss/rank"])
    assert all(losses[name] == float(numpy_of(value)) for name, value in of_base.items())


@pytest.mark.parametrize(("width", "chosen"), [(16, 1), (12.8, 2)])
def test_the_matching_score_is_mul_with_alpha_0_8(width, chosen):
    """4.2.7: "we use 'Mul.' function with alpha = 0.8 in all other experiments". Eq. 3, by hand:

    P 0.9, IoU 0.5: 0.9^0.2 0.5^0.8 = 0.562     P 0.1, IoU 0.8: 0.1^0.2 0.8^0.8 = 0.528     the first
    P 0.9, IoU 0.4: 0.9^0.2 0.4^0.8 = 0.470                                                  the second

    With 0.9 the second wins both times, with 0.7 the first, and with 'Add' (0.58 against 0.66) the second.
    """
    raw = raw_by_hand([0.5, 0.99, 0.11, 0.5], [0.5, 0.99, 0.99, 0.5], [32, width, 25.6, 32], 0.92)
    found = numpy_of(head_by_hand().match(raw, truth_by_hand([OBJECT])).row)
    assert found[0, 0] == chosen


def test_eq_3_weighs_the_iou_by_alpha_and_the_score_by_the_rest():
    """Eq. 3: "[P_i(c_j)]^(1 - alpha) [IoU(b_i, b_j)]^alpha"; Table 8, 'Add': (1 - alpha) P + alpha IoU.

    1/32 to the power of 0.2 is a half, to that of 0.8 a sixteenth.
    """
    boxes = np.float32([[[0, 0, 32, 8], [0, 0, 1, 8]]])
    scores, objects = np.float32([[[1 / 32], [1]]]), np.float32([[OBJECT]])
    labels = np.zeros((1, 1), "int32")
    got = {form: quality(scores, boxes, objects, labels, form=form) for form in ("mul", "add")}
    np.testing.assert_allclose(numpy_of(got["mul"])[0, 0], [1 / 2, 1 / 16], rtol=1e-5)
    np.testing.assert_allclose(numpy_of(got["add"])[0, 0], [0.2 / 32 + 0.8, 0.2 + 0.8 / 32], rtol=1e-5)


def test_omega_is_the_centre_region_of_fcos():
    """3.3: "FCOS_PSS uses anchor points in the center region of instance j as Omega_j same as in FCOS".

    Points 0 and 3 are inside of the object and better, but 12 px, 1.5 strides, from its centre.
    """
    raw = raw_by_hand([0.9, 0.2, 0.1, 0.9], [0.9, 0.2, 0.1, 0.9], [32, 16, 16, 32])
    assert numpy_of(head_by_hand().match(raw, truth_by_hand([OBJECT])).row)[0, 0] == 1


def test_omega_is_the_sampling_of_atss():
    """3.3: "Omega_j of ATSS_PSS uses the ATSS sampling strategy in [32]".

    Anchors of 64 px around x = 0, 8, 16, 24 have IoUs of 0.455, 0.6, 0.778, 1 with an object around 24: of
    the two above the mean, 0.708, the mean plus the deviation, 0.943, leaves the last.
    """
    head = PSSHead([8], 2, base={"name": "atss", "width": 8, "norm_groups": 1, "pad_divisor": None})
    raw, y = raw_by_hand([0.5] * 4, [0.5] * 4, [32] * 4), truth_by_hand([(-8, -32, 56, 32)])
    omega = numpy_of(head.base.candidate_mask(raw, y, head.assignment["omega"]))
    assert omega[0].tolist() == [[False, False, False, True], [False] * 4]


def test_hungarian_matching_maximises_the_sum_of_qualities():
    """3.3: "the bipartite graph matching using the Hungarian algorithm [...] by maximizing sum_j Q_ij".

    0.8 + 0.8 against 0.9 + 0.1: the first object gives way, which top-one does not see.
    """
    good = np.float32([[[0.9, 0.8], [0.8, 0.1]]])
    allowed, labels = np.ones_like(good, bool), np.zeros((1, 2), "int32")
    assert numpy_of(choose(good, allowed, labels).row).tolist() == [[1, 0]]
    assert numpy_of(choose(good, allowed, labels, "top_one").valid).tolist() == [[True, False]]


def test_every_object_that_can_have_a_point_has_one():
    """3.3: "each ground-truth instance j in an image is assigned to one label", whatever the sum of Q.

    The second object may have the first point alone, so the first takes another one: 0.1 + 0.3 against 0.9.
    """
    good = np.float32([[[0.9, 0.1], [0.3, 0.8]]])
    allowed, labels = np.array([[[True, True], [True, False]]]), np.zeros((1, 2), "int32")
    found = choose(good, allowed, labels, outside=head_by_hand().assignment["outside"])
    assert numpy_of(found.valid).all() and numpy_of(found.row).tolist() == [[1, 0]]


def test_the_head_matches_by_the_hungarian_algorithm():
    """3.3: "each ground-truth instance j in an image is assigned to one label": also the second of two equal
    objects, which "the simple top-one selection" leaves without."""
    raw, both = raw_by_hand([0.5] * 4, [0.5] * 4, [32, 32, 16, 32]), truth_by_hand([OBJECT, OBJECT])
    assert sorted(numpy_of(head_by_hand().match(raw, both).row)[0]) == [1, 2]
    top = head_by_hand(assignment={"matching": "top_one"}).match(raw, both)
    assert numpy_of(top.valid)[0].tolist() == [True, False]


def test_detections_are_ranked_boxes_without_nms_or_threshold():
    """Table 1: "ranking detected boxes to compute mAP for our methods and NMS for others".

    Equal boxes all remain, in the order of P, down to 0.001, far below the 0.05 of the base; the base's own
    prediction, by "discarding the PSS head", keeps one of them and scores sigma(s) sigma(ctr).
    """
    raw = raw_by_hand([0.004, 0.8, 0.4, 0.2], [0.5] * 4, [32] * 4)
    found = selection_for("end_to_end", 0.6, {})(head_by_hand().candidates(raw))
    scores, boxes = numpy_of(found["scores"]), numpy_of(found["boxes"])
    assert scores.shape == (1, 100)
    np.testing.assert_allclose(scores[0, :4], [0.2, 0.1, 0.05, 0.001], rtol=1e-4)
    np.testing.assert_allclose(boxes[0, :4], [OBJECT] * 4, atol=1e-4)
    head = head_by_hand(prediction="one_to_many")
    base = selection_for("one_to_many", 0.6, {})(head.candidates(raw))
    assert numpy_of(base["valid"]).sum() == 1
    np.testing.assert_allclose(numpy_of(base["scores"])[0, 0], 0.25, rtol=1e-4)


def gradients_in_the_base(head, of):
    """Whether the gradient of of(raw) reaches the base's towers (their first kernels) and class output."""
    head.build([(None, None, None, 8)])
    features = np.random.default_rng(0).normal(size=(1, 1, 4, 8)).astype("float32")
    base = head.base
    variables = {"box": base.box_tower.convs[0].kernel, "class": base.class_tower.convs[0].kernel}
    variables["scores"] = base.classes.kernel
    found = value_and_gradients(lambda x: of(head([x])), [features], list(variables.values()))[1]
    return {name: np.abs(g).max() > 0 for name, g in zip(variables, found[1:], strict=True)}


@pytest.mark.parametrize(
    "settings", [{}, {"stop_gradient": False}, {"stop_gradient": False, "branch": "class"}]
)
def test_the_branch_is_attached_to_the_regression_tower_behind_a_stop_gradient(settings):
    """3.4: "we stop the gradient relevant to the attached PSS head passing to the original FCOS network
    parameters"; 4.2.3: "we attach the PSS head to the regression branch in all other experiments"."""
    head = head_by_hand(selector=settings)
    reached = gradients_in_the_base(head, lambda raw: ops.sum(raw["pss"][0]))
    tower = settings.get("branch", "box") if settings else None
    assert reached == {"box": tower == "box", "class": tower == "class", "scores": False}
    assert len(head.selector.tower.convs) == 2  # 4.2.4: "two conv layers [...] already work well"


def test_l_pss_reaches_the_classifier_nevertheless():
    """Footnote 4: "not zero impact because L_pss is coupled with the FCOS classifier"."""
    head, y = head_by_hand(), truth_by_hand([OBJECT])
    reached = gradients_in_the_base(head, lambda raw: head.one_to_one_losses(raw, y)["pss/class"])
    assert reached["class"] and reached["scores"]


def test_without_the_centerness_output_its_target_still_weighs_the_boxes():
    """4.2.5: "although we remove the centerness branch, we still retain the centerness as the loss weight of
    GIoU loss"; P is then the product of two.

    An object of 40 px: at x = 12, 20, 28 centerness sqrt(12/28), 1, sqrt(12/28), GIoU 0.5, 1, 1.
    """
    head = head_by_hand(base={"centerness": None})
    raw = raw_by_hand([0.8] * 5, [0.5] * 5, [40, 20, 40, 40, 40], centerness=None)
    np.testing.assert_allclose(numpy_of(head.probability(raw).value())[0, :, 0], 0.4, rtol=1e-5)
    losses = head.base.losses(raw, truth_by_hand([(0, 0, 40, 8)]))
    side = np.sqrt(12 / 28)
    expected = 2.0 * side * 0.5 / (1 + 2 * side)  # 2.0: released configurations
    np.testing.assert_allclose(numpy_of(losses["fcos/box"]), expected, rtol=1e-4)
    assert "fcos/centerness" not in losses


@pytest.mark.parametrize("stem", ["fcos_pss", "atss_pss"])
def test_the_recipes_have_the_schedule_of_the_paper(stem):
    """4.1: "an initial learning rate of 0.01, a momentum of 0.9, a weight decay of 10^-4, a mini-batch size
    of 16. The learning rate decays by a factor of 10 at the 24th and 33th epoch"; 36 epochs, of 7330 steps.
    4.3: "the shorter side of the input image is sampled from [480, 800] with a step of 32 pixels".
    """
    recipe = load_recipe(stem)
    schedule, optimizer = recipe.schedule, recipe.schedule.optimizer
    assert (schedule.base_lr, optimizer.name, optimizer.momentum) == (0.01, "sgd", 0.9)
    assert (optimizer.weight_decay, recipe.data.batch_size) == (1e-4, 16)
    assert (schedule.decay.at, schedule.decay.factor) == ((24 * 7330, 33 * 7330), 0.1)
    assert schedule.steps == 36 * 7330
    assert recipe.data.short_side_px == tuple(range(480, 801, 32))


def test_the_tests_that_the_documentation_names_exist():
    text = pathlib.Path(__file__).parents[2].joinpath("docs", "pss.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`(?! in)", text))
    assert len(named) > 20 and named <= set(globals())


# --- training -----------------------------------------------------------------------------------------------


def scenes(count=4, side=128):
    """Pictures with three coloured rectangles each, of three classes."""
    rng = np.random.default_rng(0)
    colours = np.uint8([[230, 30, 30], [30, 200, 60], [40, 60, 230]])
    images = rng.integers(90, 110, (count, side, side, 3), dtype="uint8")
    boxes, labels = np.zeros((count, 4, 4), "float32"), np.full((count, 4), -1, "int32")
    for image in range(count):
        for number, center in enumerate([(34, 34), (94, 40), (60, 96)]):
            half = rng.integers(11, 26, 2)
            x1, y1, x2, y2 = np.clip([*(center - half), *(center + half)], 0, side)
            label = rng.integers(0, 3)
            images[image, y1:y2, x1:x2] = colours[label]
            boxes[image, number], labels[image, number] = (x1, y1, x2, y2), label
    x = {"images": images, "size_hw": np.full((count, 2), side, "int32")}
    y = {"boxes": boxes, "labels": labels, "crowd": np.zeros(labels.shape, bool)}
    return x, {**y, "image_id": np.arange(count, dtype="int32")}


def judged(detector, x, y, at_least=0.3):
    """Objects found, duplicates and others among the detections with a score of at least 0.3."""
    found = {key: numpy_of(value) for key, value in detector.inference_model()(x).items()}
    counts = {"found": 0, "duplicates": 0, "others": 0}
    for image, labels in enumerate(y["labels"]):
        sure = found["valid"][image] & (found["scores"][image] >= at_least)
        overlap = numpy_of(iou(found["boxes"][image][sure], y["boxes"][image]))
        overlap = np.where(found["labels"][image][sure][:, None] == labels, overlap, 0)
        seen = set()
        for row in overlap:
            best = row.argmax()
            kind = "others" if row[best] <= 0.7 else "duplicates" if best in seen else "found"
            seen.add(best) if kind == "found" else None
            counts[kind] += 1
    return counts


@pytest.mark.slow
def test_the_branch_learns_to_do_without_nms():
    """A few pictures by heart: all objects once without NMS, where the base alone repeats most of them."""
    keras.utils.set_random_seed(0)
    trunk = {"name": "resnet18", "norm": "bn", "stem_channels": 16, "res2_channels": 16}
    tower = {"num_convs": 2, "norm_groups": 8}
    settings = {
        "name": "pss",
        "backbone": trunk,
        "neck": {"channels": 32},
        "base": {"name": "fcos", **tower},
        "selector": tower,
    }
    detector = build_detector(settings, 3)
    on_jax = keras.backend.backend() == "jax"
    detector.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=on_jax)
    x, y = scenes()
    for _ in range(300):
        detector.train_on_batch(x, y)
    objects = int((y["labels"] >= 0).sum())
    assert judged(detector, x, y) == {"found": objects, "duplicates": 0, "others": 0}

    detector.dense_head.prediction = "one_to_many"
    without = judged(detector, x, y)
    assert without["found"] == objects and without["duplicates"] >= objects
    detector.selection = Selection()
    assert judged(detector, x, y) == {"found": objects, "duplicates": 0, "others": 0}


def test_terms_are_divided_by_objects_and_by_images():
    golden = file_here("onestage_pss_assign")
    head, raw, y = head_for(golden), pss_raw(golden), truth_of(golden)
    matched, probability = head.match(raw, y), head.probability(raw)
    objects, images = numpy_of(matched.valid).sum(), len(y["labels"])
    assert objects > images > 1
    focal = numpy_of(focal_loss(probability, matched.labels)).sum()
    rows = (matched.row, matched.label, matched.valid)
    rank = numpy_of(ranking_loss(probability.value(), *rows)).sum()
    terms = {name: float(term) for name, term in head.one_to_one_losses(raw, y).items()}
    assert terms["pss/class"] == pytest.approx(focal / objects, rel=1e-5)
    assert terms["pss/rank"] == pytest.approx(0.25 * rank / images, rel=1e-5)
