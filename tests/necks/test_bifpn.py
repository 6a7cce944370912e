import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.errors import UserError
from kgarden.necks.bifpn import FUSION_EPSILON, BiFPN, node_graph
from kgarden.weights.detectron2 import IGNORE, bifpn_names
from kgarden.weights.state_dict import load_state_dict


@pytest.mark.parametrize("golden", goldens("cn2_bifpn"), ids=str)
def test_bifpn_agrees_with_the_release(golden):
    s = params(golden)
    assert s["fusion_eps"] == FUSION_EPSILON
    assert [(node["level"] - 3, node["inputs"]) for node in s["nodes"]] == node_graph(5)
    inputs = list(golden.matching("in_c[0-9]").values())
    neck = BiFPN(
        s["out_channels"],
        s["num_repeats"],
        norm=s["norm"].lower(),
        separable=s["separable"],
        name="neck",
    )
    features = [None, *inputs]
    neck.build([None if feature is None else feature.shape for feature in features])
    table = bifpn_names(s["separable"])
    load_state_dict(neck, golden.state_dict(), table, prefix="backbone.", ignore=IGNORE)
    pyramid = [ops.convert_to_numpy(level) for level in neck.call(features)]
    got = {f"out_p{level}": out for level, out in zip(neck.levels, pyramid, strict=True)}
    for name, out in got.items():
        got[name] = out[..., : golden[name].shape[-1]]  # of P3 the file has the first channels alone
    given = {int(name[-1]): ops.convert_to_tensor(x) for name, x in golden.matching("node4_in_.").items()}
    if given:
        cell = neck.cells[0]
        seen = cell.seen_by(5 + 4, [given.get(number) for number in range(9)], {})
        got["node4_out"] = ops.convert_to_numpy(cell.nodes[4].fuse(seen))
    assert_agrees(golden, got)


def shapes_of(*widths):
    return [(None, None, None, width) for width in widths]


def features_of(height, width, *widths):
    rng = np.random.default_rng(0)
    sizes = [(-(-height // 2**n), -(-width // 2**n)) for n in range(2, 2 + len(widths))]
    return [
        rng.normal(size=(1, *size, depth)).astype("float32")
        for size, depth in zip(sizes, widths, strict=True)
    ]


def test_three_levels_by_hand():
    """Node 4 of the graph 3 = P4(1, 2), 4 = P3(0, 3), 5 = P4(1, 3, 4), 6 = P5(2, 5), without convolutions."""
    assert node_graph(3) == [(1, [1, 2]), (0, [0, 3]), (1, [1, 3, 4]), (2, [2, 5])]
    for style in ("efficientdet", "fcos"):
        neck = BiFPN(4, 1, levels=(3, 5), norm=None, style=style)
        features = features_of(64, 96, 8, 4, 4, 4)
        neck.build([feature.shape for feature in features])
        assert not neck.cells[0].convs and neck.p6 is None and neck.divisor == 32
        for node in neck.cells[0].nodes:
            node.conv.kernel.assign(
                np.eye(3)[1][:, None, None, None] * np.eye(3)[1][:, None, None] * np.eye(4)
            )
        found = [
            ops.convert_to_numpy(level) for level in neck.call([ops.convert_to_tensor(f) for f in features])
        ]
        for got, expected in zip(found, by_hand(*features[1:], style), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def by_hand(p3, p4, p5, style):
    def mean(*maps):
        x = sum(maps) / (len(maps) + FUSION_EPSILON)
        return x / (1 + np.exp(-x))

    def up(x):
        return x.repeat(2, axis=1).repeat(2, axis=2)

    def down(x):
        _, height, width, _ = x.shape
        reach = (0, 1) if style == "efficientdet" else (-1, 0, 1)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        windows = [
            padded[:, 1 + i : 1 + i + height : 2, 1 + j : 1 + j + width : 2] for i in reach for j in reach
        ]
        return np.max(windows, axis=0)

    n3 = mean(p4, up(p5))
    n4 = mean(p3, up(n3))
    n5 = mean(p4, n3, down(n4))
    return n4, n5, mean(p5, down(n5))


def test_which_convolutions_edges_share():
    """C4 and C5 are read twice each, by nodes of their own level; C3 once."""
    counts = {}
    for style in ("efficientdet", "fcos"):
        neck = BiFPN(4, 2, norm=None, style=style)
        neck.build(shapes_of(8, 8, 16, 32))
        assert not neck.cells[1].convs
        counts[style] = len(neck.cells[0].convs)
    assert counts == {"efficientdet": 5, "fcos": 3}


def test_levels_of_odd_size():
    """FCOS's style pools to half rounded up, and repeats cells to the exact size; the other needs 128."""
    neck = BiFPN(4, 1, norm=None, style="fcos")
    features = features_of(96, 160, 4, 4, 4, 4)
    neck.build([feature.shape for feature in features])
    assert [level.shape[1:3] for level in neck(features)] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    assert (neck.divisor, BiFPN(levels=(3, 7)).divisor, BiFPN(levels=(3, 5)).divisor) == (32, 128, 32)


def test_unknown_settings_are_refused():
    for settings, word in (({"style": "nas"}, "efficientdet, fcos"), ({"levels": (3, 8)}, "last 5..7")):
        with pytest.raises(UserError, match=word):
            BiFPN(**settings)
    with pytest.raises(UserError, match="at least 1"):
        BiFPN(repeats=0)
