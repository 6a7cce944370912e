"""Mask R-CNN: its network, targets, loss and masks against loops and numbers by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from support import reference_loops as loops
from support.gradients import value_and_gradients
from support.mask_scenes import mask_overlap, scenes
from support.small_backbone import RESNET10

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.mask_rcnn import MaskHead, targets
from kgarden.ops.roi_align import roi_align
from kgarden.targets.roi import RoISampling, sample_rois
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict, our_name

STRIDES = [4, 8]
LEVELS = [(16, 24), (8, 12)]  # of a canvas of 64 x 96


def numpy_of(x):
    return ops.convert_to_numpy(x)


def head_of(**settings):
    """A small head with weights that are far from zero."""
    head = MaskHead(STRIDES, 3, **{"width": 4, "num_convs": 1, "pool_size": 3, **settings}, name="mask_head")
    head.build([(None, None, None, 5)] * 2)
    rng = np.random.default_rng(0)
    for variable in head.weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return head


def pyramid_of(seed=0, images=2):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(images, *size, 5)).astype("float32") for size in LEVELS]


# --- the network --------------------------------------------------------------------------------------------


def slow_mask(features, weights, label):
    """One RoI's own channel: loops over cells.   (S, S, D) -> (2 S, 2 S)."""
    (conv, conv_bias), (deconv, deconv_bias), (kernel, bias) = weights
    side = len(features)
    padded = np.pad(features.astype("float64"), ((1, 1), (1, 1), (0, 0)))
    x = np.zeros((side, side, conv.shape[-1]))
    for row, column in np.ndindex(side, side):
        window = padded[row : row + 3, column : column + 3]
        x[row, column] = np.maximum(np.einsum("abd,abdo->o", window, conv) + conv_bias, 0)
    found = np.zeros((2 * side, 2 * side))
    for row, column in np.ndindex(2 * side, 2 * side):
        tap = deconv[row % 2, column % 2]  # (out, in): no two taps meet in a cell
        cell = np.maximum(tap @ x[row // 2, column // 2] + deconv_bias, 0)
        found[row, column] = cell @ kernel[0, 0, :, label] + bias[label]
    return found


def weights_of(head):
    arrays = [numpy_of(variable.value).astype("float64") for variable in head.weights]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


BOXES = np.float32([[[4, 6, 40, 50], [30.5, 2, 60, 33], [0, 0, 20, 9]], [[50, 20, 90, 60]] * 3])
LABELS = np.int32([[0, 2, 1], [1, 1, 2]])


@pytest.mark.parametrize("agnostic", [False, True])
def test_each_roi_s_own_channel_agrees_with_loops(agnostic):
    head = head_of(class_agnostic=agnostic)
    assert head.classes.channels == (1 if agnostic else 3)
    features = numpy_of(roi_align(pyramid_of(), STRIDES, BOXES, 3))
    got = numpy_of(head(pyramid_of(), BOXES, LABELS))
    assert got.shape == (2, 3, 6, 6) and got.dtype == np.float32
    for image, one in np.ndindex(2, 3):
        label = 0 if agnostic else LABELS[image, one]
        want = slow_mask(features[image, one], weights_of(head), label)
        np.testing.assert_allclose(got[image, one], want, rtol=1e-4, atol=1e-4)
    same = np.array_equal(got[1, 0], got[1, 2])  # one box, two classes
    assert same == agnostic


@pytest.mark.parametrize("classes, agnostic, count", [(80, False, 80), (20, True, 1)])
def test_as_many_weights_as_the_published_head(classes, agnostic, count):
    head = MaskHead([4, 8, 16, 32, 64], classes, class_agnostic=agnostic, roi_levels=[2, 5])
    head.build([(None, None, None, 256)] * 5)
    convs, deconv = 4 * (256 * 256 * 9 + 256), 256 * 256 * 4 + 256
    assert head.count_params() == convs + deconv + 256 * count + count
    assert head.side == 28


def test_weights_start_as_in_detectron2():
    """MSRA by fan-out, the last layer near 0: a mask begins as undecided."""
    keras.utils.set_random_seed(0)
    head = MaskHead([4], 80, width=64, num_convs=1)
    head.build([(None, None, None, 128)])
    spread = {variable.path: float(np.std(numpy_of(variable.value))) for variable in head.weights}
    (conv, _), (deconv, _), (last, _) = [list(spread.items())[n : n + 2] for n in (0, 2, 4)]
    assert conv[1] == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert deconv[1] == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.02)
    assert last[1] == pytest.approx(0.001, rel=0.05)


# --- targets ------------------------------------------------------------------------------------------------


def one_truth(bitmap, box=(20, 10, 60, 50)):
    """A picture with one object."""
    return {
        "boxes": np.float32([[box]]),
        "labels": np.int32([[1]]),
        "crowd": np.zeros((1, 1), bool),
        "masks": np.asarray(bitmap, bool)[None, None],
    }


def target_of(roi, y, side=28):
    target, known = targets(np.float32([[roi]]), np.int32([[0]]), y, side)
    assert numpy_of(known)[0, 0]
    return numpy_of(target)[0, 0]


def test_a_full_mask_under_a_roi_that_lies_half_beside_it():
    y = one_truth(np.ones((112, 112)))
    assert target_of((20, 10, 60, 50), y).all()
    to_the_right = target_of((40, 10, 80, 50), y)
    assert to_the_right[:, :14].all() and not to_the_right[:, 14:].any()
    above = target_of((20, -10, 60, 30), y)
    assert above[14:].all() and not above[:14].any()
    around = target_of((0, -10, 80, 70), y)  # twice as large: 14 cells in the middle
    assert around.sum() == 14**2 and around[7:21, 7:21].all()


def test_a_cell_is_set_from_half_of_it_on():
    """The RoI is the box, so a cell of 28 is 4 x 4 of the bitmap."""
    for rows, want in ((1, False), (2, True), (3, True)):
        bitmap = np.zeros((112, 112))
        bitmap[40 : 40 + rows] = 1
        target = target_of((20, 10, 60, 50), one_truth(bitmap))
        assert target[10].all() == want and target.sum() == 28 * want, rows


def test_targets_agree_with_loops():
    rng = np.random.default_rng(3)
    compared = 0
    for _ in range(6):
        bitmap = rng.random((10, 10)) < 0.6
        box = np.float32([20, 10, 20 + rng.uniform(5, 60), 10 + rng.uniform(5, 60)])
        roi = box + np.float32(rng.uniform(-4, 4, 4))
        share = loops.covered_area(bitmap, box, roi, 7)
        clear = abs(share - 0.5) > 1e-3
        got = target_of(roi, one_truth(bitmap, box), 7)
        np.testing.assert_array_equal(got[clear], (share >= 0.5)[clear])
        compared += clear.sum()
    assert compared > 250


def test_what_teaches_no_mask():
    y = one_truth(np.zeros((112, 112)))
    roi = np.float32([[[20, 10, 60, 50]]])
    assert not numpy_of(targets(roi, np.int32([[0]]), y, 28)[1]).any()  # an object without a mask
    y = one_truth(np.ones((112, 112)))
    assert not numpy_of(targets(roi, np.int32([[-1]]), y, 28)[1]).any()  # background


# --- the sample and the loss --------------------------------------------------------------------------------


def truth(seed=0):
    """Two pictures: three objects, the second without a mask, a crowd region, an empty row; then nothing."""
    rng = np.random.default_rng(seed)
    boxes = np.float32([[4, 5, 40, 50], [50, 20, 90, 60], [60, 2, 80, 18], [0, 0, 95, 63], [0] * 4])
    masks = rng.random((5, 112, 112)) < 0.6
    masks[1] = masks[4] = False
    return {
        "boxes": np.stack([boxes, boxes]),
        "labels": np.int32([[0, 1, 2, 0, -1], [-1] * 5]),
        "crowd": np.array([[False] * 3 + [True, False]] * 2),
        "masks": np.stack([masks, masks]),
    }


def sampled_of(y, count=16, seed=0):
    rng = np.random.default_rng(seed)
    near = np.repeat(y["boxes"][:, :3], 4, axis=1) + rng.uniform(-3, 3, (2, 12, 4))
    far = rng.uniform(0, 30, (2, 12, 2))
    boxes = np.concatenate([near, np.concatenate([far, far + 7], axis=-1)], axis=1).astype("float32")
    proposals = {"boxes": boxes, "valid": np.arange(24)[None] < np.array([[24], [20]])}
    random = rng.random((2, 64)).astype("float32")
    sampled = sample_rois(proposals, y, RoISampling(0.5, count, 0.5), lambda n: random[:, :n])
    return {key: numpy_of(value) for key, value in sampled.items()}


def test_foreground_of_the_sample_stands_first_and_knows_its_object():
    y = truth()
    sampled = sampled_of(y)
    object_ = sampled["object"]
    assert object_.shape == (2, 16) and (object_[1] == -1).all()
    assert (object_[0, :8] >= 0).all() and (object_[0, 8:] == -1).all() and sampled["valid"].all()
    assert set(object_[0, :8]) == {0, 1, 2}
    for row, own in enumerate(object_[0, :8]):
        a, b = sampled["boxes"][0, row], y["boxes"][0, own]
        width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height
        assert width * height / union >= 0.5


def slow_loss(head, pyramid, sampled, y):
    features = numpy_of(roi_align(pyramid, STRIDES, sampled["boxes"], head.pool.size))
    total = count = 0
    for image, one in np.ndindex(*sampled["object"].shape):
        own = sampled["object"][image, one]
        if own < 0 or not y["masks"][image, own].any() or one >= head.count:
            continue
        target = numpy_of(
            targets(
                sampled["boxes"][None, None, image, one],
                np.int32([[0]]),
                {key: y[key][None, None, image, own] for key in ("boxes", "masks")},
                head.side,
            )[0]
        )[0, 0]
        logits = slow_mask(features[image, one], weights_of(head), y["labels"][image, own])
        for row, column in np.ndindex(*target.shape):
            p = 1 / (1 + np.exp(-logits[row, column]))
            total += -np.log(p if target[row, column] else 1 - p)
            count += 1
    return total, count


@pytest.mark.parametrize("count", [8, 3])
def test_the_loss_agrees_with_loops(count):
    head, y = head_of(count=count, weight=0.5), truth()
    sampled = sampled_of(y)
    total, cells = slow_loss(head, pyramid_of(), sampled, y)
    masked = (sampled["object"][0, :count] != 1).sum()
    assert cells == masked * 36 and 0 < masked < count
    got = numpy_of(head.losses(pyramid_of(), sampled, y)["roi/mask"])
    np.testing.assert_allclose(got, 0.5 * total / cells, rtol=1e-4)


def test_what_must_not_matter_to_the_loss():
    head, y = head_of(count=8), truth()
    sampled, pyramid = sampled_of(y), pyramid_of()

    def loss(sampled=sampled, y=y, pyramid=pyramid):
        return float(head.losses(pyramid, sampled, y)["roi/mask"])

    first = loss()
    elsewhere = {**sampled, "boxes": sampled["boxes"].copy()}
    elsewhere["boxes"][sampled["object"] < 0] = [1, 1, 30, 40]
    assert loss(elsewhere) == first  # background
    other = {**y, "masks": y["masks"].copy()}
    other["masks"][:, 3:] = True  # of the crowd region and of padding
    assert loss(y=other) == first
    other["masks"][0, 0] ^= True
    assert loss(y=other) != pytest.approx(first, rel=1e-3)
    assert loss(pyramid=[np.concatenate([p[:1], 9 * p[1:]]) for p in pyramid]) == first  # second picture
    assert loss(y={**y, "masks": np.zeros_like(y["masks"])}) == 0.0
    assert loss({**sampled, "object": np.full_like(sampled["object"], -1)}) == 0.0


def test_gradients_reach_the_head_through_foreground_alone():
    head, y = head_of(count=8), truth()
    sampled = sampled_of(y)
    own = sampled["object"]
    own[0] = np.where(own[0] == 2, -1, own[0])  # of the first object alone; the second has no mask

    def loss(*pyramid):
        return head.losses(list(pyramid), sampled, y)["roi/mask"]

    _, gradients = value_and_gradients(loss, pyramid_of(), head.trainable_variables)
    of_pyramid, of_weights = gradients[:2], gradients[2:]
    reached = np.abs(of_pyramid[0][0]).sum(-1) > 0
    x1, y1 = sampled["boxes"][0][own[0] == 0][:, 2:].max(0)
    assert reached.any() and not of_pyramid[0][1].any()
    assert not reached[:, int(x1 / 4) + 2 :].any() and not reached[int(y1 / 4) + 2 :].any()
    last, bias = of_weights[-2:]
    assert last[..., 0].any() and not last[..., 1:].any() and not bias[1:].any()  # of the object's class
    assert all(gradient.any() for gradient in of_weights)
    none = {**sampled, "object": np.full_like(own, -1)}
    still = value_and_gradients(
        lambda *p: head.losses(list(p), none, y)["roi/mask"], pyramid_of(), head.trainable_variables
    )[1]
    assert not any(gradient.any() for gradient in still)


# --- masks of detections ------------------------------------------------------------------------------------


def test_a_detection_s_mask_is_the_head_on_that_box_alone():
    head, pyramid = head_of(), pyramid_of()
    found = {"boxes": BOXES, "labels": LABELS, "valid": np.array([[True, True, False], [True, False, True]])}
    masks = numpy_of(head.masks(pyramid, found))
    assert masks.dtype == np.float32 and not masks[~found["valid"]].any()
    for image, one in zip(*np.nonzero(found["valid"]), strict=True):
        alone = [level[image : image + 1] for level in pyramid]
        box, label = BOXES[image, None, one : one + 1], LABELS[image, None, one : one + 1]
        logits = numpy_of(head(alone, box, label))[0, 0]
        np.testing.assert_allclose(masks[image, one], 1 / (1 + np.exp(-logits)), atol=1e-5)
        assert masks[image, one].std() > 0


TINY = {
    "name": "mask_rcnn",
    "backbone": RESNET10,
    "neck": {"channels": 32},
    "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
    "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
    "roi_head": {"width": 16, "num_samples": 32},
    "mask_head": {"width": 8, "num_convs": 1, "pool_size": 7},
}
X = {
    "images": np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype="uint8"),
    "size_hw": np.int32([[60, 90], [64, 96]]),
}
FASTER = {"name": "faster", "width": 16, "num_samples": 32}
CASCADE = {"name": "cascade", "width": 16, "num_samples": 32}
DOUBLE = {"name": "double_head", "conv_head": {"blocks": 1, "width": 32, "middle": 8}, "num_samples": 32}
ON_JAX = keras.backend.backend() == "jax"  # where each compiles for half a minute
SLOW_ON_JAX = [pytest.param(one, marks=[pytest.mark.slow] * ON_JAX) for one in (CASCADE, DOUBLE)]


