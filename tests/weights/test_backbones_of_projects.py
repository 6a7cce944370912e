"""Backbones' names in Caffe2 and mmdetection: lists have a place whole, and what is written is read."""

import keras
import numpy as np
import pytest
from keras import ops
from support.unfilled import blank, unfilled

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.weights.files import write_weights
from kgarden.weights.foreign import pixels_of
from kgarden.weights.projects import match_weights, project_of, weights_as


class Trunk:
    """A detector as far as tables look at it: a backbone."""

    def __init__(self, settings):
        self.backbone = make_backbone(settings)
        self.backbone.build((None, None, None, 3))
        self.weights, self.neck = self.backbone.weights, keras.layers.Identity()


def caffe2_shapes(counts, groups=1, width=64):
    """{blob: shape} of detectron2's ImageNet files, whose norms are a scale and a shift."""
    shapes = {"conv1_w": (64, 3, 7, 7), "fc1000_w": (1000, 2048), "fc1000_b": (1000,)}
    shapes |= {f"res_conv1_bn_{leaf}": (64,) for leaf in "sb"}
    before = 64
    for stage, blocks in enumerate(counts, start=2):
        inside, after = groups * width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(blocks):
            branches = {
                "2a": (inside, before, 1, 1),
                "2b": (inside, inside // groups, 3, 3),
                "2c": (after, inside, 1, 1),
            }
            if block == 0:
                branches["1"] = (after, before, 1, 1)
            for branch, shape in branches.items():
                shapes[f"res{stage}_{block}_branch{branch}_w"] = shape
                shapes |= {f"res{stage}_{block}_branch{branch}_bn_{leaf}": shape[:1] for leaf in "sb"}
            before = after
    return shapes


CAFFE2 = {
    "R-50": ({"name": "resnet50", "stride_in_1x1": True}, ((3, 4, 6, 3),)),
    "R-101": ({"name": "resnet101", "stride_in_1x1": True}, ((3, 4, 23, 3),)),
    "X-101-32x8d": ({"name": "resnext101_32x8d"}, ((3, 4, 23, 3), 32, 8)),
}


@pytest.mark.parametrize("file", CAFFE2)
def test_imagenet_files_of_caffe2_are_matched_whole(file, tmp_path):
    settings, form = CAFFE2[file]
    trunk, state = unfilled(lambda: Trunk(settings)), blank(caffe2_shapes(*form))
    assert project_of(state) == "caffe2"
    matched = match_weights(trunk, state, "caffe2")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    assert matched.ignored == ["fc1000_w", "fc1000_b"]
    # a norm of scale and shift is y = s x + b: mean 0, and a variance that makes 1 with the epsilon
    norm = next(path for path in matched.values if path.endswith("conv2/norm/moving_variance"))
    assert np.sqrt(matched.values[norm] + np.float32(1e-5)) == pytest.approx(1, abs=1e-7)
    assert not matched.values[norm.replace("variance", "mean")].any()


def test_pixels_and_strides_of_caffe2(tmp_path):
    """Std of the ResNeXt as in detectron2's configurations; MSRA's ResNets have strides in the first 1x1."""
    small = {"name": "resnet50", "stem_channels": 8, "res2_channels": 16, "width_per_group": 4}
    trunk = Trunk({**small, "stride_in_1x1": True})
    write_weights(tmp_path / "r.pth", weights_as(trunk, "caffe2"))
    assert pixels_of(tmp_path / "r.pth") == "msra"
    kernel = np.zeros((256, 8, 3, 3), "float32")
    write_weights(tmp_path / "x.pth", {"res2_0_branch2a_w": kernel, "res2_0_branch2b_w": kernel})
    assert pixels_of(tmp_path / "x.pth")["std"] == (57.375, 57.120, 58.395)
    with pytest.raises(
        UserError, match="in the first 1x1 convolution: set model.backbone.stride_in_1x1: true"
    ):
        match_weights(Trunk(small), {}, "caffe2")
    grouped = {"name": "resnext50_32x4d", "stem_channels": 8, "res2_channels": 16, "stride_in_1x1": True}
    with pytest.raises(UserError, match="in the 3x3 convolution: set model.backbone.stride_in_1x1: false"):
        match_weights(unfilled(lambda: Trunk(grouped)), {}, "caffe2")


def test_round_trip_of_caffe2():
    trunk = Trunk(
        {
            "name": "resnet50",
            "stem_channels": 8,
            "res2_channels": 16,
            "width_per_group": 4,
            "stride_in_1x1": True,
        }
    )
    assert_round_trip(trunk, "caffe2", "res4_5_branch2c_bn_riv")


FCOS = {"name": "fcos", "neck": {"channels": 8}, "dense_head": {"num_convs": 0, "norm": None}}
MMDETECTION = {
    "res2net50": (
        {"width_per_split": 2, "res2_channels": 16},
        "backbone.layer1.0.convs.2.weight",
        "backbone.stem.7.bias",
    ),
    "mobilenet_v2": (
        {"width": 0.1},
        "backbone.layer2.0.expand_conv.conv.weight",
        "backbone.layer7.0.linear_conv.bn.bias",
        "backbone.layer4.3.linear_conv.conv.weight",
    ),
}


@pytest.mark.parametrize("backbone", MMDETECTION)
def test_backbones_of_mmdetection(backbone):
    settings, *names = MMDETECTION[backbone]
    detector = build_detector({**FCOS, "backbone": {"name": backbone, **settings}}, 2)
    weights = assert_round_trip(detector, "mmdetection", *names)
    if backbone == "mobilenet_v2":  # ends before the 1x1 that mmdetection's has
        extra = {
            f"backbone.conv2.{leaf}": np.zeros(1) for leaf in ("conv.weight", "bn.weight", "bn.running_var")
        }
        matched = match_weights(detector, {**weights, **extra}, "mmdetection")
        assert matched.ignored == list(extra)


def assert_round_trip(model, project, *names):
    """Written under a project's names, some of which are given, and read again: the same bits."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    weights = weights_as(model, project)
    assert project_of(weights) == project and set(names) <= weights.keys()
    matched = match_weights(model, weights, project)
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    for variable in model.weights:
        if variable.path in matched.values:
            kept = ops.convert_to_numpy(variable)
            np.testing.assert_array_equal(matched.values[variable.path], kept, err_msg=variable.path)
    return weights
