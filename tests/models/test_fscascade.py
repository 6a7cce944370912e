"""FSCascade: the reference, sharing switched off, gradients across stages, and each option by hand."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.marks import slow_on_jax
from support.small_backbone import RESNET10
from support.variants import batch

from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.cascade_rcnn import DECREASING, CascadeHead
from kgarden.models.fscascade import CONFIGURATIONS, FSCascadeHead

numpy = ops.convert_to_numpy
SIZE_HW = np.int32([[64, 64]])
OBJECTS = np.float32([[[10, 10, 30, 30], [40, 20, 60, 50], [0, 0, 0, 0]]])
Y = {"boxes": OBJECTS, "labels": np.int32([[1, 0, -1]]), "crowd": np.zeros((1, 3), bool)}
PROPOSALS = np.float32([[[8, 8, 30, 32], [0, 40, 20, 60], [38, 20, 62, 52], [30, 0, 40, 9]]])
UNIFORM = np.random.default_rng(3).uniform(size=(1, 400)).astype("float32")
PYRAMID = [np.random.default_rng(1).normal(size=(1, side, side, 4)).astype("float32") for side in (8, 4)]
FEATURES = np.random.default_rng(2).normal(size=(1, 3, 7, 7, 4)).astype("float32")


def built(kind=FSCascadeHead, seed=0, **settings):
    head = kind([8, 16], 3, **{"width": 8, "num_samples": 8, **settings}, name="roi_head")
    head.build([(None, None, None, 4)] * 2)
    rng = np.random.default_rng(seed)
    for variable in head.variables:
        variable.assign(rng.normal(size=variable.shape) * 0.2)
    return head


def weights(head, stage, layer):
    """Kernel and bias of a layer of a stage, by the end of its path."""
    pair = [v for v in head.box_heads[stage].variables if f"/{layer}/" in v.path]
    return [numpy(v) for v in sorted(pair, key=lambda v: v.path, reverse=True)]


def proposals():
    valid = np.ones(PROPOSALS.shape[:2], bool)
    return {"boxes": PROPOSALS, "scores": np.ones(valid.shape, "float32"), "valid": valid}


# --- the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", goldens("mmdet_fscascade_head_own"), ids=str)
def test_features_and_outputs_agree_with_the_reference(golden):
    s = params(golden)
    stages, depth = s["num_stages"], s["in_channels"]
    head = FSCascadeHead([8], s["outputs"] - 1, width=s["fc_dim"])
    head.build([(None, None, None, depth)])

    def assign(layer, name):
        kernel, bias = golden.raw(f"param/{name}.weight"), golden.raw(f"param/{name}.bias")
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
        elif kernel.shape[1] == depth * 49:  # flattened as (channel, y, x) there
            kernel = kernel.reshape(-1, depth, 7, 7).transpose(2, 3, 1, 0).reshape(depth * 49, -1)
        else:
            kernel = kernel.T
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)

    for number, own in enumerate(head.box_heads, start=1):
        assign(own.features.layers[0], f"w{number}1")
        assign(own.features.layers[1], f"w{number}2")
        assign(own.classes, f"cls{number}")
        assign(own.boxes, f"reg{number}")
        assign(own.convs[0], f"f{number}1")
        assign(own.convs[1], "f12" if number == 1 else f"g{number - 1}")
    found = {}
    for stage in range(stages):
        x, to = golden.raw(f"x_stage{stage + 1}").transpose(0, 2, 3, 1)[None], f"stage{stage + 1}"
        for number in range(stage + 1):
            found[f"{to}/C{number + 1}"] = ops.relu(head.box_heads[number].fc(x))[0]
            found[f"{to}/B{number + 1}"] = head.box_features(number, x)[0]
        found[f"{to}/cls_feat"] = head.class_features(stage, x)[0][0]
        logits, deltas = head._outputs(stage, x)
        found |= {f"{to}/cls_score": logits[0], f"{to}/bbox_pred": deltas[0, :, 0]}
    assert_agrees(golden, found)


# --- nothing shared -----------------------------------------------------------------------------------------


def as_cascade(head, **settings):
    """A CascadeHead with the settings and weights of a FSCascadeHead without sharing."""
    paper = dict(box_beta=1.0, stage_weights=DECREASING, feature_gradient=1.0, gt_rois="readd")
    plain = built(CascadeHead, **{**paper, "ensemble": "last", **settings})
    theirs = {variable.path: variable for variable in head.variables}
    assert theirs.keys() == {variable.path for variable in plain.variables}
    for variable in plain.variables:
        variable.assign(theirs[variable.path])
    return plain


def terms_and_gradients(head):
    sampled = head.sample(proposals(), Y, lambda n: UNIFORM[:, :n])

    def loss(*pyramid):
        terms = head.losses(head(list(pyramid), sampled, SIZE_HW, training=True), Y)
        return sum(terms.values())

    return value_and_gradients(loss, PYRAMID, head.trainable_variables)


def test_without_sharing_it_is_a_cascade():
    head = built(**CONFIGURATIONS["cascade"])
    plain = as_cascade(head)
    (value, gradients), (wanted, theirs) = terms_and_gradients(head), terms_and_gradients(plain)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for one, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    found, wanted = (
        one.candidates(one(PYRAMID, proposals(), SIZE_HW), proposals(), SIZE_HW) for one in (head, plain)
    )
    for key in ("boxes", "scores"):
        np.testing.assert_allclose(numpy(found[key]), numpy(wanted[key]), rtol=1e-5, atol=1e-5)


def test_rescaled_gradients_of_the_heads_are_the_authors_cascade():
    """Without sharing only the features see the loss weights; see CascadeHead's `feature_gradient`."""
    head = built(**CONFIGURATIONS["cascade"], head_grad_rescale=True)
    plain = as_cascade(head, stage_weights=None, feature_gradient=DECREASING)
    _, gradients = terms_and_gradients(head)
    _, theirs = terms_and_gradients(plain)
    for one, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# --- gradients across stages --------------------------------------------------------------------------------


