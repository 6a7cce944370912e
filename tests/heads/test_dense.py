"""What the heads of two towers have in common, and what their options mean."""

import keras
import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.models import build_detector
from kgarden.models.atss import ATSSHead
from kgarden.models.centernet2 import FIRST_STAGES
from kgarden.models.fcos import FCOSHead
from kgarden.models.gfl import GFLHead
from kgarden.models.retinanet import RetinaNetHead
from kgarden.necks.fpn import FPN

HEADS = {"atss": ATSSHead, "fcos": FCOSHead, "gfl": GFLHead, "retinanet": RetinaNetHead}
STRIDES = [8, 16, 32, 64, 128]
SIZES = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
CLASSES = 3
TINY = dict(width=8, num_convs=1, norm_groups=4)


def head_of(name, num_classes=CLASSES, **settings):
    keras.utils.set_random_seed(0)
    small = {**TINY, **settings}
    head = HEADS[name](STRIDES, num_classes, **small)
    head.build([(None, None, None, 8)] * 5)
    return head


def pyramid(images=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(images, *size, 8)).astype("float32") for size in SIZES]


def truth(images=2, objects=4, padding=2, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (images, objects, 2)) * [128, 96]
    boxes = np.concatenate([corner, corner + rng.uniform(12, 60, (images, objects, 2))], axis=-1)
    y = {
        "boxes": np.zeros((images, objects + padding, 4), "float32"),
        "labels": np.full((images, objects + padding), -1, "int32"),
        "crowd": np.zeros((images, objects + padding), bool),
    }
    y["boxes"][:, :objects] = np.minimum(boxes, [128, 96, 128, 96])
    y["labels"][:, :objects] = rng.integers(0, CLASSES, (images, objects))
    return y


def rows(y, order):
    return {key: value[:, order] for key, value in y.items()}


def terms_of(head, raw, y):
    return {name: float(term) for name, term in head.losses(raw, y).items()}


@pytest.mark.parametrize("name", HEADS)
def test_order_padding_and_crowds_do_not_matter(name):
    head, y = head_of(name), truth()
    raw = head(pyramid())
    terms = terms_of(head, raw, y)
    assert list(terms) == head.loss_names and all(value > 0 for value in terms.values())
    # Fewer rows of padding, another order, and rows that are crowds instead of padding.
    for other in (rows(y, [0, 1, 2, 3]), rows(y, [4, 3, 1, 0, 5, 2])):
        assert terms_of(head, raw, other) == pytest.approx(terms, rel=1e-5)
    crowded = {key: value.copy() for key, value in y.items()}
    crowded["boxes"][:, 4] = [10, 10, 90, 90]
    crowded["labels"][:, 4] = 1
    seen = terms_of(head, raw, crowded)
    assert seen != pytest.approx(terms, rel=1e-3)
    crowded["crowd"][:, 4] = True
    assert terms_of(head, raw, crowded) == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_pictures_without_objects(name):
    head, y = head_of(name), truth()
    y["labels"][:] = -1
    terms = terms_of(head, head(pyramid()), y)
    assert all(np.isfinite(value) for value in terms.values())
    assert {term for term, value in terms.items() if value} == {f"{name}/class"}


@pytest.mark.parametrize("name", HEADS)
def test_what_another_head_laid_over_it_needs(name):
    """PSS reads features, scores, boxes and possible places."""
    head, y = head_of(name), truth()
    raw = head(pyramid())
    places = sum(height * width for height, width in SIZES) * head.anchors
    assert [tuple(f.shape) for f in raw["reg_feature"]] == [(2, *size, 8) for size in SIZES]
    assert [tuple(f.shape) for f in raw["cls_feature"]] == [(2, *size, 8) for size in SIZES]
    boxes, scores = head.boxes(raw), head.scores(raw)
    assert boxes.shape == (2, places, 4) and scores.shape == (2, places, CLASSES)
    logits = head.score_logits(raw)
    assert len(logits) == 1 + ("centerness" in raw)
    log_score = sum(-np.logaddexp(0, -ops.convert_to_numpy(one).astype("float64")) for one in logits)
    np.testing.assert_allclose(np.exp(log_score), ops.convert_to_numpy(scores), rtol=1e-5)

    matched = ops.convert_to_numpy(head.assign(raw, y))
    chosen = ops.convert_to_numpy(head.candidate_mask(raw, y, "positives"))
    np.testing.assert_array_equal(chosen.any(axis=1), matched >= 0)
    np.testing.assert_array_equal(chosen.argmax(axis=1)[matched >= 0], matched[matched >= 0])
    assert chosen.shape == (2, 6, places) and chosen.any() and not chosen[:, 4:].any()
    if name == "retinanet":
        with pytest.raises(UserError, match="use 'positives'"):
            head.candidate_mask(raw, y)
    else:
        possible = ops.convert_to_numpy(head.candidate_mask(raw, y))
        assert (possible >= chosen).all() and not possible[:, 4:].any()
    if name == "fcos":
        near = ops.convert_to_numpy(head.candidate_mask(raw, y, "center"))
        assert (near >= possible).all() and near.sum() > possible.sum()
    found = head.candidates(raw, np.int32([[90, 120]] * 2))
    boxes = ops.convert_to_numpy(found["boxes"])
    assert (boxes >= 0).all() and (boxes <= [120, 90, 120, 90]).all()


