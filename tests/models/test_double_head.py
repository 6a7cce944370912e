"""Double-Head R-CNN: blocks against mmdetection's and the authors', counts and sums against the paper's."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.errors import UserError
from kgarden.heads.conv_head import ConvHead
from kgarden.losses.roi import smooth_l1, softmax_class_loss
from kgarden.models.double_head import (
    CONFIGURATIONS,
    FIG_8,
    Branch,
    DoubleHead,
    fuse,
    loss_weights,
    names_of,
)
from kgarden.weights.state_dict import load_state_dict

numpy = ops.convert_to_numpy
MMDETECTION = [
    (r"(?:res_block|up)\.(conv[12])\.conv", r"up/\1"),
    (r"(?:res_block|up)\.(conv[12])\.bn", r"up/\1/norm"),
    (r"(?:res_block|up)\.conv_identity\.conv", "up/shortcut"),
    (r"(?:res_block|up)\.conv_identity\.bn", "up/shortcut/norm"),
    *[
        entry
        for number in range(8)
        for entry in (
            (rf"(?:conv_branch|blocks)\.{number}\.conv(\d)", rf"block{number + 1}/conv\1"),
            (rf"(?:conv_branch|blocks)\.{number}\.bn(\d)", rf"block{number + 1}/conv\1/norm"),
            (rf"blocks\.{number}\.(g|theta|phi)\.conv", rf"block{number + 1}/\1"),
            (rf"blocks\.{number}\.conv_out\.conv", f"block{number + 1}/out"),
            (rf"blocks\.{number}\.conv_out\.bn", f"block{number + 1}/out/norm"),
        )
    ],
    (r"fc_branch\.0", "features/fc1"),
    (r"fc_branch\.1", "features/fc2"),
    (r"fc_cls", "classes"),
    (r"fc_reg", "boxes"),
]
AUTHORS_BOTTLENECK = {0: "conv1", 1: "conv1/norm", 3: "conv2", 4: "conv2/norm", 6: "conv3", 7: "conv3/norm"}
AUTHORS = [
    (r"up\.top\.0", "up/shortcut"),
    (r"up\.top\.1", "up/shortcut/norm"),
    (r"up\.bottom\.0", "up/conv1"),
    (r"up\.bottom\.1", "up/conv1/norm"),
    (r"up\.bottom\.3", "up/conv2"),
    (r"up\.bottom\.4", "up/conv2/norm"),
    *[
        entry
        for number in range(8)
        for entry in (
            (rf"blocks\.{number}\.(g|theta|phi)", rf"block{2 * number + 1}/\1"),
            (rf"blocks\.{number}\.W\.0", f"block{2 * number + 1}/out"),
            (rf"blocks\.{number}\.W\.bn", f"block{2 * number + 1}/out/norm"),
            *[
                (rf"blocks\.{number}\.ffconv\.bottleneck\.{place}", f"block{2 * number + 2}/{ours}")
                for place, ours in AUTHORS_BOTTLENECK.items()
            ],
        )
    ],
]


def head_of(golden, blocks, non_local, width, middle, table, name="features"):
    head = ConvHead(blocks, non_local, width, middle, name=name)
    head.build((None, None, *golden["x"].shape[1:]))
    load_state_dict(head, golden.state_dict(), table)
    return head


def steps(head, x):
    """Output of every block, stored statistics."""
    found = [head.raise_(x)]
    for block in head.blocks:
        found.append(block(found[-1]))
    return [numpy(one) for one in found]


@pytest.mark.parametrize("golden", goldens("mmdet_double_head"), ids=str)
def test_both_heads_agree_with_mmdetection(golden):
    s = params(golden)
    assert not s["reg_class_agnostic"] and s["bn_eps"] == 1e-5
    size, classes = s["roi_feat_size"], s["num_classes"]
    conv_head = {
        "blocks": 1 + s["num_convs"],
        "non_local": False,
        "width": s["conv_out_channels"],
        "middle": s["bottleneck_planes"],
    }
    fc_head = {"width": s["fc_out_channels"], "num_fcs": s["num_fcs"]}
    conv = Branch("conv", conv_head, classes, classifies=False, regresses=True, name="conv")
    fc = Branch("fc", fc_head, classes, classifies=True, regresses=False, name="fc")
    weights = golden.state_dict()
    for branch, mine in ((fc, "fc_branch|fc_cls"), (conv, "res_block|conv_branch|fc_reg")):
        branch.build((None, None, size, size, s["in_channels"]))
        of_branch = {
            name: array for name, array in weights.items() if name.startswith(tuple(mine.split("|")))
        }
        load_state_dict(branch, of_branch, MMDETECTION, pool_size=size)

    x_cls, x_reg = golden["x_cls"], golden["x_reg"]
    after = steps(conv.features, x_reg)
    dense = ops.reshape(x_cls, (len(x_cls), -1))
    got = {"eval/res_block": after[0], "eval/pooled": after[-1].mean(axis=(1, 2))}
    got |= {f"eval/conv_branch_{number}": one for number, one in enumerate(after[1:])}
    for number, layer in enumerate(fc.features.layers):
        dense = layer(dense)
        got[f"eval/fc_{number}"] = numpy(dense)
    for mode in ("eval", "train"):
        training = mode == "train"
        logits = fc(x_cls[None], training=training)["logits"]
        deltas = conv(x_reg[None], training=training)["deltas"]
        got[f"{mode}/cls_score"] = numpy(logits)[0]
        got[f"{mode}/bbox_pred"] = numpy(deltas)[0].reshape(len(x_reg), -1)
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_conv_head_nonlocal"), ids=str)
def test_the_textbook_conv_head_agrees(golden):
    s = params(golden)
    of_block = s["nonlocal_"]
    non_local = {
        "mode": of_block["mode"],
        "groups": 1,
        "scaled": of_block["use_scale"],
        "subsample": of_block["sub_sample"],
        "post_relu": of_block["relu_after_sum"],
        "width": s["out_channels"] // of_block["reduction"],
        "out_bias": not of_block["bn_after_out_conv"],
    }
    head = head_of(
        golden, s["K"], non_local, width=s["out_channels"], middle=s["bottleneck_planes"], table=MMDETECTION
    )
    got = {f"eval/block_{number}": one for number, one in enumerate(steps(head, golden["x"])[1:])}
    x = golden["x"][None]
    got |= {"eval/out": numpy(head(x))[0], "train/out": numpy(head(x, training=True))[0]}
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_double_head_author_conv"), ids=str)
def test_the_authors_conv_head_agrees(golden):
    s = params(golden)
    blocks, groups = s["num_blocks"], int(golden["num_group"])
    non_local = {
        "mode": "embedded_gaussian" if int(golden["use_softmax"]) else "dot_product",
        "groups": groups,
        "width": s["inter_channels"],
        "post_relu": s["relu_after_sum"],
    }
    middle = golden["param/blocks.0.ffconv.bottleneck.0.weight"].shape[-1]
    head = head_of(golden, 1 + 2 * blocks, non_local, width=s["out_channels"], middle=middle, table=AUTHORS)
    after = steps(head, golden["x"])
    got = {"eval/up": after[0]} | {f"eval/block_{n}": after[2 * n + 2] for n in range(blocks)}
    x = golden["x"][None]
    got |= {"eval/out": numpy(head(x))[0], "train/out": numpy(head(x, training=True))[0]}
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_double_head_loss_fusion"), ids=str)
def test_losses_and_fusion_agree(golden):
    s = params(golden)
    assert s["background"] == 0
    classes = golden["logits_fc"].shape[1] - 1
    to_ours = [*range(1, classes + 1), 0]  # background last
    labels = (golden["labels_bg0"].astype("int32") - 1) % (classes + 1)
    rows, targets = len(labels), golden["targets"]
    got, losses = {}, {}
    for branch in ("fc", "conv"):
        logits = golden[f"logits_{branch}"]
        losses[f"{branch}_class"] = numpy(softmax_class_loss(logits[None][..., to_ours], labels[None])).mean()
        deltas = golden[f"reg_{branch}"].reshape(rows, classes + 1, 4)[:, 1:]
        positive = labels < classes
        own = deltas[np.arange(rows), np.where(positive, labels, 0)]
        loss = numpy(smooth_l1(own, targets, s["smooth_l1_beta"])).sum(axis=1)
        losses[f"{branch}_box"] = (loss * positive).sum() / rows
        got[f"loss/{branch}_cls"], got[f"loss/{branch}_reg"] = (
            losses[f"{branch}_class"],
            losses[f"{branch}_box"],
        )
        got[f"prob_{branch}"] = numpy(ops.softmax(logits))
    for name, case in s["totals"].items():
        focus, weights = (case["lambda_fc"], case["lambda_conv"]), (case["w_fc"], case["w_conv"])
        factors = loss_weights(["fc", "conv"], focus, weights)
        got[f"total/{name}"] = sum(losses[term] * factor for term, factor in factors.items())
    for how in s["fused"]:
        got[f"fused_{how}"] = numpy(fuse(got["prob_fc"], got["prob_conv"], how))
    assert_agrees(golden, got)


def kernels(layer):
    """Weights as the paper counts them: no bias, no norm; in units of 2^20, two decimals rounded half up."""
    count = sum(np.prod(v.shape) for v in layer.trainable_variables if v.path.endswith("kernel"))
    return np.floor(count / 2**20 * 100 + 0.5) / 100


@pytest.mark.parametrize(
    ("blocks", "non_local", "million"),
    [(k, False, m) for k, m in enumerate([1.06, 2.13, 3.19, 4.25, 5.31, 6.38, 7.44], start=1)]
    + [(3, True, 4.13), (5, True, 7.19), (7, True, 10.25)],
)
def test_parameters_of_table_2(blocks, non_local, million):
    head = ConvHead(blocks, non_local)
    head.build((None, None, 7, 7, 256))
    assert kernels(head) == million


def test_parameters_of_the_fc_head():
    branch = Branch("fc", {}, 80, classifies=True, regresses=True)
    branch.features.build((None, None, 7, 7, 256))
    assert kernels(branch.features) == 13.25


def small(configuration, **settings):
    heads = {
        "fc_head": {"width": 16},
        "conv_head": {"blocks": 3, "width": 16, "middle": 8, "non_local": {"groups": 2}},
    }
    head = DoubleHead([8, 16], 3, **{**heads, **CONFIGURATIONS[configuration], **settings}, name="roi_head")
    head.build([(None, None, None, 8)] * 2)
    return head


@pytest.mark.parametrize(
    ("configuration", "terms"),
    [
        ("single_fc", {"fc_class": 1, "fc_box": 1}),
        ("single_conv", {"conv_class": 1, "conv_box": 1}),
        ("double_fc", {"fc1_class": 2, "fc2_box": 2}),
        ("double_conv", {"conv1_class": 2.5, "conv2_box": 2.5}),
        ("double_head", {"fc_class": 2, "conv_box": 2.5}),
        ("double_head_reverse", {"fc_box": 2, "conv_class": 2.5}),
        # The four numbers of the authors' training script.
        ("double_head_ext", {"fc_class": 1.4, "fc_box": 0.6, "conv_class": 0.5, "conv_box": 2.0}),
    ],
)
def test_configurations_have_the_outputs_that_they_train(configuration, terms):
    head = small(configuration)
    assert head.weights_of_terms == pytest.approx(terms)
    built = {
        f"{name}_{what}"
        for name, branch in head.branches.items()
        for what, output in (("class", branch.classes), ("box", branch.boxes))
        if output is not None
    }
    assert built == set(terms)


def scene(seed=0):
    rng = np.random.default_rng(seed)
    pyramid = [rng.normal(size=(1, side, side, 8)).astype("float32") for side in (8, 4)]
    proposals = {"boxes": np.float32([[[4, 4, 30, 40], [10, 8, 60, 50]]]), "valid": np.ones((1, 2), bool)}
    return pyramid, proposals, np.int32([[64, 64]])


def predict(head, weights):
    for variable, value in zip(head.variables, weights, strict=True):
        variable.assign(value)
    pyramid, proposals, size_hw = scene()
    raw = head(pyramid, proposals, size_hw)
    return {key: numpy(value) for key, value in head.candidates(raw, proposals, size_hw).items()}


def test_fig_8_combinations_of_one_model():
    rng = np.random.default_rng(1)
    first = small("double_head_ext")
    weights = [rng.uniform(0.1, 0.4, v.shape) * rng.choice([-1, 1], v.shape) for v in first.variables]
    weights = [abs(w) if "variance" in v.path else w for v, w in zip(first.variables, weights, strict=True)]
    conv, fc, crossed, fused = (predict(small("double_head_ext", **FIG_8[one]), weights) for one in "abcd")
    np.testing.assert_array_equal(crossed["boxes"], conv["boxes"])
    np.testing.assert_array_equal(crossed["scores"], fc["scores"])
    np.testing.assert_array_equal(fused["boxes"], conv["boxes"])
    assert np.abs(fc["boxes"] - conv["boxes"]).max() > 0.1
    expected = 1 - (1 - fc["scores"]) * (1 - conv["scores"])
    np.testing.assert_allclose(fused["scores"], expected, rtol=1e-5)
    for fusion, both in (("max", np.maximum), ("average", lambda a, b: (a + b) / 2)):
        other = predict(small("double_head_ext", fusion=fusion), weights)
        np.testing.assert_allclose(other["scores"], both(fc["scores"], conv["scores"]), rtol=1e-6)


def test_the_conv_head_sees_more_of_a_proposal():
    pyramid, proposals, size_hw = scene()
    boxes = proposals["boxes"]
    center, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 * 1.3
    grown = {**proposals, "boxes": np.concatenate([center - half, center + half], axis=-1)}
    seen = {}
    for scale, at in ((1.3, proposals), (1.0, grown)):
        head = small("double_head", conv_roi_scale=scale, sampling_ratio=2)
        pool = max(head.pools, key=lambda one: one.settings["enlarged"])
        seen[scale] = numpy(pool(pyramid, at["boxes"]))
    np.testing.assert_allclose(seen[1.3], seen[1.0], atol=1e-5)
    assert len(small("double_head", conv_roi_scale=1.0).pools) == 1  # pooled once for both


def test_padding_stays_out_of_the_statistics_of_the_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 4, 5)).astype("float32")
    valid = np.array([[True, True, False], [True, False, False]])

    def trained(x, valid):
        keras.utils.set_random_seed(0)
        head = ConvHead(3, width=8, middle=4, name="features")
        head.build((None, None, 4, 4, 5))
        for variable in head.trainable_variables:
            variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape))
        found = numpy(head(x, training=True, valid=valid))
        return found, [numpy(variable.value) for variable in head.non_trainable_variables]

    found, statistics = trained(x, valid)
    alone, of_alone = trained(x[valid][None], None)
    np.testing.assert_allclose(found[valid], alone[0], rtol=1e-4, atol=1e-4)
    assert len(statistics) == 14
    for one, other in zip(statistics, of_alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # A full sample: the same to the bit, but for JAX, which compiles one of the two and not the other.
    rtol, atol = (1e-4, 1e-5) if keras.backend.backend() == "jax" else (0, 0)
    same = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    for one, other in zip(trained(x, np.ones((2, 3), bool)), trained(x, None), strict=True):
        keras.tree.map_structure(same, one, other)


def test_names():
    assert names_of(["fc"]) == ["fc"] and names_of(["fc", "conv"]) == ["fc", "conv"]
    assert names_of(["conv", "conv"]) == ["conv1", "conv2"]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no branch is trained on the class loss"):
        small("double_head", focus=(0.0, 1.0))
    with pytest.raises(UserError, match="classify_with fc, conv: the class loss trains fc; see"):
        small("double_head", classify_with=["fc", "conv"])
    with pytest.raises(UserError, match="regress_with fc: the box loss trains conv; see"):
        small("double_head", regress_with="fc")
    with pytest.raises(UserError, match=r"classify_with \[\]: the class loss trains"):
        small("double_head", classify_with=[])
    with pytest.raises(UserError, match="with non_local blocks an odd number"):
        ConvHead(4, True)
    with pytest.raises(UserError, match="give one or two"):
        small("double_head", branches=("fc", "conv", "fc"))


def test_boxes_are_those_of_the_conv_head_where_both_are_trained():
    assert small("double_head_ext").regress_with == "conv"
    assert small("double_head_ext").classify_with == ["fc", "conv"]
