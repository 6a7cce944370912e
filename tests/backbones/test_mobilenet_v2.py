import numpy as np
import pytest
from support.backbones import assert_blocks_agree, trained_parameters
from support.golden import goldens

from kgarden.backbones import make_backbone
from kgarden.backbones.mobilenet_v2 import InvertedResidual, divisible_by_8

TABLE = [
    (rf"{theirs}_conv\.{part}", f"{ours}{norm}")
    for theirs, ours in (("expand", "expand"), ("depthwise", "depthwise"), ("linear", "project"))
    for part, norm in (("conv", ""), ("bn", "/norm"))
]


@pytest.mark.parametrize("golden", goldens("mmdet_mobilenetv2_blocks"), ids=str)
def test_blocks_agree_with_mmdetection(golden):
    def block_of(settings):
        before = settings["in_channels"]
        block = InvertedResidual(
            before,
            settings["out_channels"],
            expansion=settings["mid_channels"] // before,
            strides=settings["stride"],
            norm="bn",
            name="block",
        )
        assert block.residual == settings["residual"]
        return block

    assert_blocks_agree(golden, block_of, lambda settings: TABLE)


@pytest.mark.parametrize("last_conv, count", [(True, 2_223_872), (False, 2_223_872 - 1280 * (320 + 2))])
def test_parameters_are_those_of_the_literature(last_conv, count):
    settings = {"name": "mobilenet_v2", "norm": "bn", "last_conv": last_conv}
    assert trained_parameters(settings) == count
    assert make_backbone(settings).channels == [24, 32, 96, 1280 if last_conv else 320]


def test_strides_and_frozen_stages():
    backbone = make_backbone({"name": "mobilenet_v2", "norm": "bn", "width": 0.25, "freeze_at": 3})
    backbone.build((None, None, None, 3))
    features = backbone(np.zeros((1, 64, 96, 3), "float32"))
    assert [tuple(f.shape) for f in features] == [
        (1, 64 // stride, 96 // stride, channels)
        for stride, channels in zip(backbone.strides, backbone.channels, strict=True)
    ]
    assert {variable.path.split("/")[1] for variable in backbone.trainable_variables} == {
        f"block{number}" for number in range(7, 18)
    }


def test_widths_are_multiples_of_8():
    # torchvision's and the authors' rounding: up where rounding down would lose more than a tenth
    assert [divisible_by_8(channels) for channels in (3, 8, 11, 12, 20, 33.6, 44, 90)] == [
        8, 8, 16, 16, 24, 32, 48, 88,
    ]  # fmt: skip
