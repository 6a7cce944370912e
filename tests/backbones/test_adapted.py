"""Backbones of other libraries: levels by stride, frozen stages, norms, pixels; presets of the real ones."""

import importlib
import sys
import types

import keras
import numpy as np
import pytest
from support.variants import batch

from kgarden.backbones import make_backbone
from kgarden.backbones.adapted import AdaptedBackbone
from kgarden.errors import UserError
from kgarden.layers.pixels import pixels_of_preset
from kgarden.models import build_detector

IMAGES = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
STAGES = ("stem", "c2", "c3", "c4", "c5", "c6")


def small_network(**shape):
    """(network, {"stem": its feature, "c2": ..., }): a strided convolution and a batch norm each."""
    x = image = keras.Input((shape.get("height"), shape.get("width"), 3))
    features = {}
    for number, name in enumerate(STAGES):
        x = keras.layers.Conv2D(4 + number, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
        features[name] = x
    return keras.Model(image, x), features


def adapted(features=None, **settings):
    network, known = small_network()
    return network, AdaptedBackbone(network, features or list(known.values())[::-1], "test:small", **settings)


def same(one, other, atol=0.0):
    one, other = map(keras.ops.convert_to_numpy, (one, other))
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def pair():
    return adapted(norm="bn", freeze_at=2)


def test_levels_are_told_by_their_stride(pair):
    """Whatever the order and the number of features: C2..C5 are those at strides 4 to 32."""
    network, backbone = pair
    assert backbone.strides == [4, 8, 16, 32] and backbone.channels == [5, 6, 7, 8]
    expected = keras.Model(network.inputs[0], [network.get_layer(f"{s}_bn").output for s in STAGES[1:5]])
    for level, other in zip(backbone(IMAGES), expected(IMAGES), strict=True):
        same(level, other)


def test_of_several_features_at_a_stride_the_last_counts():
    network, known = small_network()
    first = network.get_layer("c3_conv").output
    backbone = AdaptedBackbone(network, [first, *known.values()], "test:small")
    assert backbone.network.outputs[1] is known["c3"]


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_do_not_train(freeze_at):
    _, backbone = adapted(norm="bn", freeze_at=freeze_at)
    trained = {layer.name for layer in backbone.network.layers if layer.trainable_variables}
    assert trained == {f"{name}_{part}" for name in STAGES[freeze_at:5] for part in ("conv", "bn")}


def statistics(backbone):
    norms = [layer for layer in backbone.network.layers if layer.name.endswith("_bn")]
    return {layer.name: keras.ops.convert_to_numpy(layer.moving_mean) for layer in norms}


def test_batch_norms_outside_of_frozen_stages_use_the_batch(pair):
    _, backbone = pair
    before = statistics(backbone)
    backbone(IMAGES, training=True)
    after = statistics(backbone)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        "c3_bn",
        "c4_bn",
        "c5_bn",
    }


def test_frozen_batch_norms_keep_their_statistics_and_do_not_train():
    """The default; convolutions train nevertheless."""
    _, backbone = adapted()
    before = statistics(backbone)
    for one, other in zip(backbone(IMAGES, training=True), backbone(IMAGES), strict=True):
        same(one, other)
    assert all(np.array_equal(before[name], value) for name, value in statistics(backbone).items())
    assert len(backbone.trainable_variables) == 2 * 5


def test_synchronised_batch_norm_is_that_of_keras():
    _, backbone = adapted(norm="sync_bn")
    assert backbone.network.get_layer("c2_bn").synchronized
    assert not adapted(norm="bn")[1].network.get_layer("c2_bn").synchronized


def test_what_is_no_backbone_is_refused():
    network, known = small_network()
    with pytest.raises(UserError, match=r"test:x: no features at stride 4, 16, only at 8, 32; .* needs 4, 8"):
        AdaptedBackbone(network, [known["c3"], known["c5"]], "test:x")
    fixed, features = small_network(height=64, width=64)
    with pytest.raises(UserError, match=r"test:x: takes images of \(64, 64, 3\), not of 3 channels and any"):
        AdaptedBackbone(fixed, list(features.values()), "test:x")
    with pytest.raises(UserError, match="norm 'gn' of test:small: one of frozen_bn, bn, sync_bn"):
        adapted(norm="gn")
    with pytest.raises(UserError, match="freeze_at is 6"):
        adapted(freeze_at=6)


def test_pixels_of_a_preset_are_taken_or_must_be_given():
    expected = {"mean": [123.675, 116.28, 103.53], "std": [58.3951, 57.12, 57.375], "order": "rgb"}
    assert pixels_of_preset(None, expected, "x") == expected
    assert pixels_of_preset("torchvision", expected, "x") == "torchvision"
    assert pixels_of_preset("msra", None, "x") == "msra"
    with pytest.raises(UserError, match="x expects pixels of .*rgb.*, model.pixels is msra; leave"):
        pixels_of_preset("msra", expected, "x")
    with pytest.raises(UserError, match="x does not say which pixels it expects; set model.pixels"):
        pixels_of_preset(None, None, "x")


def detector_on(backbone, **more):
    model = {"name": "fcos", "backbone": backbone, "neck": {"channels": 32}, "dense_head": {"num_convs": 1}}
    return build_detector({**model, **more}, 3)


