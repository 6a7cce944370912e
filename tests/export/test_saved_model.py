"""The SavedModel against Predictor: a process without kgarden and Keras must give the same detections."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.fake_detector import CELL, DISC, MaskedStandIn, pictures
from support.small_backbone import RESNET10

from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.export import write_saved_model
from kgarden.inference.predictor import Predictor

pytestmark = pytest.mark.tensorflow

CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 2, "name": "dish"}, {"id": 90, "name": "spoon"}]
MODEL = {
    "name": "centernet2",
    "backbone": RESNET10,
    "neck": {"channels": 32},
    "proposer": {"num_convs": 1, "train": 50, "test": 30},
    "roi_head": {"name": "faster", "width": 16},
    "selection": {"score_threshold": 0.0, "total": 25},
}
SIZES = {"data.short_side_px": 96, "data.long_side_px": 128, "data.canvases": [[96, 128], [128, 96]]}

# Runs where only TensorFlow may be imported; prints every output of every signature.
CLIENT = """
import json, pathlib, sys
sys.modules["kgarden"] = sys.modules["keras"] = sys.modules["tfrecords"] = None
import numpy as np, tensorflow as tf
folder, *files = sys.argv[1:]
model = tf.saved_model.load(folder)
contents = [pathlib.Path(file).read_bytes() for file in files]
def record(content):
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": value})).SerializeToString()
inputs = {"serving_default": contents, "tf_example": [record(content) for content in contents]}
found = {}
for name, value in inputs.items():
    answer = model.signatures[name](inputs=tf.constant(value))
    found[name] = {key: out.numpy().tolist() for key, out in answer.items()}