def built(**settings):
    keras.utils.set_random_seed(0)
    return build_detector({**TINY, **settings}, 3)


@pytest.mark.parametrize("roi_head", [FASTER, *SLOW_ON_JAX], ids=lambda settings: settings["name"])
def test_it_draws_in_the_final_boxes_of_any_roi_head(roi_head):
    detector = built(selection={"score_threshold": 0.0, "total": 6}, roi_head=roi_head)
    raw = detector(X)
    found = {key: numpy_of(value) for key, value in detector.detect(X, raw).items()}
    assert found["masks"].shape == (2, 6, 14, 14) and found["valid"].any()
    assert (found["boxes"][0] <= [90, 60, 90, 60]).all()
    again = numpy_of(detector.mask_head.masks(raw["pyramid"], found))
    np.testing.assert_allclose(again, found["masks"], atol=1e-6)
    np.testing.assert_array_equal(found["masks"].max((2, 3)) > 0, found["valid"])
    assert detector.mask_head.count == 8 and detector.loss_names[-1] == "roi/mask"


@pytest.mark.parametrize("roi_head", [pytest.param(FASTER, marks=[pytest.mark.slow] * ON_JAX), *SLOW_ON_JAX])
def test_it_learns_from_the_sample_of_any_roi_head(roi_head):
    """From the RoIs that the first box head classifies, on the whole pyramid."""
    detector = built(roi_head=roi_head)
    y = {**truth(), "image_id": np.arange(2, dtype="int32")}
    seen, sample, losses = {}, detector.roi_head.sample, detector.mask_head.losses

    def sampled(*arguments):
        seen["sampled"] = sample(*arguments)
        return seen["sampled"]

    object.__setattr__(detector.roi_head, "sample", sampled)
    raw = detector(X, training=True)
    term = detector.loss_terms(X, y, raw, True)["roi/mask"]
    assert {0, 2} <= set(numpy_of(seen["sampled"]["object"])[0]) and seen["sampled"]["boxes"].shape[1] == 32
    wanted = losses(raw["pyramid"], seen["sampled"], y)["roi/mask"]
    np.testing.assert_allclose(numpy_of(term), numpy_of(wanted), rtol=1e-5)


