import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.backbones import make_backbone
from kgarden.layers.norm import EPSILON
from kgarden.layers.residual import Bottleneck
from kgarden.weights.state_dict import load_state_dict

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
    s, got = params(golden), {}
    assert s["bn_eps"] == EPSILON
    for case, settings in s["cases"].items():
        width = settings.get("conv2_out") or settings.get("width") or settings["planes"]
        block = Bottleneck(
            4 * settings["planes"],
            width,
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
        x = golden[f"{case}/x"]
        block.build(x.shape)
        load_state_dict(block, golden.state_dict(f"{case}/param/"), TABLE)
        got[f"{case}/y"] = ops.convert_to_numpy(block(x))
        got[f"{case}/y_train"] = ops.convert_to_numpy(block(x, training=True))
    assert_agrees(golden, got)


@pytest.mark.parametrize(
    "name, count",  # timm's legacy_senet154 and legacy_seresnext*, without classifiers
    [("senet154", 113_039_984), ("seresnext50_32x4d", 25_510_896), ("seresnext101_32x4d", 46_906_416)],
)
def test_parameters_are_those_of_the_literature(name, count):
    backbone = make_backbone({"name": name, "norm": "bn"})
    backbone.build((None, None, None, 3))
    assert sum(int(np.prod(variable.shape)) for variable in backbone.trainable_variables) == count
