import pytest
from keras import ops
from support.backbones import assert_blocks_agree, trained_parameters
from support.golden import assert_agrees, goldens, params

from kgarden.backbones.res2net import Bottle2neck
from kgarden.backbones.resnet import deep_stem
from kgarden.layers.conv import max_pool_3x3
from kgarden.weights import detectron2
from kgarden.weights.state_dict import load_state_dict

STEMS = [golden for golden in goldens("cn2_res2net") if "stem" in golden.name]
BLOCKS = [golden for golden in goldens("cn2_res2net") if "stem" not in golden.name]


@pytest.mark.parametrize("golden", STEMS, ids=str)
def test_stem_agrees_with_the_release(golden):
    state = golden.state_dict()
    stem = deep_stem(len(state["conv1.0.weight"]), params(golden)["out_channels"], "bn")
    stem.build(golden["x"].shape)
    table, prefix = detectron2.RES2NET + detectron2.TABLE, "backbone.bottom_up.stem."
    load_state_dict(stem, state, table, prefix=prefix, ignore=detectron2.IGNORE)
    assert_agrees(golden, {"y": ops.convert_to_numpy(max_pool_3x3(stem(golden["x"])))})


@pytest.mark.parametrize("golden", BLOCKS, ids=str)
def test_blocks_agree_with_the_release(golden):
    s = params(golden)
    block = Bottle2neck(
        s["out_channels"],
        s["width"],
        s["stride"],
        norm="bn",
        project=s["in_channels"] != s["out_channels"],
        scales=s["scale"],
        stride_in_1x1=s["stride_in_1x1"],
        deform={"modulated": s["deform_modulated"]} if "deform_modulated" in s else None,
        name="res2_0",
    )
    block.build(golden["x"].shape)
    table, prefix = detectron2.RES2NET + detectron2.TABLE, "backbone.bottom_up.res2.0."
    load_state_dict(block, golden.state_dict(), table, prefix=prefix, ignore=detectron2.IGNORE)
    y = ops.convert_to_numpy(block(golden["x"]))
    assert block.compute_output_shape(golden["x"].shape) == y.shape
    assert_agrees(golden, {"y": y})


@pytest.mark.parametrize("golden", goldens("mmdet_res2net_blocks"), ids=str)
def test_blocks_agree_with_mmdetection(golden):
    def block_of(settings):
        return Bottle2neck(
            4 * settings["planes"],
            settings["width"],
            settings["stride"],
            norm="bn",
            project=settings["stage_type"] == "stage",
            scales=settings["scales"],
            name="block",
        )

    def table_of(settings):
        first = int("average pool" in (settings["downsample"] or ""))  # number of the 1x1
        return [
            (r"(conv\d)", r"\1"),
            (r"bn(\d)", r"conv\1/norm"),
            (r"convs\.(\d)", r"split\1"),
            (r"bns\.(\d)", r"split\1/norm"),
            (rf"downsample\.{first}", "shortcut"),
            (rf"downsample\.{first + 1}", "shortcut/norm"),
        ]

    assert_blocks_agree(golden, block_of, table_of)


@pytest.mark.parametrize("depth, count", [(50, 23_669_352), (101, 43_176_920)])
def test_parameters_are_those_of_the_literature(depth, count):
    # timm's res2net50d and res2net101d, mmdetection's "v1d", without classifiers
    assert trained_parameters({"name": f"res2net{depth}", "norm": "bn"}) == count