def test_it_is_a_slot_of_the_frame_of_two_stages():
    settings = {
        "name": "two_stage",
        **{key: TINY[key] for key in ("backbone", "neck")},
        "proposer": {"head": {"name": "centernet", "width": 32, "num_convs": 1}, "test": {"total": 20}},
        "roi_head": {"name": "faster", "width": 16, "num_samples": 32},
    }
    head = {"name": "mask_rcnn", **TINY["mask_head"]}
    detector = build_detector({**settings, "mask_head": head}, 3)
    assert detector.loss_names[-1] == "roi/mask" and detector.mask_head.count == 8
    found = {"boxes": BOXES, "labels": LABELS, "valid": np.ones((2, 3), bool)}
    pyramid = [np.ones((2, 64 >> level, 96 >> level, 32), "float32") for level in range(3, 8)]
    masks = detector.masks({"pyramid": pyramid}, found)
    assert numpy_of(masks).shape == (2, 3, 14, 14)
    for name, message in (("condinst", "'condinst': one of mask_rcnn"), (None, "None: one of mask_rcnn")):
        with pytest.raises(UserError, match=rf"model\.mask_head\.name {message}"):
            build_detector({**settings, "mask_head": {"name": name}}, 3)


def test_conventions_settle_how_roi_align_samples():
    by_convention = {
        "detectron2": dict(sampling_ratio=0, aligned=True, plus_one=False),
        "mmdetection": dict(sampling_ratio=0, aligned=True, plus_one=False),
        "torchvision": dict(sampling_ratio=2, aligned=False, plus_one=False),
        "mmdetection_1": dict(sampling_ratio=2, aligned=False, plus_one=False, least_cells=0.0),
        "maskrcnn_benchmark": dict(sampling_ratio=2, aligned=False, plus_one=True),
    }
    for convention, settings in by_convention.items():
        detector = built(convention=convention)
        assert detector.mask_head.pool.settings == {"least_cells": None, **settings, "enlarged": 1.0}
        assert detector.mask_head.pool.settings == detector.roi_head.pool.settings
    detector = built(
        convention="maskrcnn_benchmark", mask_head={"sampling_ratio": 3, "aligned": True, "plus_one": False}
    )
    assert detector.mask_head.pool.settings["sampling_ratio"] == 3
    assert detector.mask_head.pool.strides == [4, 8, 16, 32]