@pytest.mark.parametrize("name", HEADS)
def test_everything_that_is_trained_is_reached(name):
    """Gradients of the loss reach every variable of the head, through numbers that are finite."""
    head, y, features = head_of(name), truth(), pyramid()
    variables = head.trainable_variables

    def loss(_):
        return sum(head.losses(head(features), y).values())

    _, gradients = value_and_gradients(loss, [np.float32(0)], variables)
    for variable, gradient in zip(variables, gradients[1:], strict=True):
        assert np.isfinite(gradient).all() and np.abs(gradient).sum() > 0, variable.path


@pytest.mark.parametrize("name", HEADS)
def test_boxes_scores_and_losses_stay_float32_in_mixed_precision(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = head_of(name)
    finally:
        keras.config.set_dtype_policy("float32")
    raw = head([ops.cast(level, "bfloat16") for level in pyramid()])
    assert keras.backend.standardize_dtype(raw["reg_feature"][0].dtype) == "bfloat16"
    found = head.candidates(raw, np.int32([[96, 128]] * 2))
    tensors = [raw["code"][0], raw["classes"][0], found["boxes"], found["scores"]]
    for tensor in [*tensors, *head.losses(raw, truth()).values()]:
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
        assert np.isfinite(ops.convert_to_numpy(tensor)).all()


def test_parameters_are_those_of_the_references():
    def count(layer, shape):
        layer.build([shape] * 5 if not isinstance(layer, FPN) else shape)
        return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)

    level = (None, None, None, 256)
    assert count(FCOSHead(STRIDES, 80), level) == 4_918_618
    assert count(FCOSHead(STRIDES, 80, tower_bias=True), level) == 4_920_666
    assert count(ATSSHead(STRIDES, 80), level) == 4_918_618
    assert count(GFLHead(STRIDES, 80), level) == 5_063_833
    assert count(RetinaNetHead(STRIDES, 80), level) == 6_463_220
    stages = [(None, None, None, width) for width in (256, 512, 1024, 2048)]
    assert count(FPN(), stages) == 3_868_672
    assert count(FPN(top="p6p7_of_c5"), stages) == 7_997_440


def test_no_activation_before_p7_unless_asked():
    for name, relu in [("fcos", True), ("atss", False), ("gfl", False), ("retinanet", False)]:
        backbone = {"name": "resnet18", "stem_channels": 8, "res2_channels": 8}
        detector = build_detector({"name": name, "backbone": backbone, "neck": {"channels": 32}}, 3)
        assert detector.neck.relu_before_p7 == relu
        assert (detector.neck.top == "p6p7_of_c5") == (name == "retinanet")
        assert detector.selection.iou == (0.5 if name == "retinanet" else 0.6)


# Options.


def raw_fcos(head, **maps):
    """Raw outputs of zeros but for the given ones, (B, A, D)."""
    raw = head(pyramid(images=1))
    for key in raw:
        raw[key] = [np.zeros(level.shape, "float32") for level in raw[key]]
    for key, value in maps.items():
        raw[key] = [np.full(level.shape, value, "float32") for level in raw[key]]
    return raw


def test_distances_of_the_first_paper_are_px():
    head = head_of("fcos", distance="exp")
    code = ops.convert_to_numpy(head.activate(np.float32([0.0, 1.0]), level=1))
    np.testing.assert_allclose(code * 16, [1, np.e], rtol=1e-6)
    code = ops.convert_to_numpy(head_of("fcos").activate(np.float32([-1.0, 2.0]), level=1))
    assert code.tolist() == [0, 2]


