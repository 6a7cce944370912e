"""RetinaNet's assignment, losses and detections against mmdetection and detectron2."""

import numpy as np
import pytest
from keras import ops
from support.dense_goldens import labels_of, maps_of, raw_of, truth_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.heads.selection import Selection
from kgarden.models.retinanet import RetinaNetHead
from kgarden.ops.boxes import encode_deltas, iou
from kgarden.structures import truth_is_valid
from kgarden.targets.max_iou import MaxIoU, assign

PYRAMID = [(None, None, None, 8)]


@pytest.mark.parametrize("golden", goldens("onestage_retina"), ids=str)
def test_losses_agree_with_mmdetection(golden):
    s = params(golden)
    head = RetinaNetHead(
        s["strides"],
        s["num_classes"],
        anchor_scale=s["anchors"]["octave_base_scale"],
        octaves=s["anchors"]["scales_per_octave"],
        ratios=s["anchors"]["ratios"],
        thresholds=(s["neg_iou_thr"], s["pos_iou_thr"]),
        low_quality_matches="all" if s["match_low_quality"] else None,
        deviations=s["stds"],
        weights={"box": s["l1_weight"]},
        **s["focal"],
    )
    assert s["min_pos_iou"] == 0
    y, raw = truth_of(golden), raw_of(golden, "reg_deltas", head.anchors)
    anchors = head.anchors_of(raw)
    np.testing.assert_allclose(anchors.boxes, golden["anchors"], atol=1e-3)
    matched, boxes, _ = (ops.convert_to_numpy(part) for part in head.truth(raw, y))
    positive = matched >= 0
    deltas = encode_deltas(ops.convert_to_tensor(anchors.boxes), boxes, head.delta_weights)
    terms = head.losses(raw, y)
    got = {
        "assigned": np.where(matched == -2, -1, matched + 1),
        "delta_targets": np.where(positive[..., None], ops.convert_to_numpy(deltas), 0),
        "loss_cls": ops.convert_to_numpy(terms["retinanet/class"]),
        "loss_l1": ops.convert_to_numpy(terms["retinanet/box"]),
        "num_pos": positive.sum(),
        "avg_factor": np.maximum(positive.sum(axis=1), 1).sum(),
    }
    assert_agrees(golden, got)


def detectron2_head(s, **changed):
    """The head of a file of detectron2."""
    anchors, strides = s["anchors"], s["strides"] if "strides" in s else s["anchors"]["strides"]
    octaves = len(anchors["sizes"][0])
    coder = s["coder"]
    head = RetinaNetHead(
        strides,
        s["num_classes"],
        anchor_scale=anchors["sizes"][0][0] / strides[0],
        octaves=octaves,
        ratios=anchors["ratios"],
        anchor_order="size",
        anchor_offset=anchors["offset"],
        deviations=[1 / weight for weight in coder["weights"]],
        clip=False,
        **changed,
    )
    np.testing.assert_allclose(head.anchor_settings["sizes"], anchors["sizes"], rtol=1e-5)
    return head


