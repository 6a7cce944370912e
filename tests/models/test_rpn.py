"""RPN against detectron2's, and by hand."""

import numpy as np
import pytest
from keras import ops
from support.dense_goldens import maps_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.models.rpn import CONVENTIONS, OF_EACH_LEVEL, RPNHead, ranking, sums_of_losses
from kgarden.ops import boxes as box_ops
from kgarden.ops.matcher import sample
from kgarden.ops.random import hash_uniform

numpy = ops.convert_to_numpy


def head_of(s, **settings):
    """The head of a file."""
    anchors = s["anchors"]
    assert anchors["order"].startswith("y, x, anchor; anchor index size-major")
    head = RPNHead(
        anchors["strides"],
        sizes=anchors["sizes"],
        ratios=anchors["ratios"],
        anchor_offset=anchors["offset"],
        **settings,
    )
    assert s["coder"]["weights"] == [1, 1, 1, 1] and s["coder"]["scale_clamp"] == box_ops.SCALE_CLAMP
    return head


def raw_of(s, head, logits, deltas):
    sizes = s["feature_hw"]
    return {"classes": maps_of(logits, sizes, head.anchors), "code": maps_of(deltas, sizes, head.anchors)}


@pytest.mark.parametrize("golden", goldens("d2_rpn_losses"), ids=str)
def test_losses_agree_with_detectron2(golden):
    s = params(golden)
    head = head_of(s)
    arrays = [golden["logits"], golden["deltas"]]
    anchors = head.anchors_of(raw_of(s, head, *arrays)).boxes
    np.testing.assert_allclose(anchors, golden["anchors"], atol=1e-3)
    normalizer = s["batch_size_per_image"] * len(golden["logits"])
    assert normalizer == s["normaliser_value"]

    def losses(logits, deltas, beta):
        kind = golden["gt_labels"].astype("int32")
        sums = sums_of_losses(
            logits, deltas, kind, anchors=anchors, gt_boxes=golden["matched_gt_boxes"], box_beta=beta
        )
        return [total / normalizer for total in sums]

    got = {}
    for name, beta in s["loc_betas"].items():
        objectness, box = losses(*arrays, beta)
        got |= {name: numpy(box), "loss_rpn_cls": numpy(objectness)}

    def loss(logits, deltas):
        objectness, box = losses(logits, deltas, s["loc_betas"]["loss_rpn_loc"])
        return objectness + 2 * box

    got["grad_logits"], got["grad_deltas"] = value_and_gradients(loss, arrays)[1]
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("d2_rpn_losses"), ids=str)
def test_the_head_learns_from_what_it_draws(golden):
    """All anchors are drawn here: which of them the reference drew by chance cannot be repeated."""
    s = params(golden)
    count = golden["logits"].shape[1]
    head = head_of(s, num_samples=2 * count, normalizer="sampled")
    images = [golden[f"gt_boxes_im{image}"] for image in range(len(golden["logits"]))]
    rows = max(map(len, images)) + 1
    y = {
        "boxes": np.stack([np.pad(boxes, ((0, rows - len(boxes)), (0, 0))) for boxes in images]),
        "labels": np.stack([np.where(np.arange(rows) < len(boxes), 0, -1) for boxes in images]).astype(
            "int32"
        ),
        "crowd": np.zeros((len(images), rows), bool),
        "image_id": np.arange(len(images)),
    }
    raw = raw_of(s, head, golden["logits"], golden["deltas"])
    matched = numpy(head.assign(raw, y))
    drawn_by_reference = golden["gt_labels"]
    assert (matched[drawn_by_reference == 1] >= 0).all() and (matched[drawn_by_reference == 0] == -1).all()
    at = np.take_along_axis(y["boxes"], np.maximum(matched, 0)[..., None], axis=1)
    positive = drawn_by_reference == 1
    np.testing.assert_allclose(at[positive], golden["matched_gt_boxes"][positive])

    kind = np.where(matched >= 0, 1, np.where(matched == -1, 0, -1))
    sums = sums_of_losses(golden["logits"], golden["deltas"], kind, anchors=golden["anchors"], gt_boxes=at)
    terms = head.losses(raw, y, step=3)
    for term, total in zip(terms.values(), sums, strict=True):
        np.testing.assert_allclose(numpy(term), numpy(total) / (kind >= 0).sum(), rtol=1e-4)


@pytest.mark.parametrize("golden", goldens("d2_rpn_proposals"), ids=str)
def test_proposals_agree_with_detectron2(golden):
    s = params(golden)
    head = head_of(s)
    assert s["min_box_size"] == 0
    selection = Selection(
        **{
            **OF_EACH_LEVEL,
            "iou": s["nms_thresh"],
            "per_level": s["pre_nms_topk"],
            "total": s["post_nms_topk"],
        }
    )
    raw = raw_of(s, head, golden["logits"], golden["deltas"])
    np.testing.assert_allclose(head.anchors_of(raw).boxes, golden["anchors"], atol=1e-3)
    found = {
        key: numpy(value) for key, value in selection(head.candidates(raw, golden["image_sizes"])).items()
    }
    got = {}
    for image, logits in enumerate(golden["logits"]):
        kept = found["valid"][image]
        got[f"proposals_im{image}"] = found["boxes"][image][kept]
        got[f"logits_im{image}"] = logits[found["source"][image][kept]]
    assert_agrees(golden, got)