def test_the_quality_may_be_the_iou():
    # One point in the middle of an object: known IoUs.
    y = truth(images=1, objects=1, padding=0)
    y["boxes"][0, 0] = [16, 16, 24, 24]  # the point (20, 20) of stride 8 alone, 4 px to each side
    head = head_of("fcos", quality="iou")
    terms = terms_of(head, raw_fcos(head, code=0.25), y)  # half as large: IoU 1/4, GIoU 1/4
    assert terms["fcos/box"] == pytest.approx(0.75, rel=1e-5)
    assert terms["fcos/centerness"] == pytest.approx(np.log(2), rel=1e-5)
    sure = terms_of(head, raw_fcos(head, code=0.25, centerness=2.0), y)
    cross_entropy = np.log1p(np.exp(2)) - 2 * 0.25
    assert sure["fcos/centerness"] == pytest.approx(cross_entropy, rel=1e-5)
    middle = head_of("fcos")  # centre-ness of the middle is 1
    sure = terms_of(middle, raw_fcos(middle, code=0.25, centerness=2.0), y)
    assert sure["fcos/centerness"] == pytest.approx(np.log1p(np.exp(2)) - 2, rel=1e-5)


def test_a_sum_of_centerness_below_one_is_divided_by():
    # 2 px wide around one point, 1 px below the top and 15 px above the bottom: a centre-ness of sqrt(1/15).
    y = truth(images=1, objects=1, padding=0)
    y["boxes"][0, 0] = [19, 19, 21, 35]
    head = head_of("fcos", size_ranges=[[14.5, 15.5]] + [[1000, 2000]] * 4, center_radius=None)
    raw = raw_fcos(head, code=0.0)
    assert np.flatnonzero(ops.convert_to_numpy(head.assign(raw, y))[0] >= 0).size == 1
    # A box without extent has an IoU of 0 and the object for a hull: GIoU 0.
    assert terms_of(head, raw, y)["fcos/box"] == pytest.approx(1.0, rel=1e-4)


def test_by_what_candidates_are_ranked_and_gated():
    features = pyramid()
    for settings, rank, gate in [
        ({}, "class", "class"),
        ({"rank_by": "score", "gate_by": "score"}, "score", "score"),
        ({"sqrt_scores": True}, "class", "class"),
    ]:
        head = head_of("atss", **settings)
        raw = head(features)
        sure, middle = (ops.convert_to_numpy(ops.sigmoid(one)) for one in head.score_logits(raw))
        by = {"class": sure, "score": sure * middle}
        found = {key: value for key, value in head.candidates(raw).items() if key != "levels"}
        found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
        np.testing.assert_allclose(found["ranking_scores"], by[rank], rtol=1e-5)
        np.testing.assert_allclose(found["threshold_scores"], by[gate], rtol=1e-5)
        np.testing.assert_allclose(found["probability"], by["score"], rtol=1e-5)
        reported = np.sqrt(by["score"]) if "sqrt_scores" in settings else by["score"]
        np.testing.assert_allclose(found["scores"], reported, rtol=1e-5)


def test_without_centerness_its_target_still_weighs_boxes():
    y = truth()
    with_it, without = head_of("fcos"), head_of("fcos", centerness=None)
    assert without.loss_names == ["fcos/class", "fcos/box"]
    raw = with_it(pyramid())
    bare = {key: value for key, value in raw.items() if key != "centerness"}
    for term, value in terms_of(without, bare, y).items():
        assert value == pytest.approx(terms_of(with_it, raw, y)[term])


def test_the_authors_box_loss_is_smoothed():
    y = truth(images=1, objects=1, padding=0)
    y["boxes"][0, 0] = [16, 16, 24, 24]
    head = head_of("fcos", smoothing=1.0, box_loss="linear_iou")
    # 1/2 stride to each side against 1/4: 1/4 common, 1 together.
    assert terms_of(head, raw_fcos(head, code=0.25), y)["fcos/box"] == pytest.approx(1 - 1.25 / 2, rel=1e-5)


def test_what_is_counted_where_a_picture_has_no_positive():
    y = truth()
    y["labels"][1] = -1
    for name, settings in [("atss", {"count_empty": False}), ("retinanet", {"normalizer": "positives"})]:
        head, plain = head_of(name), head_of(name, **settings)
        raw = head(pyramid())
        positives = (ops.convert_to_numpy(head.assign(raw, y)) >= 0).sum()
        one, other = (terms_of(h, raw, y)[f"{name}/class"] for h in (head, plain))
        assert positives > 1 and one * (positives + 1) == pytest.approx(other * positives, rel=1e-5)


