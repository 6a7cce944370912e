import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.errors import UserError
from kgarden.necks.fpn import FPN
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict


@pytest.mark.parametrize("golden", goldens("d2_fpn"), ids=str)
def test_fpn_agrees_with_the_reference(golden):
    settings = params(golden)
    inputs = list(golden.matching("in_res[0-9]").values())
    levels = sorted(int(name.removeprefix("out_p")) for name in golden.matching("out_p[0-9]"))
    subsample = "subsample" in settings["top"]
    fpn = FPN(
        settings["out_channels"],
        levels=(levels[0], levels[-1]),
        top="subsample" if subsample else "p6p7_of_p5",
        name="neck",
    )
    features = [None] * (4 - len(inputs)) + inputs
    fpn.build([None if feature is None else feature.shape for feature in features])
    load_state_dict(fpn, golden.state_dict(), TABLE, prefix="backbone.")
    pyramid = fpn.call(features)
    got = {f"out_p{level}": ops.convert_to_numpy(out) for level, out in zip(levels, pyramid, strict=True)}
    assert_agrees(golden, got)


def test_impossible_levels_are_refused():
    with pytest.raises(UserError, match="levels"):
        FPN(levels=(6, 7))
    with pytest.raises(UserError, match="subsample"):
        FPN(levels=(2, 7), top="subsample")


def test_parameters_are_those_of_the_papers():
    # 3,344,384 for P2-P6 on ResNet-50 (P6 costs nothing); 3,868,672 for P3-P7 with P6 from P5 and
    # 7,997,440 with P6 from C5: sums of 1x1 laterals and 3x3 outputs with bias.
    widths = [(None, None, None, width) for width in (256, 512, 1024, 2048)]
    counts = {}
    for levels, top in (((2, 6), "subsample"), ((3, 7), "p6p7_of_p5"), ((3, 7), "p6p7_of_c5")):
        fpn = FPN(levels=levels, top=top)
        fpn.build(widths)
        counts[top] = fpn.count_params()
    assert counts == {"subsample": 3_344_384, "p6p7_of_p5": 3_868_672, "p6p7_of_c5": 7_997_440}