def test_what_does_not_fit_is_refused():
    for settings, message in (
        ({"mask_head": {"widht": 4}}, r"model\.mask_head\.widht.*'width'"),
        ({"mask_head": {"num_classes": 4}}, r"model\.mask_head\.num_classes"),
        ({"roi_head": {"name": "condinst"}}, "roi_head.name 'condinst': one of faster, cascade, double_head"),
        ({"convention": "mine"}, "convention 'mine'"),
    ):
        with pytest.raises(UserError, match=message):
            built(**settings)


@pytest.mark.tensorflow  # what JAX adds to the line is its own
def test_truth_without_masks_is_refused_in_one_line():
    detector = built()
    detector.compile(optimizer="sgd")
    y = {**{key: value for key, value in truth().items() if key != "masks"}, "image_id": np.arange(2)}
    with pytest.raises(UserError, match="^mask_head: .*no masks; set data.masks: true$"):
        detector.train_on_batch(X, y)


def test_masks_and_loss_stay_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = head_of()
    finally:
        keras.config.set_dtype_policy(before)
    y, wide = truth(), 1000 * np.float32([1, 0, 1, 0])  # bfloat16 knows 1000 and 1004
    pyramid = [ops.cast(np.tile(level, (1, 1, 12, 1)), "bfloat16") for level in pyramid_of()]
    found = {"boxes": BOXES + wide, "labels": LABELS, "valid": np.ones((2, 3), bool)}
    masks, loss = head.masks(pyramid, found), head.losses(pyramid, sampled_of(y), y)["roi/mask"]
    assert all(keras.backend.standardize_dtype(one.dtype) == "float32" for one in (masks, loss))
    assert {layer.compute_dtype for layer in (*head.convs, head.deconv, head.classes)} == {"bfloat16"}
    exact = numpy_of(head_of().masks([ops.cast(level, "float32") for level in pyramid], found))
    np.testing.assert_allclose(numpy_of(masks), exact, atol=0.03)