def test_each_image_by_its_own_positives():
    """Then the terms of a batch are the means of its images' own, also of one without objects."""
    y = truth()
    y["labels"][1] = -1
    head = head_of("retinanet", normalizer="image")
    raw = head(pyramid())
    images = [
        terms_of(
            head,
            {key: [level[image : image + 1] for level in levels] for key, levels in raw.items()},
            {key: value[image : image + 1] for key, value in y.items()},
        )
        for image in range(2)
    ]
    for name, term in terms_of(head, raw, y).items():
        assert term == pytest.approx((images[0][name] + images[1][name]) / 2, rel=1e-5)
    positives = (ops.convert_to_numpy(head.assign(raw, y)) >= 0).sum()
    plain = terms_of(head_of("retinanet", normalizer="positives"), raw, y)
    assert positives > 1 and terms_of(head, raw, y)["retinanet/box"] == pytest.approx(
        plain["retinanet/box"] / 2, rel=1e-5
    )


def test_anchors_under_a_crowd_are_not_learned():
    head = head_of("atss", crowd_share=0.5)
    y = truth()
    y["boxes"][:, 4] = [0, 0, 128, 96]
    y["labels"][:, 4] = 0
    y["crowd"][:, 4] = True
    raw = head(pyramid())
    matched = ops.convert_to_numpy(head.assign(raw, y))
    assert (matched == -2).any() and not (matched >= 0)[matched == -2].any()

    def loss(logits):
        return head.losses({**raw, "classes": [logits, *raw["classes"][1:]]}, y)["atss/class"]

    _, (gradient,) = value_and_gradients(loss, [ops.convert_to_numpy(raw["classes"][0])])
    first = matched[:, : gradient[0, ..., 0].size].reshape(gradient.shape[:3])
    np.testing.assert_array_equal(np.abs(gradient).sum(axis=-1) == 0, first == -2)


