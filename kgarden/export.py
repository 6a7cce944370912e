"""From a run to a SavedModel that needs TensorFlow alone.

The graph holds the whole path of `kgarden predict`: decoding, resizing into the picture's own canvas,
the network, and the way back. Outputs are named as in the TensorFlow Object Detection API.
"""

import datetime
import json
import os
import pathlib
import shutil

import tensorflow as tf

from kgarden.build import test_sizes
from kgarden.data.canvas import canvas_of, resize_to_canvas
from kgarden.masks import THRESHOLD
from kgarden.predict import to_original
from kgarden.schema import BOXES, IMAGES, LABELS, MASKS, SCORES, SIZE_HW, VALID, UserError
from tfrecords.pictures import decode

WARMUP_SIDE = 64  # px of the grey picture in the warm-up requests


def export_saved_model(run, to):
    """Write TO/1/ (or the next free number), whole or not at all.

    Signatures, each with one argument `inputs` and batch size free:
        serving_default: string [B], bytes of JPEG or PNG files of any sizes.
        image_tensor:    uint8 [B, H, W, 3], RGB.
        tf_example:      string [B], serialised records with `image/encoded`.
    Outputs: detection_boxes (B, K, 4) float32, ymin, xmin, ymax, xmax over the original picture's height
    and width; detection_scores (B, K); detection_classes (B, K) float32, the data set's own ids as in
    labels.txt; num_detections (B,) float32; of a model with a mask head also detection_masks (B, K, S, S)
    float32, probabilities over the boxes. Rows beyond num_detections are zero.

    Args:
        run: a run directory; its best weights are exported.
        to:  parent of the version directory.
    Returns:
        path of the version directory.
    """
    from kgarden.build import load_run

    recipe, detector, categories = load_run(run)
    return write_saved_model(detector, recipe, categories, to)


def write_saved_model(detector, recipe, categories, to):
    """As `export_saved_model`, for a detector in memory.

    Args:
        detector:   with its weights.
        recipe:     what it was trained with.
        categories: [{"id", "name"}, ...] in label order.
        to:         parent of the version directory.
    """
    to = pathlib.Path(to)
    if to.exists() and not to.is_dir():
        raise UserError(f"{to}: is a file; name a directory for the export")
    to.mkdir(parents=True, exist_ok=True)
    aside = to / f".exporting.{os.getpid()}"
    try:
        graph = ServingGraph(detector, recipe, categories)
        signatures = graph.signatures()
        tf.saved_model.save(graph, str(aside), signatures=signatures)
        outputs = signatures["serving_default"].structured_outputs
        _write_beside(aside, graph, outputs, recipe, categories)
        version = to / str(1 + max([int(p.name) for p in to.iterdir() if p.name.isdigit()], default=0))
        os.replace(aside, version)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return version