def of_last_stage(head, which):
    """Which earlier weights get a gradient of the last stage's output: paths; and that of the features."""
    earlier = [v for stage in head.box_heads[:-1] for v in stage.trainable_variables]
    last = len(head.box_heads) - 1
    _, (features, *found) = value_and_gradients(
        lambda x: ops.sum(head._outputs(last, x)[which] ** 2), [FEATURES], earlier
    )
    assert np.abs(features).max() > 0
    return {v.path.split("/", 1)[1] for v, one in zip(earlier, found, strict=True) if np.any(one)}, features


def test_a_later_stage_teaches_the_layers_that_it_shares():
    both, of_classes, of_boxes = built(), 0, 1
    dense = {
        f"box_head{n}/features/fc{k}/{what}" for n in (0, 1) for k in (1, 2) for what in ("kernel", "bias")
    }
    convs = {f"box_head{n}/box_conv{k}/{what}" for n in (0, 1) for k in (1, 2) for what in ("kernel", "bias")}
    assert of_last_stage(both, of_classes)[0] == dense
    assert of_last_stage(both, of_boxes)[0] == convs
    stopped = built(cfs_stop_gradient=True)
    np.testing.assert_allclose(
        numpy(stopped._outputs(2, FEATURES)[0]), numpy(both._outputs(2, FEATURES)[0]), rtol=1e-5
    )
    assert of_last_stage(stopped, of_classes)[0] == set()
    assert of_last_stage(stopped, of_boxes)[0] == convs
    for name in ("cascade", "conv_loc"):
        alone = built(**CONFIGURATIONS[name])
        assert of_last_stage(alone, of_classes)[0] == of_last_stage(alone, of_boxes)[0] == set()


def test_rescaling_goes_by_the_owner_of_a_layer():
    """Stage 3 teaches stage 2's layers twice as much and its own four times; the features as before."""
    plain, rescaled = built(), built(head_grad_rescale=True)
    for which in (0, 1):
        found = []
        for head in (plain, rescaled):
            own = head.trainable_variables
            loss = lambda x: ops.sum(head._outputs(2, x)[which])  # noqa: B023, E731
            found.append(value_and_gradients(loss, [FEATURES], own)[1])
        for variable, one, other in zip([None, *plain.trainable_variables], *found, strict=True):
            factor = 1 if variable is None else 2 ** int(variable.path.split("box_head")[1][0])
            np.testing.assert_allclose(other, one * factor, rtol=1e-4, atol=1e-5)


# --- options by hand ----------------------------------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def dense(x, pair):
    return x @ pair[0] + pair[1]


def conv(x, pair):
    """3x3 or 1x1 of (N, 7, 7, D), padded with zeros."""
    kernel, bias = pair
    half = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    sides = range(kernel.shape[0])
    return sum(padded[:, i : i + 7, j : j + 7] @ kernel[i, j] for i in sides for j in sides) + bias


def fc_of(head, stage):
    hidden = relu(dense(FEATURES[0].reshape(3, -1), weights(head, stage, "fc1")))
    return dense(hidden, weights(head, stage, "fc2"))


