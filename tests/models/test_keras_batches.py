"""fit, evaluate and predict on batches as a Keras user has them; CocoMetrics among callbacks."""

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops
from support.marks import slow_on_jax
from support.variants import CLASSES, VARIANTS, batch

import kgarden
from kgarden.errors import UserError
from kgarden.models import build_detector

pytestmark = pytest.mark.both_backends
ON_JAX = keras.backend.backend() == "jax"
COMPILED = {"jit_compile": ON_JAX, "run_eagerly": not ON_JAX}  # a graph takes longer than a few steps
HEIGHT, WIDTH = 56, 92  # no multiple of 32: detectors pad to 64 x 96


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    detector = build_detector({**VARIANTS["fcos"], "selection": {"score_threshold": 0.0}}, CLASSES)
    detector.compile(optimizer=keras.optimizers.SGD(0.001), **COMPILED)
    return detector


@pytest.fixture(scope="module")
def complete():
    """(x, y) of kgarden's pipeline: padded canvas, padded objects, every key."""
    x, y = batch()
    x["images"][:, HEIGHT:] = x["images"][:, :, WIDTH:] = 0
    return x, {key: value for key, value in y.items() if key != "masks"}


def as_users_have_them(complete):
    """The same images without padding, and the objects of each in arrays of their own length."""
    x, y = complete
    kept = [row >= 0 for row in y["labels"]]
    boxes = [boxes[rows] for boxes, rows in zip(y["boxes"], kept, strict=True)]
    labels = [labels[rows].astype("int64") for labels, rows in zip(y["labels"], kept, strict=True)]
    return x["images"][:, :HEIGHT, :WIDTH], {"boxes": boxes, "labels": labels}


def loss(detector, *data):
    return detector.evaluate(*data, batch_size=2, verbose=0, return_dict=True)["loss"]


def test_losses_and_detections_are_those_of_complete_batches(detector, complete):
    images, y = as_users_have_them(complete)
    wanted = loss(detector, *complete)
    assert loss(detector, images, y) == pytest.approx(wanted, rel=1e-5)
    assert loss(detector, images.astype("float32"), y) == pytest.approx(wanted, rel=1e-5)
    expected = detector.inference_model()(complete[0])
    found = detector.predict(images, verbose=0)
    assert found.keys() == expected.keys() and found["valid"].any()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], ops.convert_to_numpy(value), atol=1e-4)
    assert detector.predict(images, verbose=0)["boxes"].shape == found["boxes"].shape


@pytest.mark.tensorflow
def test_data_sets_of_ragged_boxes(detector, complete):
    import tensorflow as tf

    images, y = as_users_have_them(complete)
    y = {"boxes": [y["boxes"][0], y["boxes"][1][:1]], "labels": [y["labels"][0], y["labels"][1][:1]]}
    ragged = {key: tf.ragged.constant([one.tolist() for one in y[key]], ragged_rank=1) for key in y}
    data = tf.data.Dataset.from_tensor_slices((images, ragged))
    assert loss(detector, data.batch(2)) == pytest.approx(loss(detector, images, y), rel=1e-5)
    np.testing.assert_allclose(
        detector.predict(data.batch(2), verbose=0)["boxes"], detector.predict(images, verbose=0)["boxes"]
    )
    with pytest.raises(UserError, match="batch the data set"):
        detector.fit(data)
    ragged["labels"] += CLASSES
    with pytest.raises(UserError, match=f"of {CLASSES} classes"):
        detector.evaluate(tf.data.Dataset.from_tensor_slices((images, ragged)).batch(2))


def test_ground_truth_is_checked_in_one_line(detector, complete):
    images, y = as_users_have_them(complete)
    first = y["boxes"][0]

    def with_boxes(boxes):
        return {**y, "boxes": [boxes, y["boxes"][1]]}

    empty = [np.zeros((0, 4), "float32"), np.zeros((0, 4), "float32")]
    for data, sentence in [
        ((images, None), "y is missing"),
        ((images, {"bbox": first}), "y needs \"boxes\" .* it has 'bbox'"),
        ((images[0], y), r"images have shape \(56, 92, 3\)"),
        (({"pictures": images}, y), "x has no \"images\", only 'pictures'"),
        ((images[:1], y), "1 images, but boxes of 2 and labels of 2"),
        ((images, {**y, "boxes": empty}), "differ in the number of objects"),
        ((images / 255, y), "images are fractions"),
        ((images, {**y, "boxes": [one / WIDTH for one in y["boxes"]]}), "boxes are fractions"),
        ((images, with_boxes(first[:, [2, 3, 0, 1]])), "image 0, object 0: box .* has no area: xyxy"),
        ((images, with_boxes(first + [0, 0, WIDTH, 0])), "box .* outside of its image of 92x56 px"),
        ((images, with_boxes(first - [0, HEIGHT, 0, 0])), "box .* outside of its image of 92x56 px"),
        ((images, {**y, "labels": [one + CLASSES for one in y["labels"]]}), "object 0: label .* classes"),
        ((images, {**y, "labels": [one * 0 - 2 for one in y["labels"]]}), "object 0: label -2 of"),
    ]:
        with pytest.raises(UserError, match=sentence):
            detector.fit(*data, verbose=0)
    for pair in (images, y, None), (images,):
        with pytest.raises(UserError, match=rf"validation_data has {len(pair)} parts"):
            detector.fit(images, y, validation_data=pair)
    assert np.isfinite(loss(detector, images, {"boxes": empty, "labels": [[], []]}))  # images of background
    masked = build_detector(VARIANTS["mask_rcnn"], CLASSES)
    with pytest.raises(UserError, match='y needs "masks" for this detector'):
        masked.fit(images, y)