SQUARE = {"strides": [8], "sizes": [[16]], "ratios": [1.0], "anchor_offset": 0.5}  # 2x3 cells below


def small(boxes, image_id=(0,), **settings):
    head = RPNHead(**SQUARE, **settings)
    raw = {"classes": [np.zeros((len(image_id), 2, 3, 1), "float32")]}
    raw["code"] = [np.zeros((len(image_id), 2, 3, 4), "float32")]
    boxes = np.tile(np.float32(boxes)[None], (len(image_id), 1, 1))
    y = {
        "boxes": boxes,
        "labels": np.zeros(boxes.shape[:2], "int32"),
        "crowd": np.zeros(boxes.shape[:2], bool),
        "image_id": np.array(image_id),
        "size_hw": np.tile(np.int32([[16, 24]]), (len(image_id), 1)),
    }
    return head, raw, y


def test_terms_by_hand():
    # Anchors of 16 px around (4, 4), (12, 4), (20, 4), (4, 12), ...: the object is the second.
    head, raw, y = small([[4, -4, 20, 12]], num_samples=4)
    assert numpy(head.assign(raw, y)).tolist() == [[-2, 0, -2, -1, -2, -1]]  # IoU 1/3 beside and below
    terms = {name: float(term) for name, term in head.losses(raw, y).items()}
    np.testing.assert_allclose(terms["rpn/objectness"], 3 * np.log(2) / 4)  # three drawn, four slots
    assert terms["rpn/box"] == 0
    head, raw, y = small([[4, -4, 20, 12]], num_samples=4, normalizer="sampled")
    np.testing.assert_allclose(float(head.losses(raw, y)["rpn/objectness"]), np.log(2), rtol=1e-6)
    raw["code"][0][:, 0, 1] = [0.5, 0, 0, 0]
    np.testing.assert_allclose(float(head.losses(raw, y)["rpn/box"]), 0.5 / 3, rtol=1e-6)
    head.box_beta = 1.0
    np.testing.assert_allclose(float(head.losses(raw, y)["rpn/box"]), 0.125 / 3, rtol=1e-6)