# --- weights and recipes ------------------------------------------------------------------------------------

NAMES_OF_DETECTRON2 = {  # second stage of Mask R-CNN on a pyramid, without its layers' leaves
    "roi_heads.box_head.fc1": "roi_head/box_head/features/fc1",
    "roi_heads.box_head.fc2": "roi_head/box_head/features/fc2",
    "roi_heads.box_predictor.cls_score": "roi_head/box_head/classes",
    "roi_heads.box_predictor.bbox_pred": "roi_head/box_head/boxes",
    "roi_heads.mask_head.mask_fcn1": "mask_head/conv1",
    "roi_heads.mask_head.mask_fcn4": "mask_head/conv4",
    "roi_heads.mask_head.deconv": "mask_head/deconv",
    "roi_heads.mask_head.predictor": "mask_head/classes",
}


def test_names_of_detectron2_lead_to_layers_that_are_there():
    detector = built(mask_head={"num_convs": 4, "width": 8})
    there = {variable.path.split("/", 1)[1] for variable in detector.weights}
    for theirs, ours in NAMES_OF_DETECTRON2.items():
        for suffix, leaf in (("weight", "kernel"), ("bias", "bias")):
            name = our_name(f"{theirs}.{suffix}", TABLE)
            assert f"{ours}/{leaf}" in there and ours.endswith(name.removesuffix(f".{suffix}")), theirs


