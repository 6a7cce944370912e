"""Classifiers of keras.applications with random weights: the same features, from both of Keras' files."""

import keras
import numpy as np
import pytest
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.errors import UserError
from kgarden.weights.files import read_weights, write_weights
from kgarden.weights.foreign import is_foreign, pixels_of
from kgarden.weights.projects import match_weights, project_of, weights_as

PROJECT = "keras-applications"
ENDS = {  # of C2..C5
    "ResNet50": [f"conv{stage}_block{blocks}_out" for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3))],
    "MobileNetV2": ["block_2_add", "block_5_add", "block_12_add", "block_16_project_BN"],
}
SETTINGS = {
    "ResNet50": {"name": "resnet50", "stride_in_1x1": True},
    "MobileNetV2": {"name": "mobilenet_v2", "padding": "same"},
}


class Trunk:
    """A detector as far as tables look at it: a backbone."""

    def __init__(self, settings):
        self.backbone = make_backbone(settings)
        self.backbone.build((None, None, None, 3))
        self.weights, self.neck = self.backbone.weights, keras.layers.Identity()


def their_model(name):
    """A model with statistics and biases that are not 0 and 1, and with its features as outputs."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        spread = {"bias": (-0.2, 0.2), "moving_mean": (-0.2, 0.2), "moving_variance": (0.8, 1.2)}
        if variable.name in spread:
            variable.assign(rng.uniform(*spread[variable.name], variable.shape))
    return model


def write_keras_2(model, path):
    """The form of the released files: names of layers, variables with ":0"."""
    import h5py

    with h5py.File(path, "w") as file:
        for layer in model.layers:
            for variable in layer.weights:
                is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                name = "depthwise_kernel" if is_depthwise else variable.name
                file[f"{layer.name}/{layer.name}/{name}:0"] = ops.convert_to_numpy(variable)


@pytest.mark.parametrize("name", ENDS)
def test_features_equal_keras(name, tmp_path):
    model = their_model(name)
    model.save_weights(tmp_path / "a.weights.h5")
    write_keras_2(model, tmp_path / "b.h5")
    trunk = Trunk(SETTINGS[name])
    values = []
    for path in (tmp_path / "a.weights.h5", tmp_path / "b.h5"):
        weights = read_weights(path)
        assert is_foreign(path) and project_of(weights) == PROJECT
        matched = match_weights(trunk, weights, PROJECT)
        assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
        values.append(matched.values)
    for path in values[0]:
        np.testing.assert_array_equal(values[0][path], values[1][path], err_msg=path)
    matched.assign_to(trunk)

    x = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype("float32")
    features = keras.Model(model.input, [model.get_layer(end).output for end in ENDS[name]])
    for got, wanted in zip(trunk.backbone(x), features(x), strict=True):
        wanted = ops.convert_to_numpy(wanted)
        np.testing.assert_allclose(ops.convert_to_numpy(got), wanted, atol=1e-4 * wanted.std())

    # and back: what is written under Keras' names is what was there
    write_weights(tmp_path / "c.safetensors", weights_as(trunk, PROJECT))
    written = read_weights(tmp_path / "c.safetensors")
    if name == "ResNet50":
        assert pixels_of(tmp_path / "c.safetensors")["mean"] == (103.939, 116.779, 123.68)
    again = match_weights(trunk, written, PROJECT).values
    for path in again:
        np.testing.assert_array_equal(again[path], matched.values[path], err_msg=path)


def test_what_shapes_cannot_tell_is_checked():
    for settings, message in (
        (
            {"name": "resnet50", "res2_channels": 16, "stem_channels": 8},
            "set model.backbone.stride_in_1x1: true",
        ),
        ({"name": "mobilenet_v2", "width": 0.1}, "set model.backbone.padding: same"),
        ({"name": "resnet18", "res2_channels": 8}, "has ResNet-50, 101 and 152 and MobileNetV2"),
    ):
        with pytest.raises(UserError, match=message):
            match_weights(Trunk(settings), {}, PROJECT)