@pytest.mark.parametrize("golden", goldens("d2_retinanet_losses"), ids=str)
def test_two_steps_agree_with_detectron2(golden):
    s = params(golden)
    images = len(golden["logits"])
    assert s["matcher"]["labels"] == [0, -1, 1] and s["matcher"]["low_quality"]
    head = detectron2_head(
        s,
        thresholds=s["matcher"]["thresholds"],
        low_quality_matches="own",
        normalizer="ema",
        ema_momentum=s["ema_momentum"],
        ema_start=s["ema_init"] / images,
        box_beta=s["smooth_l1_beta"],
        alpha=s["alpha"],
        gamma=s["gamma"],
        width=8,
        num_convs=1,
    )
    head.build(PYRAMID * len(s["strides"]))
    y = truth_of_images(golden, images)

    def raw(logits, deltas):
        sizes = s["feature_hw"]
        return {
            "classes": maps_of(logits, sizes, head.anchors),
            "code": maps_of(deltas, sizes, head.anchors),
        }

    arrays = [golden["logits"], golden["deltas"]]
    np.testing.assert_allclose(head.anchors_of(raw(*arrays)).boxes, golden["anchors"], atol=1e-3)
    overlap = iou(y["boxes"], golden["anchors"])
    matched = ops.convert_to_numpy(assign(overlap, truth_is_valid(y), head.rule)[0])
    real = np.where(truth_is_valid(y)[..., None], overlap, -1)
    best = np.argmax(real, axis=1)
    positive = matched >= 0
    at_best = np.take_along_axis(y["boxes"], best[..., None], axis=1)
    labels = np.take_along_axis(y["labels"], best, axis=1)
    got = {
        "gt_labels": np.where(positive, labels, np.where(matched == -2, -1, s["num_classes"])),
        "matched_gt_boxes": np.where((y["labels"] >= 0).any(axis=1)[:, None, None], at_best, 0),
    }

    head.losses(raw(*arrays), y)  # evaluation remembers nothing
    for step in (1, 2):
        for _ in range(2):  # a step in two parts counts once
            terms = head.losses(raw(*arrays), y, step=step)
        got[f"loss_cls_step{step}"] = ops.convert_to_numpy(terms["retinanet/class"])
        got[f"loss_box_reg_step{step}"] = ops.convert_to_numpy(terms["retinanet/box"])
        got[f"normalizer_step{step}"] = ops.convert_to_numpy(head.average) * images
        if step == 1:
            got |= gradients_of(head, raw, arrays, y=y, positive=positive)
    assert_agrees(golden, got)


def gradients_of(head, raw, arrays, y, positive):
    """Of the first step's loss, whose normaliser is the average by now."""

    def loss(*at):
        terms = head.losses(raw(*at), y)
        return terms["retinanet/class"] + 2 * terms["retinanet/box"]

    _, (of_logits, of_deltas) = value_and_gradients(loss, arrays)
    moved = np.abs(of_deltas).sum(axis=-1) > 0
    assert (moved <= positive).all()
    return {
        "grad_logits_im0": of_logits[0],
        "grad_deltas_nonzero": of_deltas[moved],
        "grad_deltas_nonzero_index": np.argwhere(moved),
    }


def truth_of_images(golden, images):
    """Ground truth stored image by image, padded."""
    count = max(1, *(len(golden[f"gt_boxes_im{n}"]) for n in range(images)))
    y = {
        "boxes": np.zeros((images, count, 4), "float32"),
        "labels": np.full((images, count), -1, "int32"),
        "crowd": np.zeros((images, count), bool),
    }
    for n in range(images):
        boxes = golden[f"gt_boxes_im{n}"]
        y["boxes"][n, : len(boxes)] = boxes
        y["labels"][n, : len(boxes)] = golden[f"gt_classes_im{n}"]
    return y


@pytest.mark.parametrize("golden", goldens("d2_retinanet_inference"), ids=str)
def test_detections_agree_with_detectron2(golden):
    s = params(golden)
    head = detectron2_head(s)
    counts = np.cumsum([0, *level_counts(golden, head)])
    raw = {
        key: [
            array[:, start:stop].reshape(len(array), -1, 1, head.anchors * array.shape[-1])
            for start, stop in zip(counts[:-1], counts[1:], strict=True)
        ]
        for key, array in (("classes", golden["logits"]), ("code", golden["deltas"]))
    }
    # The file gives anchors and no sizes of levels: a level of one column has as many places.
    head.anchors_of = lambda _: FileAnchors(golden["anchors"])
    selection = Selection(
        score_threshold=s["score_thresh"],
        per_level=s["topk_per_level"],
        iou=s["nms_thresh"],
        total=s["max_detections"],
    )
    size_hw = np.int32(s["image_sizes"])
    found = {key: ops.convert_to_numpy(v) for key, v in selection(head.candidates(raw, size_hw)).items()}
    got = {}
    for image, valid in enumerate(found["valid"]):
        got[f"boxes_im{image}"] = found["boxes"][image][valid]
        got[f"scores_im{image}"] = found["scores"][image][valid]
        got[f"classes_im{image}"] = found["labels"][image][valid]
    assert_agrees(golden, got)


