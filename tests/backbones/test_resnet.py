import numpy as np
import pytest
from keras import ops
from support.backbones import assert_blocks_agree, trained_parameters
from support.golden import assert_agrees, goldens, params
from support.marks import slow_on_jax

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.layers.residual import Bottleneck
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict


@pytest.mark.parametrize("golden", goldens("d2_bottleneck"), ids=str)
def test_bottleneck_agrees_with_the_reference(golden):
    settings, deform = params(golden), None
    if "deform_modulated" in settings:
        deform = {"modulated": settings["deform_modulated"], "offset_groups": settings["deform_num_groups"]}
    block = Bottleneck(
        settings["out_channels"],
        settings["bottleneck_channels"],
        settings.get("stride", 1),
        "frozen_bn",
        project="shortcut.weight" in golden.state_dict(),
        stride_in_1x1=settings.get("stride_in_1x1", False),
        groups=settings.get("num_groups", 1),
        deform=deform,
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
    def block_of(settings):
        return Bottleneck(
            settings["planes"] * settings["expansion"],
            settings["width"],
            settings["stride"],
            "bn",
            project=settings["downsample"] is not None,
            stride_in_1x1=settings["stride_in"] == "conv1",
            groups=settings["groups"],
            name="block",
        )

    assert_blocks_agree(golden, block_of, lambda settings: TORCHVISION)


@pytest.mark.parametrize(
    "name, count",
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnet152", 58_143_808),
        ("resnext50_32x4d", 22_979_904),
        ("resnext101_32x4d", 42_128_704),
        ("resnext101_64x4d", 81_406_272),
        ("resnext101_32x8d", 86_742_336),
    ],
)
def test_parameters_are_those_of_the_literature(name, count):
    # torchvision's and timm's trunks without the classifier, batch-norm scales and shifts counted.
    assert trained_parameters({"name": name, "norm": "bn"}) == count


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


@slow_on_jax
def test_deformable_stages():
    # Three kernels of 3x3x(w)x27 with bias for each block of res4 (6, w = 256 / 8) and res5 (3, w = 512 / 8).
    narrow = {"name": "resnet50", "norm": "bn", "width_per_group": 8, "stem_channels": 8, "res2_channels": 8}
    counts = {}
    for stages, modulated in (((), True), ([4, 5], True), ([4, 5], False)):
        backbone = make_backbone({**narrow, "deformable_stages": stages, "modulated": modulated})
        backbone.build((None, None, None, 3))
        counts[len(stages), modulated] = backbone.count_params()
    of_cells = 6 * 9 * 32 + 3 * 9 * 64
    assert counts[2, True] - counts[0, True] == (of_cells + 9) * 27
    assert counts[2, False] - counts[0, True] == (of_cells + 9) * 18
    features = backbone(np.zeros((1, 64, 64, 3), "float32"))
    assert [feature.shape[1] for feature in features] == [16, 8, 4, 2]
    with pytest.raises(UserError, match="some of 2, 3, 4, 5"):
        make_backbone({"name": "resnet50", "deformable_stages": [1]})
    with pytest.raises(UserError, match="no bottlenecks"):
        make_backbone({"name": "resnet18", "deformable_stages": [5]})


def test_unknown_settings_are_named():
    with pytest.raises(UserError, match="resnet51"):
        make_backbone("resnet51")
    with pytest.raises(UserError, match="did you mean 'freeze_at'"):
        make_backbone({"name": "resnet18", "freez_at": 2})
    with pytest.raises(UserError, match="freeze_at is 6: 0 freezes nothing"):
        make_backbone({"name": "resnet18", "freeze_at": 6})
