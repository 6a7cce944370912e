import pytest
from support.backbones import assert_blocks_agree, trained_parameters
from support.golden import goldens

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.layers.residual import Bottleneck

# The blocks of the references, without what stands before a block's own name.
TABLE = [
    (r"(conv\d)", r"\1"),
    (r"bn(\d)", r"conv\1/norm"),
    (r"se_module\.fc1", "excite/down"),
    (r"se_module\.fc2", "excite/up"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut/norm"),
]


@pytest.mark.parametrize("golden", goldens("mmdet_se_blocks"), ids=str)
def test_blocks_agree_with_the_reference(golden):
    def block_of(settings):
        return Bottleneck(
            4 * settings["planes"],
            settings.get("conv2_out") or settings.get("width") or settings["planes"],
            settings["stride"],
            norm="bn",
            project=settings["downsample"] is not None,
            stride_in_1x1=settings["stride_in"] == "conv1",
            groups=settings["groups"],
            first_width=settings.get("conv1_out"),
            shortcut_kernel=3 if "3x3" in (settings["downsample"] or "") else 1,
            reduction=settings["reduction"],
            name="block",
        )

    assert_blocks_agree(golden, block_of, lambda settings: TABLE)


@pytest.mark.parametrize(
    "name, count",  # timm's legacy_senet154 and legacy_seresnext*, without classifiers
    [("senet154", 113_039_984), ("seresnext50_32x4d", 25_510_896), ("seresnext101_32x4d", 46_906_416)],
)
def test_parameters_are_those_of_the_literature(name, count):
    assert trained_parameters({"name": name, "norm": "bn"}) == count


@pytest.mark.parametrize("name", ["senet154", "seresnext50_32x4d"])
def test_depth_is_part_of_the_name(name):
    with pytest.raises(UserError, match="model.backbone.depth: no such setting"):
        make_backbone({"name": name, "depth": 101})
