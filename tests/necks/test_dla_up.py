import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.backbones.dla import DLA
from kgarden.errors import UserError
from kgarden.necks.dla_up import DLAUp, IterativeAggregation
from kgarden.weights import detectron2
from kgarden.weights.state_dict import load_state_dict


@pytest.mark.parametrize("golden", goldens("cn2_dla_idaup"), ids=str)
def test_plain_aggregation_agrees_with_the_release(golden):
    s = params(golden)
    maps = list(golden.matching("in[0-9]").values())
    settings = dict(norm="bn", deformable=False, name="last")
    layer = IterativeAggregation(s["out_channels"], s["up_factors"][1:], **settings)
    layer.build([x.shape for x in maps])
    prefix, ignore = "backbone.ida_up.", detectron2.IGNORE
    table = detectron2.dla_up_names(deformable=False)
    load_state_dict(layer, golden.state_dict(), table, prefix=prefix, ignore=ignore)
    found = layer.call(maps)
    assert_agrees(golden, {f"out{n}": ops.convert_to_numpy(x) for n, x in enumerate(found, start=1)})


@pytest.mark.parametrize("golden", goldens("cn2_dlaseg_s4_tiny"), ids=str)
def test_stride_4_agrees_with_the_release(golden):
    s = params(golden)
    backbone = DLA(widths=s["channels"], name="backbone")
    backbone.build((None, None, None, 3))
    neck = DLAUp(s["channels"][2], name="neck")
    neck.build([(None, None, None, width) for width in backbone.channels])
    state = golden.state_dict()
    for part, own in ((backbone, lambda name: "base." in name), (neck, lambda name: "ida" in name)):
        of_part = {name: array for name, array in state.items() if own(name)}
        settings = dict(prefix="backbone.", ignore=detectron2.IGNORE)
        load_state_dict(part, of_part, detectron2.table_for(backbone, neck), **settings)
    [image] = [name for name in golden.files if name not in golden.outputs and "param/" not in name]
    [level] = neck(backbone(golden[image]))
    assert neck.strides == [4] and level.shape[-1] == neck.channels
    assert_agrees(golden, {"out_dla2": ops.convert_to_numpy(level)})


def test_it_must_be_as_wide_as_c2():
    shapes = [(None, None, None, width) for width in (24, 32, 96, 320)]
    with pytest.raises(UserError, match="as wide as C2 of the backbone, 24"):
        DLAUp().build(shapes)
    neck = DLAUp(24, deformable=False)
    neck.build(shapes)
    [level] = neck([np.zeros((1, 16 // 2**n, 8 // 2**n, s[-1]), "float32") for n, s in enumerate(shapes)])
    assert tuple(level.shape) == (1, 16, 8, 24)