class FileAnchors:
    def __init__(self, boxes):
        self.boxes = boxes


def level_counts(golden, head):
    """How many anchors each level has: the first one of a level is its largest template's."""
    sides = np.sqrt(np.prod(golden["anchors"][:, 2:] - golden["anchors"][:, :2], axis=1))
    sizes = head.anchor_settings["sizes"]
    counts = [np.isclose(sides[:, None], of_level, rtol=1e-4).any(axis=1).sum() for of_level in sizes]
    assert sum(counts) == len(sides)
    return counts


def test_low_quality_matches():
    # Anchors overlap two objects by 0.3 and 0.2 at most: nobody reaches a threshold.
    overlap = np.float32([[[0.3, 0.1, 0.0], [0.25, 0.2, 0.0], [0.0, 0.0, 0.0]]])
    valid = np.array([[True, True, False]])

    def rule(kind, above=0.0):
        return MaxIoU(0.5, 0.4, low_quality_matches=kind, low_quality_above=above)

    def matched(kind):
        return ops.convert_to_numpy(assign(overlap, valid, rule(kind))[0])[0].tolist()

    assert matched(None) == [-1, -1, -1]
    assert matched("own") == [0, -1, -1]
    assert matched("all") == [1, -1, -1]
    # An object that touches nothing takes nothing.
    untouched = np.zeros((1, 1, 3), "float32")
    for above, expected in ((0.0, [-1, -1, -1]), (None, [0, 0, 0])):  # None: literally as detectron2
        found = assign(untouched, np.array([[True]]), rule("all", above))[0]
        assert ops.convert_to_numpy(found)[0].tolist() == expected
    # Between the thresholds nothing is learned.
    between = assign(np.float32([[[0.45, 0.39, 0.5]]]), np.array([[True]]), rule(None))[0]
    assert ops.convert_to_numpy(between)[0].tolist() == [-2, -1, 0]


def test_labels_of_files_are_not_empty():
    golden = goldens("onestage_retina")[0]
    assert (labels_of(golden, golden["assigned"] - 1) < params(golden)["num_classes"]).any()


def test_the_average_of_positives_counts_each_step_once_and_an_empty_batch_as_one():
    head = RetinaNetHead([8], 2, width=8, num_convs=0, normalizer="ema")
    head.build([(None, None, None, 8)])
    raw = head([np.zeros((2, 4, 4, 8), "float32")])
    y = {"boxes": np.zeros((2, 1, 4), "float32"), "labels": np.full((2, 1), -1, "int32")}
    y["crowd"] = np.zeros((2, 1), bool)
    once = 0.9 * 50 + 0.1 * (1 / 2)  # one positive in a batch of two images
    for step, average in ((0, once), (0, once), (1, 0.9 * once + 0.05), (None, 0.9 * once + 0.05)):
        head.losses(raw, y, step=step)
        assert float(head.average.value) == pytest.approx(average, rel=1e-6)


def test_an_object_that_no_anchor_overlaps():
    """detectron2 gives it all of them, as its best: each has an IoU of 0; mmdetection none."""
    y = {"boxes": np.float32([[[900, 900, 910, 910]]]), "labels": np.int32([[0]])}
    y["crowd"] = np.zeros((1, 1), bool)
    raw = {"classes": [np.zeros((1, 2, 2, 18), "float32")]}
    for rule, row in (("own", 0), ("all", -1)):
        head = RetinaNetHead([8], 2, low_quality_matches=rule)
        assert set(ops.convert_to_numpy(head.assign(raw, y)).ravel().tolist()) == {row}