@slow_on_jax
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """Both parts on TensorFlow, the first one on JAX; a small model, eager steps."""
    page = (pathlib.Path(__file__).parents[2] / "docs/keras.md").read_text()
    on_both, on_tensorflow = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    smaller = {
        'kgarden.load_recipe("quickstart", {"model.backbone.norm": "gn"})': "small",
        "AdamW(1e-3)": "AdamW(1e-3), run_eagerly=True",
        "epochs=2": "epochs=1",
    }
    for old, new in smaller.items():
        assert old in on_both
        on_both = on_both.replace(old, new)
    sizes = {"data.short_side_px": 64, "data.long_side_px": 96, "data.canvases": [[64, 96]]}
    names = {"small": kgarden.load_recipe("quickstart", {"model": VARIANTS["fcos"], **sizes})}
    monkeypatch.chdir(tmp_path)
    exec(on_both, names)
    assert names["found"]["boxes"].shape[0] == 8 and names["first"].shape[1] == 4
    assert names["detector"].class_names == ["blue", "red"]
    if ON_JAX:
        with pytest.raises(UserError, match="export does not support KERAS_BACKEND=jax: save the detector"):
            names["detector"].export("served")
        return
    exec(on_tensorflow, names)
    served = names["answer"]["detection_boxes"][0].numpy()[:, [1, 0, 3, 2]] * [96, 64, 96, 64]
    count = int(names["answer"]["num_detections"][0])
    kept = names["found"]["valid"][0].sum()
    assert count == kept and len(names["results"]) == 8
    np.testing.assert_allclose(served[:count], names["found"]["boxes"][0][:count], atol=0.01)


class Perfect:
    """An inference model that finds every object of a batch, and a few at wrong places."""

    def __init__(self, y):
        self.y = y

    def predict_on_batch(self, x):
        valid = self.y["labels"] >= 0
        scores = np.where(valid, 0.9, 0.0).astype("float32")
        labels = np.maximum(self.y["labels"], 0)
        return {"boxes": self.y["boxes"], "labels": labels, "scores": scores, "valid": valid}


def test_callbacks_see_the_ap_of_validation_data(detector, complete, monkeypatch, tmp_path):
    images, y = as_users_have_them(complete)
    found = Perfect(complete[1])
    monkeypatch.setattr(detector, "inference_model_to_predict", lambda: found)
    detector.class_names = [f"class {n}" for n in range(CLASSES)]
    metrics = kgarden.CocoMetrics((images, y), every=2)
    stop = keras.callbacks.EarlyStopping("val_AP50", mode="max", patience=1)
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_AP", mode="max", save_best_only=True)
    callbacks = [metrics, stop, best]
    history = detector.fit(images, y, epochs=4, callbacks=callbacks, verbose=0, validation_data=(images, y))
    assert history.history["val_AP"] == history.history["val_AP50"] == pytest.approx([100.0, 100.0])
    assert {"loss", "val_loss", "val_AP75"} <= history.history.keys()
    assert [row["name"] for row in metrics.evaluation["per_class"]] == detector.class_names
    assert "first_bad_step" not in history.history and (tmp_path / "best.keras").exists()
    assert [row["objects"] for row in metrics.evaluation["per_class"]] == np.bincount(
        np.concatenate(y["labels"]), minlength=CLASSES
    ).tolist()

    x, objects = complete
    twice = (x, {**objects, "original_hw": 2 * x["size_hw"]})  # as build_datasets yields it, and a filler row
    twice[1]["image_id"] = np.array([7, -1])
    truth = {"images": [], "annotations": []}
    of_twice = kgarden.CocoMetrics(twice)
    of_twice.set_model(detector)
    [(_, meta)] = of_twice._batches(truth)
    assert meta["image_id"].tolist() == [1, -1]
    assert truth["images"] == [{"id": 1, "height": 2 * HEIGHT, "width": 2 * WIDTH}]
    corners = [[a, b, a + c, b + d] for a, b, c, d in (one["bbox"] for one in truth["annotations"])]
    np.testing.assert_allclose(corners, 2 * objects["boxes"][0][objects["labels"][0] >= 0], rtol=1e-6)

    narrow = np.array(complete[1]["boxes"])
    narrow[..., 2] -= 0.32 * (
        narrow[..., 2] - narrow[..., 0]
    )  # IoU 0.68: right up to 0.65: 4 of 10 thresholds
    found.y = {**complete[1], "boxes": narrow}
    logs = {}
    metrics.on_epoch_end(1, logs)
    assert logs == pytest.approx({"val_AP": 40.0, "val_AP50": 100.0, "val_AP75": 0.0})
    found.y = complete[1]
    metrics.on_epoch_end(2, logs)  # between two evaluations: the last values
    assert logs["val_AP"] == pytest.approx(40.0)
    for settings, sentence in (
        ({"data": (images, y), "class_names": ["a", "b"]}, "2 class names"),
        ({"data": (images, {"boxes": [[], []], "labels": [[], []]})}, "hold no object"),
    ):
        metrics = kgarden.CocoMetrics(**settings)
        metrics.set_model(detector)
        with pytest.raises(UserError, match=sentence):
            metrics.evaluate()
    with pytest.raises(UserError, match="every is 0"):
        kgarden.CocoMetrics((images, y), every=0)