class ServingGraph(tf.Module):
    """The functions that a SavedModel carries, with the detector's variables."""

    def __init__(self, detector, recipe, categories):
        super().__init__(name="kgarden")
        self._model = detector.inference_model()
        self.weights = [variable.value for variable in detector.variables]
        self._sizes = test_sizes(recipe)
        self._class_ids = tf.constant([float(category["id"]) for category in categories], tf.float32)
        # Traced once for each canvas; the graph holds them all.
        self._canvases = [tuple(int(side) for side in canvas) for canvas in self._sizes["canvases"]]

    def signatures(self):
        """name -> concrete function."""
        strings = tf.TensorSpec([None], tf.string, name="inputs")
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="inputs")
        return {
            "serving_default": tf.function(self._of_files).get_concrete_function(strings),
            "image_tensor": tf.function(self._of_pixels).get_concrete_function(pixels),
            "tf_example": tf.function(self._of_records).get_concrete_function(strings),
        }

    def _of_files(self, inputs):
        return self._detect(inputs, decode)

    def _of_pixels(self, inputs):
        return self._detect(inputs, lambda picture: picture)

    def _of_records(self, inputs):
        features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        encoded = tf.io.parse_example(inputs, features)["image/encoded"]
        return self._detect(encoded, decode)

    def _detect(self, inputs, read):
        """Each picture through its own canvas: the answer does not depend on what else is in the request."""
        height = max(canvas[0] for canvas in self._canvases)
        width = max(canvas[1] for canvas in self._canvases)

        def prepare(one):
            picture = read(one)
            original_hw = tf.shape(picture)[:2]
            canvas, size_hw = resize_to_canvas(picture, **self._sizes)
            number = canvas_of(
                original_hw, self._canvases, self._sizes["short_side_px"], self._sizes["long_side_px"]
            )
            missing = [[0, height - tf.shape(canvas)[0]], [0, width - tf.shape(canvas)[1]], [0, 0]]
            padded = tf.ensure_shape(tf.pad(canvas, missing), (height, width, 3))
            return padded, tf.cast(size_hw, tf.int32), original_hw, tf.cast(number, tf.int32)

        signature = (
            tf.TensorSpec((height, width, 3), tf.uint8),
            tf.TensorSpec((2,), tf.int32),
            tf.TensorSpec((2,), tf.int32),
            tf.TensorSpec((), tf.int32),
        )
        images, size_hw, original_hw, number = tf.map_fn(prepare, inputs, fn_output_signature=signature)
        parts = [
            self._detect_on(canvas, tf.where(number == index)[:, 0], images, size_hw, original_hw)
            for index, canvas in enumerate(self._canvases)
        ]
        order = tf.argsort(tf.argsort(number, stable=True), stable=True)  # parts come canvas by canvas
        found = {key: tf.gather(tf.concat([part[key] for part in parts], axis=0), order) for key in parts[0]}
        return self._named(found, original_hw)

    def _detect_on(self, canvas, rows, images, size_hw, original_hw):
        """Detections of the pictures of one canvas, those of `rows`, which may be none."""
        form = {}

        def run():
            x = {
                IMAGES: tf.gather(images[:, : canvas[0], : canvas[1]], rows),
                SIZE_HW: tf.gather(size_hw, rows),
            }
            found = to_original(self._model(x, training=False), x[SIZE_HW], tf.gather(original_hw, rows))
            found = {key: found[key] for key in (BOXES, SCORES, LABELS, VALID, MASKS) if key in found}
            form.update({key: (value.shape[1:], value.dtype) for key, value in found.items()})
            return found

        def none():  # traced after `run`: the model alone knows the form of its answer
            return {key: tf.zeros((0, *shape), dtype) for key, (shape, dtype) in form.items()}

        return tf.cond(tf.size(rows) > 0, run, none)

    def _named(self, found, original_hw):
        """Outputs of the Object Detection API; valid rows first."""
        order = tf.argsort(tf.cast(found[VALID], tf.int32), direction="DESCENDING", stable=True)
        found = {key: tf.gather(value, order, batch_dims=1) for key, value in found.items()}
        valid = found[VALID]
        high, wide = tf.split(tf.cast(original_hw, tf.float32), 2, axis=-1)
        x1, y1, x2, y2 = tf.unstack(found[BOXES], axis=-1)
        boxes = tf.stack([y1 / high, x1 / wide, y2 / high, x2 / wide], axis=-1)
        classes = tf.gather(self._class_ids, tf.maximum(found[LABELS], 0))
        outputs = {
            "detection_boxes": tf.where(valid[..., None], boxes, 0.0),
            "detection_scores": tf.where(valid, found[SCORES], 0.0),
            "detection_classes": tf.where(valid, classes, 0.0),
            "num_detections": tf.reduce_sum(tf.cast(valid, tf.float32), axis=-1),
        }
        if MASKS in found:
            outputs["detection_masks"] = tf.where(valid[..., None, None], found[MASKS], 0.0)
        return outputs


def _write_beside(directory, graph, outputs, recipe, categories):
    """labels.txt, recipe.yaml, metadata.json and warm-up requests."""
    lines = [f"{category['id']} {category['name']}" for category in categories]
    (directory / "labels.txt").write_text("\n".join(lines) + "\n")
    (directory / "recipe.yaml").write_text(recipe.to_yaml())
    metadata = {
        "model": recipe.model.name,
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "classes": categories,
        "max_detections": int(outputs["detection_scores"].shape[-1]),
        "boxes": "ymin, xmin, ymax, xmax, over the height and width of the original picture",
        **_metadata_of_masks(outputs),
        "canvases": [list(canvas) for canvas in graph._canvases],
        "exif": "orientation is not applied: turn pictures upright before sending them",
        "tensorflow": tf.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    (directory / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    _write_warmup(directory / "assets.extra", recipe.name)


def _metadata_of_masks(outputs):
    """Nothing for a model without masks."""
    if "detection_masks" not in outputs:
        return {}
    return {
        "masks": "probabilities over the box of each detection, at the centres of mask_side x mask_side "
        "cells, rows from the top; between the centres bilinear, and the object from mask_threshold on",
        "mask_side": int(outputs["detection_masks"].shape[-1]),
        "mask_threshold": THRESHOLD,
    }


def _write_warmup(directory, name):
    """One request for each signature, replayed by TensorFlow Serving before it takes traffic."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    directory.mkdir()
    grey = tf.fill((WARMUP_SIDE, WARMUP_SIDE, 3), tf.constant(128, tf.uint8))
    encoded = tf.io.encode_jpeg(grey).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    record = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
    requests = {
        "serving_default": [encoded],
        "image_tensor": grey[None],
        "tf_example": [record.SerializeToString()],
    }
    with tf.io.TFRecordWriter(str(directory / "tf_serving_warmup_requests")) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
