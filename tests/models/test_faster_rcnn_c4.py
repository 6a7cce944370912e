"""Faster R-CNN on C4: counts by arithmetic, res5 on a RoI and on the picture, names of detectron2."""

import numpy as np
import pytest
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.faster_rcnn import CONVENTIONS
from kgarden.weights.detectron2 import IGNORE, TABLE
from kgarden.weights.state_dict import load_state_dict

numpy = ops.convert_to_numpy
SMALL = {"name": "resnet50", "stem_channels": 8, "res2_channels": 16, "width_per_group": 4}


def parameters(layer):
    """Weights, biases, scales and shifts; statistics are none."""
    stored = ("moving_mean", "moving_variance", "step")
    return sum(int(np.prod(v.shape)) for v in layer.weights if v.name not in stored)


def small(**settings):
    settings = {"rpn": {"num_samples": 32}, "backbone": SMALL, **settings}
    return build_detector({"name": "faster_rcnn_c4", **settings}, 3)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_parts_have_the_parameters_and_settings_of_the_references(convention):
    backbone = {"name": "resnet50", "norm": "frozen_bn", "freeze_at": 2, "stride_in_1x1": True}
    detector = build_detector({"name": "faster_rcnn_c4", "convention": convention, "backbone": backbone}, 80)
    # Three bottlenecks of 512 and 2048 channels, the first from 1024; a scale and a shift for each channel.
    kernels = (1024 + 2 * 2048) * 512 + 3 * 9 * 512 * 512 + 3 * 512 * 2048 + 1024 * 2048
    res5 = kernels + 2 * (3 * (512 + 512 + 2048) + 2048)
    head = detector.roi_head
    assert parameters(detector.backbone) + res5 == 23_508_032  # ResNet-50 without its classifier
    assert parameters(head.box_head.features) == res5
    assert parameters(detector.proposer) == 9 * 1024 * 1024 + 1024 + (1024 + 1) * 15 * 5
    assert parameters(head) == res5 + (2048 + 1) * (81 + 4 * 80)
    assert parameters(detector.neck) == 0 and detector.neck.strides == [16] and detector.neck.levels == [4]

    rpn, proposals = detector.proposer.head, detector.proposer
    assert rpn.anchors == 15 and rpn.anchor_settings["sizes"] == [[32, 64, 128, 256, 512]]
    assert [(s.per_level, s.pool >= s.per_level, s.total) for s in (proposals.train, proposals.test)] == [
        (12_000, True, 2000),
        (6000, True, 1000),
    ]
    legacy = convention == "maskrcnn_benchmark"
    assert head.pool.size == 14 and head.pool.settings["sampling_ratio"] == 0
    assert head.pool.settings["aligned"] is (convention in ("detectron2", "mmdetection"))
    assert head.coder.plus_one is legacy
    # Frozen in the second stage as in the first.
    trained = {v.path.split("/")[-1] for v in head.box_head.features.trainable_variables}
    assert trained == {"kernel"}


def test_res5_on_a_roi_of_the_whole_picture_is_res5_on_the_picture():
    """A box of 14 x 14 cells, read at their centres, is the map."""
    whole = make_backbone({**SMALL, "norm": "bn", "stride_in_1x1": True})
    whole.build((None, None, None, 3))
    detector = small(backbone={**SMALL, "norm": "bn", "stride_in_1x1": True}, roi_head={"sampling_ratio": 1})
    ours = {v.path.split("/", 1)[1]: v for v in detector.variables}
    rng = np.random.default_rng(0)
    for variable in whole.variables:
        value = rng.uniform(0.5, 1.5, variable.shape) * 0.1
        variable.assign(value)
        path = variable.path
        path = path.replace("backbone/res5", "roi_head/box_head/features/res5") if "/res5" in path else path
        ours[path].assign(value)
    picture = rng.normal(size=(1, 224, 224, 3)).astype("float32")
    c4 = detector.neck(detector.backbone(picture))
    assert [tuple(level.shape) for level in c4] == [(1, 14, 14, 64)]
    of_roi = detector.roi_head.pool(c4, np.float32([[[0, 0, 224, 224]]]))
    got = numpy(detector.roi_head.box_head.features(of_roi))[0, 0]
    expected = numpy(whole(picture)[-1]).mean(axis=(0, 1, 2))
    assert expected.std() > 0
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_statistics_of_rois_are_those_of_training():
    detector = small(backbone={**SMALL, "norm": "bn"})
    before = {v.path: numpy(v).copy() for v in detector.roi_head.variables if "moving" in v.path}
    pyramid = [np.random.default_rng(0).normal(size=(1, 4, 4, 64)).astype("float32")]
    proposals = {"boxes": np.float32([[[0, 0, 40, 40], [8, 0, 60, 50]]]), "valid": np.ones((1, 2), bool)}

    def moved(training):
        detector.roi_head(pyramid, proposals, np.int32([[64, 64]]), training=training)
        return [
            not np.array_equal(numpy(v), before[v.path])
            for v in detector.roi_head.variables
            if v.path in before
        ]

    assert len(before) == 20 and not any(moved(False)) and all(moved(True))