def test_the_draw_depends_on_seed_step_and_picture_alone():
    def term(seed=0, step=5, image_id=(7,)):
        head, raw, y = small([[4, -4, 20, 12]], image_id, num_samples=2, seed=seed)
        raw["classes"][0][0, :, :, 0] = [[0, 1, 2], [3, 4, 5]]
        return float(head.losses(raw, y, step=step)["rpn/objectness"])

    assert term() == term()
    # One of two background anchors is drawn: twenty draws alike would be no chance.
    for name, values in (("seed", range(20)), ("step", range(20)), ("image_id", [(n,) for n in range(20)])):
        assert len({term(**{name: value}) for value in values}) > 1, name
    alone, other = term(image_id=(7,)), term(image_id=(8,))
    head, raw, y = small([[4, -4, 20, 12]], (7, 8), num_samples=2)
    raw["classes"][0][:, :, :, 0] = [[0, 1, 2], [3, 4, 5]]
    together = float(head.losses(raw, y, step=5)["rpn/objectness"])
    np.testing.assert_allclose(together, (alone + other) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("size_hw", "straddle", "inside"),
    [
        ((100, 100), 0.0, [4, 5]),  # the first row and column begin at -4
        ((100, 21), 0.0, [4]),  # the last column ends at 28, the one before at 20
        ((100, 20), 0.0, []),
        ((21, 100), 0.0, [4, 5]),  # the second row ends at 20
        ((20, 100), 0.0, []),
        ((100, 100), 4.0, [0, 1, 2, 3, 4, 5]),
        ((100, 24), 4.0, [0, 1, 3, 4]),
        ((16, 100), 4.0, [0, 1, 2]),
        ((1, 1), None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_anchors_that_straddle_the_border_are_left_out(size_hw, straddle, inside):
    head, raw, y = small([[0, 0, 0, 0]], straddle=straddle)
    y |= {"labels": np.full((1, 1), -1, "int32"), "size_hw": np.int32([size_hw])}
    matched = numpy(head.assign(raw, y))[0]
    assert np.flatnonzero(matched != -2).tolist() == inside


@pytest.mark.parametrize(
    ("size_hw", "pad_divisor", "inside"),
    [
        ((5, 16), 16, [0, 1, 3, 4]),  # padded to 16 x 16, the third column begins at 16
        ((5, 17), 16, [0, 1, 2, 3, 4, 5]),
        ((8, 9), 8, [0, 1]),
        ((1, 1), None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_anchors_beyond_the_padding_of_their_image_are_left_out(size_hw, pad_divisor, inside):
    head, raw, y = small([[0, 0, 0, 0]], pad_divisor=pad_divisor)
    y |= {"labels": np.full((1, 1), -1, "int32"), "size_hw": np.int32([size_hw])}
    assert np.flatnonzero(numpy(head.assign(raw, y))[0] != -2).tolist() == inside


@pytest.mark.parametrize(("match_discarded", "matched"), [(True, [-2, -1]), (False, [0, -1])])
def test_an_object_may_choose_an_anchor_that_is_discarded(match_discarded, matched):
    """Its best anchor, of IoU 3/4, begins above the image; that of IoU 2/5 does not."""
    head, raw, y = small([[4, 0, 20, 12]], straddle=0.0, match_discarded=match_discarded)
    y["size_hw"] = np.int32([[100, 100]])
    assert numpy(head.assign(raw, y))[0].tolist() == [-2, -2, -2, -2, *matched]


def test_boxes_of_one_level_do_not_suppress_those_of_another():
    same = np.float32([[[0, 0, 10, 10], [0, 0, 10, 9.9], [0, 0, 10, 10]]])
    candidates = {"boxes": same, "scores": np.float32([[[0.9], [0.8], [0.7]]]), "levels": [(1, 2), (1, 1)]}
    found = Selection(**OF_EACH_LEVEL, total=3)(candidates)
    assert numpy(found["source"]).tolist() == [[0, 2, -1]]
    across = Selection(**{**OF_EACH_LEVEL, "level_wise": False}, total=3)(candidates)
    assert numpy(across["source"]).tolist() == [[0, -1, -1]]


def test_an_empty_box_takes_its_slot():
    boxes = np.float32([[[5, 5, 5, 9], [0, 0, 10, 9], [20, 0, 30, 10]]])
    candidates = {
        "boxes": boxes,
        "scores": np.float32([[[0.9], [0.8], [0.7]]]),
        "keep_after_topk": box_ops.nonempty(boxes),
        "levels": [(1, 3)],
    }
    found = Selection(**OF_EACH_LEVEL, per_level=2, total=2)(candidates)
    assert numpy(found["source"]).tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "shared_by, kept",
    [
        (1, [[0, 1], [0, 1], [0, 1]]),
        (2, [[0, -1], [0, -1], [0, 1]]),  # of .9 .5 | .8 .7 the best two; the third image is alone
        (3, [[0, -1], [0, -1], [-1, -1]]),
    ],
)
def test_images_of_a_device_share_their_proposals(shared_by, kept):
    """maskrcnn-benchmark's FPN_POST_NMS_PER_BATCH: a top-k over the scores of all images of the batch."""
    boxes = np.float32([[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]] * 3)
    scores = np.float32([[0.9, 0.5, 0.4], [0.8, 0.7, 0.6], [0.3, 0.2, 0.1]])[..., None]
    found = Selection(**OF_EACH_LEVEL, total=2, shared_by=shared_by)({"boxes": boxes, "scores": scores})
    assert numpy(found["source"]).tolist() == kept
    assert numpy(found["valid"]).tolist() == [[row >= 0 for row in image] for image in kept]
    assert (numpy(found["boxes"])[~numpy(found["valid"])] == 0).all()


def test_ranks_keep_the_order_of_large_logits():
    logits = np.float32([-1e4, -50, -1, -0.01, 0, 0.01, 1, 50, 51, 1e4])
    ranks = numpy(ranking(logits))
    assert (np.diff(ranks) > 0).all() and (ranks > 0).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_are_settings_of_the_head(convention):
    head = RPNHead([4, 8, 16, 32, 64], **CONVENTIONS[convention])
    assert head.anchors == 3
    if convention == "torchvision":  # as its RegionProposalNetwork has them
        assert head.anchor_settings["form"] == "torchvision" and not head.anchor_settings["size_major"]
        assert (head.normalizer, head.box_beta, head.straddle) == ("sampled", 1 / 9, None)
    # Parameters at 256 channels, as published: 3x3 convolution, 3 logits and 12 deltas.
    head.build([(None, None, None, 256)] * 5)
    assert head.count_params() == 593_935


def test_mistakes_are_named():
    with pytest.raises(UserError, match="knows no classes"):
        RPNHead([8], num_classes=3)
    with pytest.raises(UserError, match="one of equal length for each"):
        RPNHead([4, 8])
    with pytest.raises(UserError, match="rpn.low_quality_matches"):
        RPNHead([8], sizes=[[16]], low_quality_matches="maybe")


def test_the_draw_is_not_that_of_the_second_stage():
    """The same seed, step and image give other numbers there: the two samples are independent."""
    same = []
    for step in range(12):
        head, raw, y = small([[4, -4, 20, 12]], num_samples=2)
        raw["classes"][0][0, :, :, 0] = [[0, 1, 2], [3, 4, 5]]
        drawn = float(head.losses(raw, y, step=step)["rpn/objectness"])
        random = hash_uniform(0, step, y["image_id"], 6)
        kind = np.int32([[-1, 1, -1, 0, -1, 0]])  # as in `test_terms_by_hand`
        rows, _, _ = sample(kind, 2, 0.5, random)
        logits = numpy(rows)[0].astype("float64")
        expected = np.log1p(np.exp(logits)) - logits * (logits == 1)
        same.append(drawn == pytest.approx(expected.sum() / 2))
    assert any(same) and not all(same)
