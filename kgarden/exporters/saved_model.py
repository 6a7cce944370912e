"""SavedModel export: a graph for serving that needs TensorFlow only.

The graph contains all steps of `kgarden predict`: decoding, resizing into the image's canvas, the network,
and mapping boxes back. Outputs are named as in the TensorFlow Object Detection API.
"""

import pathlib

import tensorflow as tf

from kgarden.build import test_sizes
from kgarden.data.canvas import canvas_of, resize_to_canvas
from kgarden.exporters.network import COUNT, Network
from kgarden.exporters.version import new_version, write_beside
from kgarden.inference.postprocess import to_original
from kgarden.structures import BOXES, LABELS, MASKS, SCORES
from kgarden.utils.paste_masks import THRESHOLD
from tfrecords.images import MAX_PIXELS, decode

WARMUP_SIDE = 64  # px, side of the grey image in the warm-up requests


def write_saved_model(detector, recipe, categories: list[dict], to) -> pathlib.Path:
    """Writes a SavedModel to TO/1/ (or the next free version number), atomically.

    Signatures for images, each with one argument `inputs` of any batch size:
        serving_default: string [B], bytes of JPEG, PNG, GIF, BMP or WebP files of at most MAX_PIXELS.
        image_tensor:    uint8 [B, H, W, 3], RGB.
        tf_example:      string [B], serialised records with `image/encoded`.
    A request with an image that cannot be decoded is refused; the message lists the numbers of all such.
    Outputs: detection_boxes (B, K, 4) float32, ymin, xmin, ymax, xmax over the original image's height
    and width; detection_scores (B, K); detection_classes (B, K) float32, the data set's own ids as in
    labels.txt; num_detections (B,) float32; of a model with a mask head also detection_masks (B, K, S, S)
    float32, probabilities over the boxes. Rows beyond num_detections are zero.

    canvas_<H>x<W>, one for each canvas: the network only, see kgarden/exporters/network.py.

    Args:
        detector:   a Detector with its weights.
        recipe:     the recipe that it was trained with.
        categories: [{"id", "name"}, ...] in label order.
        to:         parent of the version directory.
    Returns:
        path of the version directory.
    """
    with new_version(to, "saved_model") as (aside, version):
        graph = ServingGraph(detector, recipe, categories)
        signatures = graph.signatures()
        tf.saved_model.save(graph, str(aside), signatures=signatures)
        outputs = signatures["serving_default"].structured_outputs
        write_beside(aside, recipe, categories, _metadata(graph, outputs))
        _write_warmup(aside / "assets.extra", recipe.name)
    return version


