"""State dicts of PyTorch projects: names, layouts, and what is refused."""

import keras
import numpy as np
import pytest
from keras import ops

from kgarden.errors import UserError
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict, our_name, to_our_layout

pytestmark = pytest.mark.both_backends

SMALL = (
    (r"module\.conv", "small/conv"),
    (r"module\.fc", "small/fc"),
    (r"module\.scales\.(\d+)", r"small/s[\1]"),
)


def small_model():
    """A convolution of 3 to 2 channels, a dense layer of 2 to 4, and a vector of two scales."""

    class Small(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="small")
            self.conv = keras.layers.Conv2D(2, 3, name="conv")
            self.fc = keras.layers.Dense(4, name="fc")

        def build(self, shape):
            self.conv.build((None, 5, 5, 3))
            self.fc.build((None, 2))
            self.s = self.add_weight(name="s", shape=(2,))
            self.built = True

    layer = Small()
    layer.build(None)
    return layer


def state():
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (2, 3, 3, 3), "conv.bias": (2,), "fc.weight": (4, 2), "fc.bias": (4,)}
    arrays = {f"module.{name}": rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    return arrays | {"module.scales.0.scale": np.float32([7]), "module.scales.1.scale": np.float32([8])}


def test_arrays_land_in_our_layout():
    layer, arrays = small_model(), state()
    load_state_dict(layer, arrays, SMALL)
    kernel = ops.convert_to_numpy(layer.conv.kernel)
    assert kernel[0, 1, 2, 1] == arrays["module.conv.weight"][1, 2, 0, 1]  # OIHW -> HWIO
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.fc.kernel), arrays["module.fc.weight"].T)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.s), [7, 8])


def test_the_first_dense_layer_of_a_roi_head_reads_channels_last():
    """(out, C * 2 * 2), channel first -> (2 * 2 * C, out)."""
    array = np.arange(12, dtype="float32").reshape(1, 12)  # channel c, cell (y, x): 4 c + 2 y + x
    np.testing.assert_array_equal(to_our_layout(array, 2)[:, 0], [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"module.deform.weight": np.zeros(2)}, "'module.deform.weight' has no counterpart in this model"),
        ({"module.fc.weight": np.zeros((4, 3))}, r"module.fc.weight has shape \(3, 4\) here"),
        ({"module.fc.bias": None}, "1 variables got no value, first small/fc/bias"),
        ({"module.scales.1.scale": None}, "1 variables got no value, first small/s"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message):
    arrays = {name: array for name, array in {**state(), **change}.items() if array is not None}
    with pytest.raises(UserError, match=message):
        load_state_dict(small_model(), arrays, SMALL)


def test_values_may_be_left_out_where_that_is_asked_for():
    arrays = state()
    del arrays["module.fc.weight"], arrays["module.scales.0.scale"]
    layer = small_model()
    kept = ops.convert_to_numpy(layer.fc.kernel)
    (scales,) = [variable for variable in layer.weights if variable.path.endswith("small/s")]
    scales.assign([3.0, 4.0])
    load_state_dict(
        layer, {**arrays, "optimizer.step": np.zeros(1)}, SMALL, ignore=["optimizer.*"], partial=True
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.fc.kernel), kept)
    assert ops.convert_to_numpy(scales).tolist() == [3.0, 8.0]


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("backbone.bottom_up.res3.2.conv1.norm.running_mean", "backbone/res3_2/conv1/norm.running_mean"),
        ("proposal_generator.centernet_head.bbox_tower.9.weight", "centernet/box_tower/conv3.weight"),
        ("roi_heads.box_head.2.fc1.weight", "roi_head/box_head2/features/fc1.weight"),
        ("roi_heads.something.else", None),
    ],
)
def test_names_of_detectron2(theirs, ours):
    assert our_name(theirs, TABLE) == ours