def test_names_of_detectron2_fill_every_weight():
    detector = small(backbone={**SMALL, "freeze_at": 5})
    assert not detector.backbone.trainable_variables
    assert not detector.roi_head.box_head.features.trainable_variables
    rng, state, wanted = np.random.default_rng(0), {}, {}
    for variable in detector.variables:
        name = reference_name(variable.path)
        if name is None:
            continue
        value = rng.normal(size=variable.shape).astype("float32")
        wanted[variable.path] = value
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
        state[name] = value.transpose(axes) if axes else value
    state |= {
        "pixel_mean": np.zeros(3),
        "proposal_generator.anchor_generator.cell_anchors.0": np.zeros((15, 4)),
    }
    load_state_dict(detector, state, TABLE, ignore=IGNORE)
    assert (
        len(wanted)
        == len(state) - 2
        == len([v for v in detector.variables if "step" not in v.path and "seed" not in v.path])
    )
    for variable in detector.variables:
        if variable.path in wanted:
            np.testing.assert_array_equal(numpy(variable), wanted[variable.path], err_msg=variable.path)


def reference_name(path):
    """Our variable -> detectron2's name, written down by hand."""
    _, *folders, leaf = path.split("/")
    module = "/".join(folders)
    if leaf == "step" or not folders:
        return None
    norm = module.endswith("/norm")
    module = module.removesuffix("/norm")
    suffix = {
        "kernel": "weight",
        "bias": "bias",
        "gamma": "norm.weight",
        "beta": "norm.bias",
        "moving_mean": "norm.running_mean",
        "moving_variance": "norm.running_var",
    }[leaf]
    assert norm == suffix.startswith("norm")
    fixed = {
        "backbone/stem": "backbone.stem.conv1",
        "proposer/rpn/box_tower/conv0": "proposal_generator.rpn_head.conv",
        "proposer/rpn/classes": "proposal_generator.rpn_head.objectness_logits",
        "proposer/rpn/code": "proposal_generator.rpn_head.anchor_deltas",
        "roi_head/box_head/classes": "roi_heads.box_predictor.cls_score",
        "roi_head/box_head/boxes": "roi_heads.box_predictor.bbox_pred",
    }
    if module in fixed:
        return f"{fixed[module]}.{suffix}"
    *_, block, conv = module.split("/")
    stage, number = block.split("_")
    home = "roi_heads" if module.startswith("roi_head") else "backbone"
    return f"{home}.{stage}.{number}.{conv}.{suffix}"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="model.roi_head.width: no such setting"):
        small(roi_head={"width": 256})
    with pytest.raises(UserError, match="model.roi_head.features: no such setting"):
        build_detector({"name": "faster_rcnn", "roi_head": {"features": 3}}, 3)
    with pytest.raises(UserError, match="FPN reads C2..C5; the backbone ends at C4"):
        build_detector({"name": "faster_rcnn", "backbone": {**SMALL, "last_stage": 4}}, 3)
    with pytest.raises(UserError, match="last_stage is 6"):
        make_backbone({**SMALL, "last_stage": 6})