class ServingGraph(tf.Module):
    """The signatures of a SavedModel with the detector's variables.

    Images of a request are decoded and resized in parallel by a tf.data map. Apart from that and the
    network's NMS, if it has one, there is no loop.
    """

    def __init__(self, detector, recipe, categories):
        super().__init__(name="kgarden")
        self._network = Network(detector)
        self._sizes = test_sizes(recipe)
        self._class_ids = tf.constant([float(category["id"]) for category in categories], tf.float32)
        self.canvases = [tuple(int(side) for side in canvas) for canvas in self._sizes["canvases"]]
        # One graph for each canvas, shared by all signatures.
        self._on_canvas = [self._network.on(canvas).get_concrete_function() for canvas in self.canvases]

    def signatures(self):
        """Returns {name: concrete function}."""
        strings = tf.TensorSpec([None], tf.string, name="inputs")
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="inputs")
        networks = zip(self.canvases, self._on_canvas, strict=True)
        return {
            "serving_default": tf.function(self._of_files, autograph=False).get_concrete_function(strings),
            "image_tensor": tf.function(self._of_pixels, autograph=False).get_concrete_function(pixels),
            "tf_example": tf.function(self._of_records, autograph=False).get_concrete_function(strings),
            **{f"canvas_{high}x{wide}": network for (high, wide), network in networks},
        }

    def _of_files(self, inputs):
        return self._detect(inputs, decode)

    def _of_pixels(self, inputs):
        return self._detect(inputs, lambda image: image)

    def _of_records(self, inputs):
        features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        return self._detect(
            inputs, lambda record: decode(tf.io.parse_single_example(record, features)["image/encoded"])
        )

    def _detect(self, inputs, read):
        """Detects on each image's own canvas, so that results do not depend on the rest of the request."""
        images, size_hw, original_hw, number = self._preprocessed(inputs, read)
        rows = [tf.where(number == index)[:, 0] for index in range(len(self.canvases))]
        parts = [
            self._detect_on(index, of_canvas, images, size_hw=size_hw, original_hw=original_hw)
            for index, of_canvas in enumerate(rows)
        ]
        order = tf.argsort(tf.concat(rows, axis=0))  # the parts are sorted by canvas
        detections = {
            key: tf.gather(tf.concat([part[key] for part in parts], axis=0), order) for key in parts[0]
        }
        return self._named(detections, original_hw)

    def _preprocessed(self, inputs, read):
        """All images in one tensor as large as the largest canvas, and the index of each image's canvas.

        The request is refused if one of them cannot be decoded, with the numbers of all such.
        """
        height = max(canvas[0] for canvas in self.canvases)
        width = max(canvas[1] for canvas in self.canvases)

        @tf.autograph.experimental.do_not_convert
        def prepare(one, row):
            image = read(one)
            original_hw = tf.shape(image)[:2]
            canvas, size_hw = resize_to_canvas(image, **self._sizes)
            number = canvas_of(
                original_hw, self.canvases, self._sizes["short_side_px"], self._sizes["long_side_px"]
            )
            missing = [[0, height - tf.shape(canvas)[0]], [0, width - tf.shape(canvas)[1]], [0, 0]]
            padded = tf.ensure_shape(tf.pad(canvas, missing), (height, width, 3))
            return padded, tf.cast(size_hw, tf.int32), original_hw, tf.cast(number, tf.int32), row

        count = tf.shape(inputs, out_type=tf.int64)[0]
        images = tf.data.Dataset.from_tensor_slices((inputs, tf.range(count)))
        images = images.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        batch = images.ignore_errors().batch(tf.maximum(count, 1))
        none = tf.data.Dataset.from_tensors(
            tuple(tf.zeros((0, *spec.shape[1:]), spec.dtype) for spec in batch.element_spec)
        )
        *decoded, rows = batch.concatenate(none).take(1).get_single_element()
        with tf.control_dependencies([_all_decoded(rows, count)]):
            return [tf.identity(one) for one in decoded]

    def _detect_on(self, index, rows, images, *, size_hw, original_hw):
        """Detections of the images of one canvas, given by `rows`, which may be empty."""
        high, wide = self.canvases[index]
        network = self._on_canvas[index]

        def run():
            size_in_canvas = tf.gather(size_hw, rows)
            detections = network(tf.gather(images[:, :high, :wide], rows), size_in_canvas)
            return to_original(detections, size_in_canvas, tf.gather(original_hw, rows))

        def empty():
            specs = network.structured_outputs
            return {key: tf.zeros((0, *spec.shape[1:]), spec.dtype) for key, spec in specs.items()}

        return tf.cond(tf.size(rows) > 0, run, empty)

    def _named(self, detections, original_hw):
        """Outputs of the Object Detection API."""
        valid = tf.sequence_mask(detections[COUNT], detections[SCORES].shape[1])
        high, wide = tf.split(tf.cast(original_hw, tf.float32), 2, axis=-1)
        x1, y1, x2, y2 = tf.unstack(detections[BOXES], axis=-1)
        classes = tf.gather(self._class_ids, tf.maximum(detections[LABELS], 0))
        outputs = {
            "detection_boxes": tf.stack([y1 / high, x1 / wide, y2 / high, x2 / wide], axis=-1),
            "detection_scores": detections[SCORES],
            "detection_classes": tf.where(valid, classes, 0.0),
            "num_detections": tf.cast(detections[COUNT], tf.float32),
        }
        if MASKS in detections:
            outputs["detection_masks"] = detections[MASKS]
        return outputs


def _all_decoded(rows, count):
    """Asserts that `rows` are 0..count-1; the message lists those that are missing."""
    missing = tf.sparse.to_dense(
        tf.sets.difference(tf.range(count)[None], rows[None]), default_value=tf.constant(-1, tf.int64)
    )[0]
    listed = tf.strings.reduce_join(tf.strings.as_string(missing), separator=", ")
    message = tf.strings.join(
        ["inputs[", listed, f"] cannot be decoded: no image, damaged, or of more than {MAX_PIXELS} px"]
    )
    return tf.debugging.Assert(tf.equal(tf.size(missing), 0), [message])


def _metadata(graph, outputs):
    return {
        "format": "saved_model",
        "max_detections": int(outputs["detection_scores"].shape[-1]),
        "boxes": "ymin, xmin, ymax, xmax, over the height and width of the original image",
        **_metadata_of_masks(outputs),
        "canvases": [list(canvas) for canvas in graph.canvases],
        "exif": "orientation is not applied: turn images upright before sending them",
    }


def _metadata_of_masks(outputs):
    """The entries on masks; none for a model without masks."""
    if "detection_masks" not in outputs:
        return {}
    return {
        "masks": "probabilities over the box of each detection, at the centres of mask_side x mask_side "
        "cells, rows from the top; between the centres bilinear, and the object from mask_threshold on",
        "mask_side": int(outputs["detection_masks"].shape[-1]),
        "mask_threshold": THRESHOLD,
    }


def _write_warmup(directory, name):
    """Writes a request for each image signature, which TensorFlow Serving replays before serving."""
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