def outputs(head, stage):
    logits, deltas = head._outputs(stage, FEATURES)
    return numpy(logits)[0], numpy(deltas)[0, :, 0]


@pytest.mark.parametrize(
    "settings", [{}, {"cfs_sum": "pre_relu", "cfs_reg_feature": "sum"}], ids=["own", "sum"]
)
def test_classification_feature_sharing(settings):
    head = built(localisation="fc", **settings)
    terms = [fc_of(head, stage) for stage in range(3)]
    total = relu(sum(terms)) if settings else sum(relu(term) for term in terms)
    for_boxes = total if settings else relu(terms[2])
    logits, deltas = outputs(head, 2)
    np.testing.assert_allclose(logits, dense(total, weights(head, 2, "classes")), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(deltas, dense(for_boxes, weights(head, 2, "boxes")), rtol=1e-4, atol=1e-4)


def localised(head, mode, final_relu=True):
    """B_3, of RoI features X."""
    x, last = FEATURES[0], relu if final_relu else np.asarray
    first, second = ([weights(head, stage, f"box_conv{n}") for stage in range(3)] for n in (1, 2))
    if mode == "conv":
        return relu(conv(relu(conv(x, first[2])), second[2]))
    b = relu(conv(relu(conv(x, first[0])), second[0]))
    if mode == "parallel":
        return last(b + sum(conv(relu(conv(x, first[n])), second[n]) for n in (1, 2)))
    for n in (1, 2):
        b = last(x + conv(relu(conv(b, first[n])), second[n]))
    return b


@pytest.mark.parametrize(
    "settings",
    [
        {"localisation": "conv", "cfs": False, "loc_reduce": "avgpool"},
        {"localisation": "conv", "cfs": True, "loc_reduce": "fc1024"},
        {"lfs_mode": "parallel"},
        {"lfs_mode": "parallel", "lfs_final_relu": False, "loc_reduce": "fc1024"},
        {"lfs_final_relu": False},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_localisation(settings):
    head = built(**settings)
    mode = settings.get("lfs_mode", settings.get("localisation", "serial"))
    b = localised(head, mode, settings.get("lfs_final_relu", True))
    np.testing.assert_allclose(numpy(head.box_features(2, FEATURES))[0], b, rtol=1e-4, atol=1e-4)
    reduce = settings.get("loc_reduce", "flatten")
    read = b.mean((1, 2)) if reduce == "avgpool" else b.reshape(3, -1)
    if reduce == "fc1024":
        read = relu(dense(read, weights(head, 2, "box_dense")))
    _, deltas = outputs(head, 2)
    np.testing.assert_allclose(deltas, dense(read, weights(head, 2, "boxes")), rtol=1e-4, atol=1e-4)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_an_ensemble_on_the_last_rois_shares_too():
    """The classifier of stage j reads the sum of C_1 to C_j of the last stage's RoIs."""
    head = built(ensemble="last_rois")
    raw = head(PYRAMID, proposals(), SIZE_HW)
    x = head.pool(PYRAMID, raw["stages"][-1]["boxes"])
    alone = [softmax(numpy(head._outputs(stage, x)[0])) for stage in range(3)]
    np.testing.assert_allclose(numpy(head.probability(raw)), np.mean(alone, axis=0)[..., :-1], rtol=1e-4)
    last = built().probability(raw)
    np.testing.assert_allclose(numpy(last), alone[2][..., :-1], rtol=1e-4)


def test_two_to_four_stages():
    four = dict(ious=(0.5, 0.6, 0.7, 0.8), stage_weights=(1, 0.5, 0.25, 0.125))
    four["delta_weights"] = ((10.0, 10.0, 5.0, 5.0),) * 4
    for count, settings in ((2, {"ious": (0.5, 0.6)}), (4, four)):
        head = built(**settings)
        value, gradients = terms_and_gradients(head)
        assert np.isfinite(value) and len(head.loss_names) == 2 * count
        paths = {v.path for v in head.trainable_variables}
        assert f"roi_head/box_head{count - 1}/box_conv2/kernel" in paths
        assert all(np.isfinite(one).all() for one in gradients)


# --- other hosts --------------------------------------------------------------------------------------------

RPN = {"width": 8, "sizes": [[8], [16], [32], [64], [128]], "num_samples": 32}
SMALL = {"backbone": RESNET10, "selection": {"score_threshold": 0.0, "total": 6}}
CENTERNET2 = {
    "name": "centernet2",
    **SMALL,
    "neck": {"channels": 8},
    "proposer": {"num_convs": 1, "norm_groups": 4, "train": 16, "test": 8, "train_per_level": 16},
}
MASK_RCNN = {
    "name": "mask_rcnn",
    **SMALL,
    "neck": {"channels": 8},
    "rpn": RPN,
    "proposals": {"train": {"total": 16, "per_level": 16}, "test": {"total": 8}},
    "mask_head": {"width": 4, "num_convs": 1, "pool_size": 3},
}


@slow_on_jax
@pytest.mark.parametrize("host", [CENTERNET2, MASK_RCNN], ids=lambda host: host["name"])
def test_it_is_a_second_stage_of_other_hosts(host):
    """One step: the last stage's terms teach the layers that it shares; a mask head stands behind it."""
    settings = {"name": "fscascade", "width": 4, "num_samples": 8}
    detector = build_detector({**host, "roi_head": settings}, 3)
    masked = "mask_head" in host
    first = 0.5 if masked else 0.6  # CenterNet2 has higher thresholds
    assert detector.roi_head.ious == pytest.approx((first, first + 0.1, first + 0.2))
    x, y = batch(images=1, height=64, width=64)
    last = ["stage2/class", "stage2/box"] + ["roi/mask"] * masked

    def loss():
        terms = detector.loss_terms(x, y, detector(x, training=True), training=True)
        assert terms.keys() == set(detector.loss_names) >= set(last)
        return sum(terms[name] for name in last) + 0.0 * sum(terms.values())

    weights = detector.trainable_variables
    value, gradients = value_and_gradients(loss, [], weights)
    assert np.isfinite(value) and all(np.isfinite(one).all() for one in gradients)
    moved = {v.path.split("/", 1)[1] for v, one in zip(weights, gradients, strict=True) if np.any(one)}
    shared = {
        f"roi_head/box_head{n}/{layer}/kernel" for n in (0, 1, 2) for layer in ("features/fc1", "box_conv1")
    }
    outputs = {f"roi_head/box_head{n}/{layer}/kernel" for n in (0, 1) for layer in ("classes", "boxes")}
    assert shared <= moved and not outputs & moved
    assert any(path.startswith("neck/") for path in moved)
    found = {key: numpy(one) for key, one in detector.detect(x, detector(x)).items()}
    assert found["boxes"].shape == (1, 6, 4)
    assert all(np.isfinite(one).all() for one in found.values())
    assert ("masks" in found) is masked
    if masked:
        assert "mask_head/conv1/kernel" in moved and found["masks"].shape == (1, 6, 6, 6)
        assert (found["masks"][found["valid"]] > 0).all()


# --- sizes and settings -------------------------------------------------------------------------------------


def test_the_added_parameters_are_those_of_the_paper():
    """+2.49 M in convolutions, and box outputs of 12544 inputs, with 256 channels and 7 x 7 bins."""
    head = FSCascadeHead([8], 80, width=1)
    head.build([(None, None, None, 256)])
    count = {}
    for variable in head.variables:
        of_stage = variable.path.split("box_head")[1]
        key = (int(of_stage[0]), of_stage.split("/")[1].rstrip("12"))
        count[key] = count.get(key, 0) + int(np.prod(variable.shape))
    assert [count[stage, "box_conv"] for stage in range(3)] == [1_180_160, 655_872, 655_872]
    assert [count[stage, "boxes"] for stage in range(3)] == [12544 * 4 + 4] * 3


def test_mistakes_are_named():
    for settings, message in (
        ({"cfs": False, "cfs_sum": "pre_relu"}, "cfs_sum has no effect here: it needs cfs true"),
        ({"cfs": False, "cfs_stop_gradient": True}, "cfs_stop_gradient has no effect"),
        (
            {"cfs_reg_feature": "sum"},
            "cfs_reg_feature has no effect here: it needs cfs true, localisation fc",
        ),
        ({"localisation": "conv", "lfs_mode": "parallel"}, "lfs_mode has no effect"),
        ({"localisation": "fc", "lfs_final_relu": False}, "lfs_final_relu has no effect"),
        ({"localisation": "fc", "loc_reduce": "avgpool"}, "loc_reduce has no effect"),
        ({"localisation": "box"}, "roi_head.localisation 'box': one of lfs, conv, fc"),
        ({"head_grad_rescale": True, "stage_weights": (1.0, 0.5, 0.0)}, "head_grad_rescale divides by"),
        ({"ious": (0.5, 0.6, 0.7, 0.8)}, "4 ious but 3 delta_weights"),
    ):
        with pytest.raises(UserError, match=message):
            FSCascadeHead([8], 3, **settings)
