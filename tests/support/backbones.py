"""What the tests of several backbones share: blocks against mmdetection's, and numbers of parameters."""

import numpy as np
from keras import ops
from support.golden import assert_agrees, params
from support.unfilled import unfilled

from kgarden.backbones import make_backbone
from kgarden.layers.norm import EPSILON
from kgarden.weights.state_dict import load_state_dict


def assert_blocks_agree(golden, block_of, table_of):
    """A block for each case of a golden, with stored statistics and then with those of the batch.

    Args:
        golden:   its settings are {"bn_eps", "cases": {name: settings of a block}}.
        block_of: function of a case's settings, returns the block.
        table_of: function of a case's settings, returns the block's table of names, see `load_state_dict`.
    """
    s, got = params(golden), {}
    assert s["bn_eps"] == EPSILON
    for case, settings in s["cases"].items():
        block, x = block_of(settings), golden[f"{case}/x"]
        block.build(x.shape)
        load_state_dict(block, golden.state_dict(f"{case}/param/"), table_of(settings))
        got[f"{case}/y"] = ops.convert_to_numpy(block(x))
        got[f"{case}/y_train"] = ops.convert_to_numpy(block(x, training=True))
        assert block.compute_output_shape(x.shape) == got[f"{case}/y"].shape
    assert_agrees(golden, got)


def trained_parameters(settings):
    """Number of parameters that a backbone trains, the scales and shifts of its batch norms among them."""

    def build():
        backbone = make_backbone(settings)
        backbone.build((None, None, None, 3))
        return backbone

    backbone = unfilled(build)
    return sum(int(np.prod(variable.shape)) for variable in backbone.trainable_variables)
