import pytest
from keras import ops
from support.backbones import trained_parameters
from support.golden import assert_agrees, goldens, params

from kgarden.backbones.dla import DEPTHS, DLA, Tree
from kgarden.weights.state_dict import load_state_dict
from kgarden.weights.timm import IGNORE, dla_names


@pytest.mark.parametrize("golden", goldens("cn2_dla_tree"), ids=str)
def test_trees_agree_with_the_release(golden):
    s = params(golden)
    assert not s["root_residual"]
    of_tree = dict(depth=s["levels"], strides=s["stride"], before=s["in_channels"])
    tree = Tree(s["out_channels"], **of_tree, norm="bn", level_root=s["level_root"], name="level3")
    tree.build(golden["x"].shape)
    ignore = IGNORE if s["levels"] > 1 else ()
    load_state_dict(tree, golden.state_dict(), dla_names(""), prefix="level3.", ignore=ignore)
    y = ops.convert_to_numpy(tree(golden["x"]))
    assert tree.compute_output_shape(golden["x"].shape) == y.shape
    assert_agrees(golden, {"y": y})


@pytest.mark.parametrize("golden", goldens("cn2_dla34_tiny"), ids=str)
def test_backbone_agrees_with_the_release(golden):
    s = params(golden)
    assert tuple(s["levels"]) == (1, 1, *DEPTHS)
    backbone = DLA(widths=s["channels"], name="backbone")
    backbone.build((None, None, None, 3))
    state = golden.state_dict()
    load_state_dict(backbone, state, dla_names(""), ignore=IGNORE)
    [image] = [name for name in golden.files if name not in golden.outputs and "param/" not in name]
    features = dict(enumerate(backbone(golden[image]), start=2))
    names = [name for name in golden.outputs if int(name[-1]) >= 2]
    got = {name: ops.convert_to_numpy(features[int(name[-1])]) for name in names}
    assert_agrees(golden, got)


def test_parameters_are_those_of_the_literature():
    assert trained_parameters("dla34") == 15_229_104  # timm's dla34 without its classifier