def maps_of_canvas(height, width, anchors):
    """Raw outputs of which the assigners read the shape alone."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return {"classes": [np.zeros((1, *size, anchors * CLASSES), "float32") for size in sizes]}


@pytest.mark.parametrize("name", ["atss", "gfl", "retinanet"])
def test_objects_get_the_same_anchors_whatever_the_batch_adds_to_their_image(name):
    # On the two coarsest levels the image alone has fewer than nine anchors, so that the threshold of ATSS
    # rests on fewer candidates than the canvas has.
    y = truth(images=1, objects=2, padding=1)
    y["boxes"][0, :2] = [[5, 6, 40, 50], [17, 15, 85, 83]]
    y["size_hw"] = np.int32([[94, 95]])
    head = HEADS[name](STRIDES, CLASSES, **TINY)
    alone, in_batch = (maps_of_canvas(*canvas, head.anchors) for canvas in ((96, 96), (160, 224)))
    inside = ops.convert_to_numpy(head.anchors_of(in_batch).inside(y["size_hw"], divisor=32))[0]
    wanted = ops.convert_to_numpy(head.assign(alone, y))[0]
    got = ops.convert_to_numpy(head.assign(in_batch, y))[0]
    assert {0, 1} <= set(wanted.tolist())
    np.testing.assert_array_equal(got[inside], wanted)
    assert not inside.all() and (got[~inside] == -2).all()

    as_background = HEADS[name](STRIDES, CLASSES, pad_divisor=None, **TINY)
    got = ops.convert_to_numpy(as_background.assign(in_batch, y))[0]
    assert (got[~inside] == -1).any()


def test_conventions_of_detectron2_take_padding_for_background():
    heads = [
        head(STRIDES, **settings) for head, settings in map(FIRST_STAGES.get, ("retinanet", "atss", "gfl"))
    ]
    released = load_recipe("retinanet", row="detectron2.1x").model.model_dump()["dense_head"]
    for head in [*heads, RetinaNetHead(STRIDES, CLASSES, **released)]:
        y = {**truth(images=1, objects=0), "size_hw": np.int32([[60, 60]])}
        assert (ops.convert_to_numpy(head.assign(maps_of_canvas(160, 224, head.anchors), y)) == -1).all()


def test_ranking_and_gating_of_candidates():
    # Two places of one level: the first is surer of its class, the second has the larger product.
    candidates = {
        "boxes": np.float32([[[0, 0, 9, 9], [20, 0, 29, 9]]]),
        "scores": np.float32([[[0.2], [0.5]]]),
        "levels": [(1, 2, 1)],
    }
    by_class = np.float32([[[0.9], [0.6]]])
    first = Selection(per_level=1, total=1, score_threshold=0.0)
    assert ops.convert_to_numpy(first({**candidates})["source"])[0].tolist() == [1]
    assert ops.convert_to_numpy(first({**candidates, "ranking_scores": by_class})["source"])[0].tolist() == [
        0
    ]
    strict = Selection(score_threshold=0.3, total=2)
    assert ops.convert_to_numpy(strict(candidates)["valid"])[0].tolist() == [True, False]
    gated = strict({**candidates, "threshold_scores": by_class})
    assert ops.convert_to_numpy(gated["valid"])[0].tolist() == [True, True]
    two = {**candidates, "scores": np.float32([[[0.2, 0.4], [0.5, 0.3]]])}
    for most, kept in ((False, [1, 0, 1]), (True, [1, 0])):  # two cells, four pairs
        found = Selection(per_level=3, at_most_cells=most, total=3, method="none")(two)
        found = ops.convert_to_numpy(found["source"])[0]
        assert found[found >= 0].tolist() == kept
    with pytest.raises(UserError, match="one box for each cell"):
        Selection(method="peaks")({**candidates, "levels": [(1, 1, 2)]})


def test_unknown_words_are_named():
    for settings, word in [
        ({"centerness": "regression"}, "centerness"),
        ({"quality": "giou"}, "quality"),
        ({"center_of": "point"}, "center_of"),
        ({"distance": "linear"}, "distance"),
        ({"rank_by": "iou"}, "rank_by"),
    ]:
        with pytest.raises(UserError, match=rf"dense_head\.{word} .* one of"):
            FCOSHead(STRIDES, 3, **settings)
    for name in HEADS:
        with pytest.raises(UserError, match=r"dense_head\.box_loss 'huber': one of"):
            head_of(name, box_loss="huber")
        with pytest.raises(UserError, match=r"dense_head\.weights\.boxes: no such setting; .*'box'"):
            head_of(name, weights={"boxes": 2.0})
    with pytest.raises(UserError, match=r"dense_head\.low_quality_matches"):
        head_of("retinanet", low_quality_matches="detectron2")
    with pytest.raises(UserError, match="quality: null, yet there is an output"):
        FCOSHead(STRIDES, 3, quality=None)
    with pytest.raises(UserError, match="5 ranges for 4 levels"):
        FCOSHead(STRIDES[:4], 3)
    with pytest.raises(UserError, match=r"reg_max 0"):
        GFLHead(STRIDES, 3, reg_max=0)
    with pytest.raises(UserError, match="none to be deformable: raise num_convs"):
        FCOSHead(STRIDES, 3, num_convs=0, deformable=True)
    with pytest.raises(UserError, match="shared_by 0: 1 or more"):
        Selection(shared_by=0)


def test_empty_boxes_are_marked():
    """A box beside its image is empty once clipped; it takes a slot of its level, and is gone then."""
    head = head_of("fcos")
    raw = raw_fcos(head, code=0.5)  # each point's own cell
    found = head.candidates(raw, np.int32([[16, 24]]))
    kept = ops.convert_to_numpy(found["keep_after_topk"])[0]
    height, width = raw["classes"][0].shape[1:3]
    first = kept[: height * width].reshape(height, width)
    assert first[:2, :3].all() and not first[2:].any() and not first[:, 3:].any()


def test_the_predicted_quality_does_not_move_the_boxes():
    """What the output of quality is to say is the IoU of the boxes, and no reason to change them."""
    y, head = truth(images=1, objects=1, padding=0), head_of("fcos", quality="iou")
    raw = raw_fcos(head, code=0.25, centerness=2.0)

    def loss(name):
        def of_first_level(code):
            return head.losses({**raw, "code": [code, *raw["code"][1:]]}, y)[f"fcos/{name}"]

        return of_first_level

    y["boxes"][0, 0] = [16, 16, 24, 24]
    of_box, of_quality = (value_and_gradients(loss(n), raw["code"][:1])[1][0] for n in ("box", "centerness"))
    assert np.any(of_box) and (of_quality is None or not np.any(of_quality))