def test_a_detector_normalises_pixels_as_its_backbone_expects():
    pixels = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "order": "rgb"}
    detector = detector_on(adapted(pixels=pixels)[1])
    assert (detector.pixels.mean, detector.pixels.std, detector.pixels.order) == tuple(pixels.values())
    assert len(detector.backbone.trainable_variables) == 2 * 5


def test_without_the_library_one_line_names_the_extra(monkeypatch):
    for name, module, extra in (
        ("kerashub:a", "keras_hub", "keras-hub"),
        ("kerascv:a", "keras_cv", "keras-cv"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            UserError, match=rf"{name}: {extra} cannot be imported .*pip install .*\[{extra}\]"
        ):
            make_backbone(name)
    with pytest.raises(UserError, match="model.backbone.name 'kerashup:a': one of resnet18"):
        make_backbone("kerashup:a")


def test_a_preset_that_cannot_be_loaded_is_one_line(monkeypatch):
    def from_preset(preset, **settings):
        raise ValueError(f"Unknown preset {preset}\nmore lines")

    backbone = types.SimpleNamespace(from_preset=from_preset)
    fake = types.SimpleNamespace(__name__="keras_hub", models=types.SimpleNamespace(Backbone=backbone))
    monkeypatch.setitem(sys.modules, "keras_hub", fake)
    with pytest.raises(
        UserError, match="kerashub:b: keras_hub cannot load it: Unknown preset b; give"
    ) as seen:
        make_backbone({"name": "kerashub:b", "freeze_at": 1})
    assert "\n" not in str(seen.value)
    with pytest.raises(UserError, match=r"model\.backbone.*freeze.*freeze_at"):
        make_backbone({"name": "kerashub:b", "freeze": 1})


# --- with the libraries -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_preset(tmp_path_factory):
    """(directory of a small ResNet of KerasHub with its image converter, the network)"""
    pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    hub = importlib.import_module("keras_hub")
    folder = tmp_path_factory.mktemp("hub")
    network = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 12, 16],
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    network.save_to_preset(str(folder))
    scale, offset = (
        [1 / 58.395, 1 / 57.12, 1 / 57.375],
        [-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375],
    )
    converter = hub.layers.ResNetImageConverter(image_size=(64, 64), scale=scale, offset=offset)
    converter.save_to_preset(str(folder))
    return folder, network


def test_a_preset_of_kerashub_becomes_a_detector_that_trains(hub_preset, tmp_path):
    """Its features and weights, its pixels, a step of training, and weights that come back from a file."""
    folder, network = hub_preset
    settings = {"name": f"kerashub:{folder}", "norm": "bn", "freeze_at": 2}
    detector = detector_on(settings)
    for level, key in zip(detector.backbone(IMAGES), ("P2", "P3", "P4", "P5"), strict=True):
        theirs = keras.Model(network.inputs[0], network.pyramid_outputs[key])(IMAGES)
        same(level, theirs, atol=1e-5)
    np.testing.assert_allclose(detector.pixels.mean, [123.675, 116.28, 103.53], rtol=1e-5)
    np.testing.assert_allclose(detector.pixels.std, [58.395, 57.12, 57.375], rtol=1e-5)
    trained = {variable.path for variable in detector.backbone.trainable_variables}
    assert trained and not any("conv1" in path or "stack0" in path for path in trained)

    detector.compile(optimizer=keras.optimizers.SGD(0.01))
    assert np.isfinite(detector.train_on_batch(*batch())).all()
    detector.save_weights(tmp_path / "a.weights.h5")
    other = detector_on({**settings, "load_weights": False})
    other.load_weights(tmp_path / "a.weights.h5")
    for one, two in zip(detector.backbone(IMAGES), other.backbone(IMAGES), strict=True):
        same(one, two)
    with pytest.raises(UserError, match="expects pixels of .*model.pixels is msra"):
        detector_on(settings, pixels="msra")


def test_a_preset_of_kerashub_without_its_converter_needs_pixels(hub_preset, tmp_path):
    folder, _ = hub_preset
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="does not say which pixels it expects"):
        detector_on(f"kerashub:{tmp_path}")
    assert detector_on(f"kerashub:{tmp_path}", pixels="torchvision").pixels.order == "rgb"


def test_a_preset_of_kerascv_gives_its_own_features(tmp_path):
    pytest.importorskip("keras_cv", reason="keras-cv is not installed", exc_type=ImportError)
    cv = importlib.import_module("keras_cv")
    save_to_preset = importlib.import_module("keras_cv.src.utils.preset_utils").save_to_preset
    network = cv.models.ResNetV2Backbone(
        stackwise_filters=[8, 8, 12, 16],
        stackwise_blocks=[2] * 4,
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
    )
    save_to_preset(network, str(tmp_path))
    backbone = make_backbone(f"kerascv:{tmp_path}")
    assert backbone.pixels == {
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "order": "rgb",
    }  # it divides by 255 itself
    for level, name in zip(backbone(IMAGES), network.pyramid_level_inputs.values(), strict=True):
        theirs = keras.Model(network.inputs[0], network.get_layer(name).output)(IMAGES)
        same(level, theirs, atol=1e-5)
