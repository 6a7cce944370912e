"""PSS: the branch, the assignment, decoding without NMS, and what the branch must leave alone."""

import keras
import numpy as np
import pytest
from keras import ops
from support.dense_goldens import maps_of, raw_of, truth_of
from support.golden import HERE, Golden, assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.jit import jitted

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
    for name in golden.outputs():
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
