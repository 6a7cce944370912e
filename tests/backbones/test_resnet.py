import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.layers.norm import EPSILON
from kgarden.layers.residual import Bottleneck
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict

PLAIN = [golden for golden in goldens("d2_bottleneck") if "deform" not in golden.name]


@pytest.mark.parametrize("golden", PLAIN, ids=str)
def test_bottleneck_agrees_with_the_reference(golden):
    settings = params(golden)
    block = Bottleneck(
        settings["out_channels"],
        settings["bottleneck_channels"],
        settings.get("stride", 1),
        "frozen_bn",
        project="shortcut.weight" in golden.state_dict(),
        stride_in_1x1=settings["stride_in_1x1"],
        groups=settings.get("num_groups", 1),
        name="res2_0",
    )
    block.build(golden["x"].shape)
    load_state_dict(block, golden.state_dict(), TABLE, prefix="backbone.bottom_up.res2.0.")
    assert_agrees(golden, {"y": ops.convert_to_numpy(block(golden["x"]))})


# The same blocks with torchvision's names, as mmdetection has them.
TORCHVISION = [
    (r"(conv\d)", r"\1"),
    (r"bn(\d)", r"conv\1/norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut/norm"),
]


@pytest.mark.parametrize("golden", goldens("mmdet_resnet_blocks"), ids=str)
def test_bottlenecks_agree_with_mmdetection(golden):
    s = params(golden)
    assert s["bn_eps"] == EPSILON
    got = {}
    for case, settings in s["cases"].items():
        block = Bottleneck(
            settings["planes"] * settings["expansion"],
            settings["width"],
            settings["stride"],
            "bn",
            project=settings["downsample"] is not None,
            stride_in_1x1=settings["stride_in"] == "conv1",
            groups=settings["groups"],
            name="block",
        )
        x = golden[f"{case}/x"]
        block.build(x.shape)
        load_state_dict(block, golden.state_dict(f"{case}/param/"), TORCHVISION)
        got[f"{case}/y"] = ops.convert_to_numpy(block(x))
        got[f"{case}/y_train"] = ops.convert_to_numpy(block(x, training=True))
    assert_agrees(golden, got)


@pytest.mark.parametrize(
    "depth, count", [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_parameters_are_those_of_the_literature(depth, count):
    # torchvision's trunks without the classifier, batch-norm scales and shifts counted.
    backbone = make_backbone({"name": f"resnet{depth}", "norm": "bn"})
    backbone.build((None, None, None, 3))
    assert sum(int(np.prod(variable.shape)) for variable in backbone.trainable_variables) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_strides_and_channels_are_as_announced(name):
    backbone = make_backbone(name)
    backbone.build((None, None, None, 3))
    features = backbone(np.zeros((1, 64, 96, 3), "float32"))
    assert [tuple(f.shape) for f in features] == [
        (1, 64 // stride, 96 // stride, channels)
        for stride, channels in zip(backbone.strides, backbone.channels, strict=True)
    ]


def test_frozen_stages_do_not_train():
    backbone = make_backbone({"name": "resnet18", "norm": "bn", "freeze_at": 2})
    backbone.build((None, None, None, 3))
    trained = {variable.path.split("/")[1].split("_")[0] for variable in backbone.trainable_variables}
    assert trained == {"res3", "res4", "res5"}


def test_unknown_settings_are_named():
    with pytest.raises(UserError, match="resnet51"):
        make_backbone("resnet51")
    with pytest.raises(UserError, match="did you mean 'freeze_at'"):
        make_backbone({"name": "resnet18", "freez_at": 2})
