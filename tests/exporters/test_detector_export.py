"""`export` of a detector: before it was called, after `fit`, in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.variants import VARIANTS

import kgarden
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.exporters import export_formats

pytestmark = pytest.mark.tensorflow
SETTINGS = {
    "model": {
        **VARIANTS["fcos"],
        "neck": {"channels": 32, "levels": [3, 5]},
        "dense_head": {"num_convs": 1, "size_ranges": [[0, 32], [32, 64], [64, 1_000_000]]},
        "selection": {"score_threshold": 0.0, "total": 5},
    },
    "data.short_side_px": 64,
    "data.long_side_px": 96,
    "data.canvases": [[64, 96]],
}


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    return build_model(load_recipe("quickstart", SETTINGS), class_names=["cup", "dish"])


def test_before_and_after_fit(detector, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype="uint8")

    def served(version):
        model = tf.saved_model.load(version)
        found = model.signatures["image_tensor"](inputs=tf.constant(images[:1]))
        y1, x1, y2, x2 = np.moveaxis(found["detection_boxes"][0].numpy(), -1, 0)
        return np.stack([96 * x1, 64 * y1, 96 * x2, 64 * y2], axis=-1), found["detection_scores"][0].numpy()

    first = detector.export(tmp_path)
    boxes, scores = served(first)
    found = kgarden.Predictor(detector)(images[0])
    np.testing.assert_allclose(boxes, found["boxes"], atol=1e-2)
    np.testing.assert_allclose(scores, found["scores"], rtol=1e-4)
    assert first == tmp_path / "1" and (first / "labels.txt").read_text() == "0 cup\n1 dish\n"

    detector.compile(optimizer=keras.optimizers.SGD(0.01), run_eagerly=True)
    boxes = [[[8, 8, 40, 40]], [[20, 20, 60, 60]]]
    detector.fit(images, {"boxes": boxes, "labels": [[0], [1]]}, batch_size=2, verbose=0)
    found = kgarden.Predictor(detector)(images[0])
    boxes, after = served(detector.export(tmp_path))
    np.testing.assert_allclose(after, found["scores"], rtol=1e-4)
    np.testing.assert_allclose(boxes, found["boxes"], atol=1e-2)
    assert np.abs(after - scores).max() > 1e-6


def test_arguments_reach_the_writers(detector, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(export_formats, "write_portable", lambda *args, **more: written.append((args, more)))
    detector.export(str(tmp_path), format="onnx", canvases=[[64, 96]], batch=2)
    detector.export(tmp_path, "litert")
    [(first, settings), (_, defaults)] = written
    assert first == (detector, detector.recipe, detector.categories, tmp_path)
    assert settings == {"form": "onnx", "canvases": [(64, 96)], "batch": 2}
    assert defaults == {"form": "litert", "canvases": [(64, 96)], "batch": 1}
    for arguments, settings in (
        (("served", "tf_saved_model"), {}),
        ((7,), {}),
        (("served", "onnx"), {"canvases": [(32, 32)]}),
        (("served",), {"batch": 1}),
    ):
        with pytest.raises(kgarden.UserError):
            detector.export(*arguments, **settings)


def test_exports_compute_in_float32(detector):
    assert export_formats._in_float32(detector) is detector
    half = build_model(load_recipe("quickstart", {**SETTINGS, "precision": "mixed_bfloat16"}), num_classes=2)
    half.set_weights(detector.get_weights())
    copy = export_formats._in_float32(half)
    x = {"images": np.full((1, 64, 96, 3), 77, "uint8"), "size_hw": np.int32([[64, 96]])}
    wanted, found = detector(x)["classes"][0], copy(x)["classes"][0]
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
