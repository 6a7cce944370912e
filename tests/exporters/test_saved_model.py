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
from kgarden.exporters.saved_model import write_saved_model
from kgarden.inference.predictor import Predictor

pytestmark = pytest.mark.tensorflow

CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 2, "name": "dish"}, {"id": 90, "name": "spoon"}]
MODEL = {
    "name": "centernet2",
    "backbone": RESNET10,
    "neck": {"channels": 32, "levels": [3, 5]},
    "proposer": {
        "num_convs": 1,
        "train": 50,
        "test": 30,
        "size_ranges": [[0, 64], [48, 128], [96, 1000000]],
    },
    "roi_head": {"name": "faster", "width": 16},
    "selection": {"score_threshold": 0.0, "total": 25},
}
SIZES = {"data.short_side_px": 96, "data.long_side_px": 128, "data.canvases": [[96, 128], [128, 96]]}

# Runs where only TensorFlow may be imported; prints every output of every signature for the first COUNT
# files, and if there are others, what is said of requests with them and what the warm-up requests give.
CLIENT = """
import json, pathlib, sys
sys.modules["kgarden"] = sys.modules["keras"] = sys.modules["tfrecords"] = None
import numpy as np, tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
folder, count, *files = sys.argv[1:]
model = tf.saved_model.load(folder)
contents = [pathlib.Path(file).read_bytes() for file in files]
contents, bad = contents[:int(count)], contents[int(count):]

def record(content):
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": value})).SerializeToString()

def answer(name, request):
    outputs = model.signatures[name](inputs=tf.constant(request))
    return {key: out.numpy().tolist() for key, out in outputs.items()}

def fault(name, request):
    try:
        answer(name, request)
        return "answered"
    except tf.errors.InvalidArgumentError as error:
        return error.message

found = {"serving_default": answer("serving_default", contents),
         "tf_example": answer("tf_example", [record(content) for content in contents])}
for number, content in enumerate(contents):
    pixels = tf.io.decode_image(content, channels=3) if number % 2 else tf.io.decode_jpeg(
        content, channels=3, dct_method="INTEGER_ACCURATE")
    found[f"image_tensor {number}"] = answer("image_tensor", pixels[None])
more = {}
if bad:
    good = contents[0]
    more["faults"] = [
        fault("serving_default", [good, bad[0], good, *bad[1:]]),
        fault("serving_default", bad[:1]),
        fault("tf_example", [record(good), record(bad[0]), b"no record", record(good)]),
    ]
    empty = model.signatures["serving_default"](inputs=tf.constant([], tf.string))
    more["empty"] = empty["num_detections"].shape.as_list()
    more["warm_up"] = []
    for one in tf.data.TFRecordDataset(folder + "/assets.extra/tf_serving_warmup_requests"):
        request = prediction_log_pb2.PredictionLog.FromString(one.numpy()).predict_log.request
        name = request.model_spec.signature_name
        found_by = answer(name, tf.make_ndarray(request.inputs["inputs"]))
        more["warm_up"].append([name, np.shape(found_by["detection_boxes"])])
print(json.dumps([found, more]))
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


def answers(version, files, bad=()):
    """({signature: {output: array}}, {what else was asked: answer}).

    image_tensor is asked for one picture each time: "image_tensor 0", ...
    """
    client = [sys.executable, "-c", CLIENT, version, len(files), *files, *bad]
    run = subprocess.run([*map(str, client)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found, more = json.loads(run.stdout.splitlines()[-1])
    return {name: {key: np.array(value) for key, value in out.items()} for name, out in found.items()}, more


@pytest.fixture(scope="module")
def answered(exported, tmp_path_factory):
    """What one process answers to two images, and to files cut, no image, empty, or of 20000 x 20000 px."""
    folder = tmp_path_factory.mktemp("bad")
    *_, version, files = exported
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    contents = {"cut": files[0].read_bytes()[:600], "text": b"<html>", "bomb": bomb, "none": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return answers(version, files, [folder / name for name in contents])


def test_all_signatures_agree_with_predictor_without_kgarden(exported, answered):
    detector, recipe, _, files = exported
    found, _ = answered
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
    found, _ = answers(version, files)
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


def test_warm_up_requests_run(answered):
    names, shapes = zip(*answered[1]["warm_up"], strict=True)
    assert sorted(names) == ["image_tensor", "serving_default", "tf_example"]
    assert all(shape == [1, 25, 4] for shape in shapes)


def test_existing_file_is_rejected(exported, tmp_path):
    detector, recipe, *_ = exported
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write_saved_model(detector, recipe, CATEGORIES, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_images_that_cannot_be_decoded_are_named(answered):
    first, alone, records = answered[1]["faults"]
    assert "inputs[1, 3, 4, 5] cannot be decoded" in first
    assert "inputs[0] cannot be decoded" in alone
    assert "inputs[1, 2] cannot be decoded" in records
    assert answered[1]["empty"] == [0]
