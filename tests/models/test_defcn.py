"""DeFCN against the authors' code."""

import numpy as np
import pytest
from keras import ops
from scipy.optimize import linear_sum_assignment
from support.dense_goldens import labels_of, maps_of, truth_of
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.small_backbone import RESNET10

from kgarden.heads.selection import Selection
from kgarden.layers.conv import Conv
from kgarden.models import build_detector
from kgarden.models.defcn import DeFCNHead, MaxFilter, auxiliary_labels, with_first_free
from kgarden.ops.boxes import to_ltrb
from kgarden.ops.points import point_grid
from kgarden.targets.one_to_one import choose, quality


def numpy_of(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("golden", goldens("onestage_defcn_3dmf"), ids=str)
def test_max_filtering_agrees_with_the_reference(golden):
    settings = params(golden)
    pyramid = [np.float32(level) for level in golden.matching("feat_[0-9]").values()]
    assert [list(level.shape[1:3]) for level in pyramid] == settings["level_sizes"]
    kernel = golden["conv_kernel_hwio"]
    predictor = Conv(1, golden["filter_kernel_hwio"].shape[0])
    predictor.build(pyramid[0].shape)
    predictor.set_weights([golden["filter_kernel_hwio"], golden["filter_bias"]])
    got = {}
    for name, norm in (("gn", "gn"), ("nogn", None)):
        layer = MaxFilter(
            kernel.shape[-1],
            tau=settings["tau"],
            kernel_size=settings["kernel_size"],
            norm=norm,
            norm_groups=settings["gn_groups"],
        )
        layer.build(pyramid[0].shape)
        norms = [golden["gn_gamma"], golden["gn_beta"]] if norm else []
        layer.set_weights([kernel, golden["conv_bias"], *norms])
        for number, level in enumerate(layer(pyramid)):
            got[f"out_{name}_{number}"] = numpy_of(level)
            got[f"filter_{name}_{number}"] = numpy_of(predictor(level))
    assert_agrees(golden, got)


def head_of(golden, **changed):
    """The head with the file's settings."""
    s = params(golden)
    return DeFCNHead(
        s["strides"],
        s["num_classes"],
        width=8,
        norm_groups=1,
        radius=s["center_sampling_radius"],
        alpha=s["alpha"],
        auxiliary={"top_k": s["aux_topk"]},
        focal=s["focal"],
        weights={"box": s["giou_weight"]},
        **changed,
    )


def raw_of(golden, **replaced):
    """What the head would have said."""
    arrays = {name: replaced.get(name, golden[name]) for name in ("cls_logits", "filter_logits")}
    stride = np.repeat(np.float32(params(golden)["strides"]), np.prod(params(golden)["level_sizes"], axis=1))
    sizes = params(golden)["level_sizes"]
    return {
        "classes": maps_of(arrays["cls_logits"], sizes),
        "filter": maps_of(arrays["filter_logits"], sizes),
        "code": maps_of(golden["ltrb"] / stride[:, None], sizes),
    }


@pytest.mark.parametrize("golden", goldens("onestage_defcn_poto"), ids=str)
def test_poto_agrees_with_the_reference(golden):
    head, raw, y = head_of(golden, unmatched="released"), raw_of(golden), truth_of(golden)
    omega = numpy_of(head.candidate_mask(raw, y, "center"))
    good = quality(
        head.probability(raw).value(),
        head.boxes(raw),
        y["boxes"],
        gt_labels=y["labels"],
        alpha=params(golden)["alpha"],
    )
    matched, dropped = head.match(raw, y), head_of(golden).match(raw, y)

    row = numpy_of(matched.object)
    boxes = np.take_along_axis(y["boxes"], np.maximum(row, 0)[..., None], axis=1)
    ltrb = numpy_of(to_ltrb(golden["points"], boxes))
    got = {
        "omega_center": omega,
        "quality": np.where(omega, numpy_of(good), -1),
        "poto_labels": labels_of(golden, row),
        "poto_ltrb_targets": np.where(row[..., None] >= 0, ltrb, 0),
        "poto_labels_drop_outside": labels_of(golden, numpy_of(dropped.object)),
        "poto_gt_drop_outside": numpy_of(dropped.object),
    }
    many = numpy_of(head.auxiliary_labels(raw, y))
    got["aux_labels"] = np.where(many < 0, params(golden)["num_classes"], many)
    if "argmax_labels_clsonly" in golden:
        plain = head_of(golden, max_filter=None, matching="top_one")
        best = plain.match({name: raw[name] for name in ("classes", "code")}, y)
        got["argmax_labels_clsonly"] = labels_of(golden, numpy_of(best.object))

    def loss(cls_logits, filter_logits):
        asked = raw_of(golden, cls_logits=cls_logits, filter_logits=filter_logits)
        return head.losses(asked, y)["defcn/class"]

    value, gradients = value_and_gradients(loss, [golden["cls_logits"], golden["filter_logits"]])
    terms = head.losses(raw, y)
    got |= {
        "loss_cls": value,
        "grad_cls": gradients[0],
        "grad_filter": gradients[1],
        "loss_box_reg_weighted2": numpy_of(terms["defcn/box"]),
        "loss_cls_aux": numpy_of(terms["defcn/auxiliary"]),
    }

    rule = params(golden)["detections"]
    select = Selection(rule["score_thr"], rule["pre_topk_per_level"], method="none", total=rule["max_dets"])
    found = {name: numpy_of(array) for name, array in select(head.candidates(raw)).items()}
    got |= {f"det_{name}": found[name] for name in ("boxes", "scores", "labels")}
    got["num_det"] = found["valid"].sum(axis=1)
    assert_agrees(golden, got)


def test_no_more_pairs_of_a_level_go_on_than_it_has_cells():
    """As in cvpods."""
    small = {"backbone": RESNET10}
    small |= {"neck": {"channels": 32}, "dense_head": {"num_convs": 1}}
    assert build_detector({"name": "defcn", **small}, 3).selection.at_most_cells
    assert not build_detector({"name": "fcos", **small}, 3).selection.at_most_cells


def test_objects_without_a_point_go_where_scipy_sends_them():
    """The released rule: the answer of scipy where an object is allowed nowhere."""
    rng = np.random.default_rng(3)
    good = rng.uniform(0, 1, (5, 6, 20)).astype("float32")
    omega = rng.uniform(0, 1, good.shape) < 0.1
    omega[:, 1] = omega[:, 4] = False
    omega[0] = False
    valid = np.arange(6) < np.int32([6, 5, 6, 2, 0])[:, None]
    omega &= valid[..., None]
    labels = np.where(valid, np.arange(6), -1).astype("int32")
    dropped = choose(good, omega, labels)
    got = numpy_of(with_first_free(dropped, valid).object)
    sent = 0
    for image in range(5):
        count = valid[image].sum()
        expected = np.full(20, -1)
        rows, columns = linear_sum_assignment(np.where(omega, good, -1)[image, :count], maximize=True)
        expected[columns] = rows
        np.testing.assert_array_equal(got[image], expected)
        sent += (~omega[image, rows, columns]).sum()
    assert sent > 8


def test_an_image_without_objects_is_background():
    rng = np.random.default_rng(0)
    sizes = [(4, 4), (2, 2), (1, 1)]
    head = DeFCNHead([8, 16, 32], 3, width=8, norm_groups=1)
    raw = {
        "classes": [rng.normal(size=(1, *size, 3)).astype("float32") for size in sizes],
        "filter": [rng.normal(size=(1, *size, 1)).astype("float32") for size in sizes],
        "code": [rng.uniform(1, 2, size=(1, *size, 4)).astype("float32") for size in sizes],
    }
    nothing = {
        "boxes": np.zeros((1, 4, 4), "float32"),
        "labels": np.full((1, 4), -1, "int32"),
        "crowd": np.zeros((1, 4), bool),
    }
    terms = {name: float(term) for name, term in head.losses(raw, nothing).items()}
    assert terms["defcn/box"] == 0 and terms["defcn/class"] > 0 and terms["defcn/auxiliary"] > 0
    assert (numpy_of(head.auxiliary_labels(raw, nothing)) == -1).all()


def test_one_auxiliary_candidate_is_its_own_threshold_if_it_lies_inside():
    """The mean of one quality is that quality, and its deviation 0; a point on a side is outside."""
    cells = point_grid([(1, 1)], [8])  # the point (4, 4)
    for box, label in (([0, 0, 8, 8], 2), ([4, 0, 8, 8], -1), ([3.5, 0, 8, 8], 2), ([0, 0, 8, 4], -1)):
        truth = np.float32([[box]]), np.int32([[2]]), np.ones((1, 1), bool)
        labels = auxiliary_labels(np.float32([[[0.5]]]), *truth, cells)
        assert ops.convert_to_numpy(labels).tolist() == [[label]]