for number, content in enumerate(contents):
    pixels = tf.io.decode_image(content, channels=3) if number % 2 else tf.io.decode_jpeg(
        content, channels=3, dct_method="INTEGER_ACCURATE")
    answer = model.signatures["image_tensor"](inputs=pixels[None])
    found[f"image_tensor {number}"] = {key: out.numpy().tolist() for key, out in answer.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small detector with random weights, its export, and two pictures: a wide JPEG, a tall PNG."""
    folder = tmp_path_factory.mktemp("export")
    model = {key: value for key, value in MODEL.items() if key != "name"}
    recipe = load_recipe("quickstart", {"model": {"name": "centernet2", **model}, **SIZES})
    detector = build_model(recipe, len(CATEGORIES))
    rng = np.random.default_rng(0)
    for variable in detector.trainable_variables:  # scores far from their start, so that they differ
        if variable.path.endswith(("classes/kernel", "objectness/kernel")):
            variable.assign(variable + rng.normal(0, 0.01, variable.shape))
    files = []
    for name, (width, height) in {"wide.jpg": (300, 200), "tall.png": (150, 260)}.items():
        noise = rng.integers(0, 256, (height // 10, width // 10, 3), dtype="uint8")
        Image.fromarray(noise).resize((width, height)).save(folder / name, quality=90)
        files.append(folder / name)
    version = write_saved_model(detector, recipe, CATEGORIES, folder / "served")
    return detector, recipe, version, files


def answers(version, files):
    """{signature: {output: array}}; image_tensor is asked for one picture each time: "image_tensor 0", ..."""
    client = [sys.executable, "-c", CLIENT, str(version), *map(str, files)]
    run = subprocess.run(client, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return {
        name: {key: np.array(value) for key, value in out.items()}
        for name, out in json.loads(run.stdout.splitlines()[-1]).items()
    }


def test_all_signatures_agree_with_predictor_without_kgarden(exported):
    detector, recipe, version, files = exported
    found = answers(version, files)
    boxes_alone = {"detection_boxes", "detection_scores", "detection_classes", "num_detections"}
    assert all(out.keys() == boxes_alone for out in found.values())
    ids = np.array([category["id"] for category in CATEGORIES])
    for number, file in enumerate(files):
        expected = Predictor(detector, recipe, CATEGORIES)(str(file))
        valid = expected["valid"].astype(bool)
        height, width = np.array(Image.open(file)).shape[:2]
        boxes = expected["boxes"][valid][:, [1, 0, 3, 2]] / [height, width, height, width]
        assert valid.sum() > 5
        for name, row in (("serving_default", number), ("tf_example", number), (f"image_tensor {number}", 0)):
            answer = {key: value[row] for key, value in found[name].items()}
            assert answer["num_detections"] == valid.sum(), name
            assert answer["detection_boxes"].shape == (25, 4)
            answer = {key: value[: valid.sum()] for key, value in answer.items() if key != "num_detections"}
            np.testing.assert_allclose(answer["detection_scores"], expected["scores"][valid], atol=1e-4)
            np.testing.assert_allclose(answer["detection_boxes"], boxes, atol=1e-4)
            np.testing.assert_array_equal(answer["detection_classes"], ids[expected["labels"][valid]])


def test_files_beside_the_graph(exported):
    _, recipe, version, _ = exported
    assert version.name == "1"
    assert (version / "labels.txt").read_text() == "7 cup\n2 dish\n90 spoon\n"
    assert load_recipe(version / "recipe.yaml").digest() == recipe.digest()
    metadata = json.loads((version / "metadata.json").read_text())
    assert metadata["classes"] == CATEGORIES and metadata["max_detections"] == 25
    assert not [key for key in metadata if "mask" in key]


def test_masks_agree_with_predictor_in_all_signatures(tmp_path):
    """Discs of another size in each picture; requests mix pictures of two canvases, the second one first."""
    detector = MaskedStandIn(len(CATEGORIES))
    detector.build()
    canvases = [[64, 96], [96, 64]]
    sizes = {"data.short_side_px": 64, "data.long_side_px": 96, "data.canvases": canvases}
    recipe = load_recipe("quickstart", sizes)
    files = []
    for number, (width, height) in enumerate([(128, 192), (240, 160), (64, 96), (300, 200)]):
        (image,), _, _ = pictures(1, seed=number, size=(96, 64) if width < height else (64, 96), shape=DISC)
        files.append(tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}")
        Image.fromarray(image).resize((width, height)).save(files[-1])
    version = write_saved_model(detector, recipe, CATEGORIES, tmp_path / "served")
    found = answers(version, files)
    predictor = Predictor(detector, recipe, CATEGORIES)
    for number, file in enumerate(files):
        expected = predictor(str(file))
        height, width = np.array(Image.open(file)).shape[:2]
        assert 0.6 < (expected["masks"][0] > 0.5).mean() < 0.9 and not expected["valid"][1]
        for name, row in (("serving_default", number), ("tf_example", number), (f"image_tensor {number}", 0)):
            answer = {key: value[row] for key, value in found[name].items()}
            assert answer["detection_masks"].shape == (2, CELL, CELL) and answer["num_detections"] == 1
            np.testing.assert_allclose(answer["detection_masks"], expected["masks"], atol=1e-4)
            box = answer["detection_boxes"][0, [1, 0, 3, 2]] * [width, height, width, height]
            np.testing.assert_allclose(box, expected["boxes"][0], atol=0.02)
    metadata = json.loads((version / "metadata.json").read_text())
    assert metadata["mask_side"] == CELL and metadata["mask_threshold"] == 0.5
    assert "over the box" in metadata["masks"] and metadata["max_detections"] == 2
    types = tf.saved_model.load(str(version)).signatures["image_tensor"].structured_outputs
    assert types["detection_masks"].dtype == tf.float32


def test_warm_up_requests_run(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    version = exported[2]
    model = tf.saved_model.load(str(version))
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    asked = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        name = request.model_spec.signature_name
        answer = model.signatures[name](inputs=tf.constant(tf.make_ndarray(request.inputs["inputs"])))
        assert answer["detection_boxes"].shape == (1, 25, 4)
        asked.append(name)
    assert sorted(asked) == ["image_tensor", "serving_default", "tf_example"]


def test_existing_file_is_rejected(exported, tmp_path):
    detector, recipe, *_ = exported
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write_saved_model(detector, recipe, CATEGORIES, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


REFUSING = """
import json, sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
good, *bad = [open(name, "rb").read() for name in sys.argv[2:]]
value = lambda content: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
record = lambda content: tf.train.Example(
    features=tf.train.Features(feature={"image/encoded": value(content)})).SerializeToString()
found = []
for name, request in (
    ("serving_default", [good, bad[0], good, *bad[1:]]),
    ("serving_default", bad[:1]),
    ("tf_example", [record(good), record(bad[0]), b"no record", record(good)]),
):
    try:
        model.signatures[name](inputs=tf.constant(request))
        found.append("answered")
    except tf.errors.InvalidArgumentError as error:
        found.append(error.message)
empty = model.signatures["serving_default"](inputs=tf.constant([], tf.string))
found.append(empty["num_detections"].shape.as_list())
print(json.dumps(found))
"""


def test_images_that_cannot_be_decoded_are_named(exported, tmp_path):
    """Cut, no image, and a few bytes that claim 20000 x 20000 px."""
    _, _, version, (good, _) = exported
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    for name, content in (
        ("cut", good.read_bytes()[:600]),
        ("text", b"<html>"),
        ("bomb", bomb),
        ("none", b""),
    ):
        (tmp_path / name).write_bytes(content)
    client = [
        sys.executable,
        "-c",
        REFUSING,
        version,
        good,
        *(tmp_path / n for n in ("cut", "text", "bomb", "none")),
    ]
    run = subprocess.run([*map(str, client)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    first, alone, records, empty = json.loads(run.stdout.splitlines()[-1])
    assert "inputs[1, 3, 4, 5] cannot be decoded" in first
    assert "inputs[0] cannot be decoded" in alone
    assert "inputs[1, 2] cannot be decoded" in records
    assert empty == [0]