def test_weights_in_the_layout_of_pytorch_draw_the_same():
    """Convolutions (out, in, y, x), the deconvolution (in, out, y, x)."""
    head, other = head_of(), head_of()
    names = ["mask_fcn1", "deconv", "predictor"]
    state = {}
    for name, (kernel, bias) in zip(names, weights_of(head), strict=True):
        state |= {f"{name}.weight": kernel.transpose(3, 2, 0, 1), f"{name}.bias": bias}
    assert state["deconv.weight"].shape == (4, 4, 2, 2) and state["predictor.weight"].shape == (3, 4, 1, 1)
    for variable in other.weights:
        variable.assign(np.zeros(variable.shape))
    load_state_dict(other, state, TABLE, prefix="roi_heads.mask_head.")
    np.testing.assert_array_equal(
        numpy_of(head(pyramid_of(), BOXES, LABELS)), numpy_of(other(pyramid_of(), BOXES, LABELS))
    )


def test_rows_of_the_recipe_build_what_they_say():
    rows = load_recipe("mask_rcnn").rows
    assert len(rows) == 8
    for row in rows:
        small = {f"model.{key}": TINY[key] for key in ("backbone", "neck")}
        recipe = load_recipe("mask_rcnn", row=row, overrides=small)
        assert recipe.data.masks and recipe.model.model_extra["convention"] == row.split(".")[0]
        kind = type(build_detector(recipe.model.model_dump(exclude={"num_classes"}), 3).roi_head).__name__
        assert kind == ("CascadeHead" if "cascade" in row else "FasterHead")


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_pictures_by_heart():
    """Every object with its mask."""
    keras.utils.set_random_seed(0)
    settings = {
        **TINY,
        "backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 16, "res2_channels": 16},
        "rpn": {"sizes": [[16], [32], [48], [64], [96]], "num_samples": 64},
        "roi_head": {"width": 64, "num_samples": 32, "positive_fraction": 0.5},
        "mask_head": {"width": 32, "num_convs": 2},
        "selection": {"total": 20},
    }
    detector = build_detector(settings, 2)
    detector.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=ON_JAX)
    x, y = scenes()
    for _ in range(200):
        logs = detector.train_on_batch(x, y, return_dict=True)
    overlaps, answers = mask_overlap(detector, x, y)
    print(logs, overlaps, answers)
    assert overlaps.min() > 0.8 and overlaps.mean() > 0.9
    assert answers <= len(overlaps) + 2


def test_norms_of_the_head_see_the_batch_in_training_alone():
    head, y = head_of(norm="bn"), {"boxes": BOXES, "labels": LABELS}
    y["masks"] = np.ones((2, 3, 8, 8), bool)
    sampled = {"boxes": BOXES, "object": np.int32([[0, 1, 2]] * 2)}
    mean = head.convs[0].norm.moving_mean
    before = numpy_of(mean).copy()
    detections = {"boxes": BOXES, "labels": LABELS, "valid": np.ones((2, 3), bool)}
    head.masks(pyramid_of(), detections)
    np.testing.assert_array_equal(numpy_of(mean), before)
    head.losses(pyramid_of(), sampled, y)
    assert np.abs(numpy_of(mean) - before).min() > 0
