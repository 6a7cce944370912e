"""ONNX and LiteRT export: the network only, one file for each canvas, compared with the model when written.

Resizing the image into the canvas and mapping the boxes back, which a SavedModel includes, are left to the
caller. docs/export.md has the Python code for it, metadata.json the numbers.
"""

import importlib
import logging
import pathlib
import re

import tensorflow as tf

from kgarden.build import test_sizes
from kgarden.errors import UserError
from kgarden.exporters.agreement import check_agreement, synthetic_batch
from kgarden.exporters.network import COUNT, Network
from kgarden.exporters.version import new_version, write_beside
from kgarden.structures import BOXES, IMAGES, LABELS, MASKS, SCORES, SIZE_HW
from kgarden.utils.quiet import quiet

# With opset 18, tf2onnx 1.17 computes means over the wrong axes on a level of one point.
OPSET = 17
INPUTS = {
    IMAGES: "uint8 RGB, the image in the upper left corner, zeros around it; normalisation is inside",
    SIZE_HW: "int32, height and width in px of the image inside the canvas",
}
OUTPUTS = {
    MASKS: "float32, probabilities over the boxes, at the centres of their cells",
    BOXES: "float32, x1, y1, x2, y2 in px of the canvas, clipped to the image",
    SCORES: "float32, best first",
    LABELS: "int32, rows of labels.txt counted from 0; -1 beyond num_detections",
    COUNT: "int32, how many rows are detections; the rest is zero",
}


def write_portable(
    detector, recipe, categories: list[dict], to, *, form: str, canvases: list, batch: int = 1
) -> pathlib.Path:
    """Writes model_<H>x<W>.onnx or .tflite to TO/1/ (or the next free version number), atomically.

    Args:
        detector:   a Detector with its weights.
        recipe:     the recipe that it was trained with.
        categories: [{"id", "name"}, ...] in label order.
        to:         parent of the version directory.
        form:       "onnx" or "litert".
        canvases:   [(height, width), ...], a file for each.
        batch:      batch size; the shapes of the files are fixed.
    Returns:
        path of the version directory.
    """
    if "roi_head" in detector.parts():
        raise UserError(
            f"{recipe.model.name}: {form} does not support two-stage models (RoIAlign); use saved_model"
        )
    converter = {"onnx": Onnx, "litert": LiteRT}[form]()
    network = Network(detector)
    with new_version(to, form) as (aside, version):
        files = []
        for height, width in canvases:
            path = aside / f"model_{height}x{width}{converter.suffix}"
            function = network.on((height, width), batch)
            graph = function.get_concrete_function()
            converter.write(network, function, graph, path=path, model=recipe.model.name)
            x = synthetic_batch((height, width), batch)
            expected = {key: value.numpy() for key, value in graph(**_tensors(x)).items()}
            outputs = converter.run(path, x)
            agreement = check_agreement(path.name, expected, outputs, canvas=(height, width))
            files.append({"file": path.name, "canvas": [height, width], "checked": agreement})
        metadata = {"format": form, "files": files, "batch": batch, **_metadata(recipe, converter, expected)}
        write_beside(aside, recipe, categories, metadata)
    return version


def _metadata(recipe, converter, example):
    sizes = test_sizes(recipe)
    return {
        "max_detections": int(example[SCORES].shape[-1]),
        "inputs": INPUTS,
        "outputs": {name: OUTPUTS[name] for name in example},
        "short_side_px": int(sizes["short_side_px"]),
        "long_side_px": int(sizes["long_side_px"]),
        "written_by": converter.written_by,
        "checked_by": converter.checked_by,
    }


class Onnx:
    """ONNX: converted by tf2onnx, run by onnxruntime."""

    suffix = ".onnx"

    def __init__(self):
        self._tf2onnx = _needed("tf2onnx", "onnx")
        self._runtime = _needed("onnxruntime", "onnx")
        self.written_by = f"tf2onnx {self._tf2onnx.__version__}, opset {OPSET}"
        self.checked_by = f"onnxruntime {self._runtime.__version__}"

    def write(self, network, function, graph, *, path, model):
        """Converts the function; raises UserError with the operations that ONNX does not have."""
        logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
        with quiet():
            proto, _ = self._tf2onnx.convert.from_function(
                function, input_signature=function.input_signature, opset=OPSET
            )
        known = {"", "ai.onnx", "ai.onnx.ml"}
        foreign = {node.op_type for node in proto.graph.node if node.domain not in known}
        if foreign:
            raise UserError(f"{model}: ONNX does not support {', '.join(sorted(foreign))}; use saved_model")
        path.write_bytes(proto.SerializeToString())

    def run(self, path, x):
        """Runs the file and returns its outputs by name."""
        session = self._runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, x), strict=True))


class LiteRT:
    """LiteRT: converted by TensorFlow with built-in operations only, run by LiteRT's interpreter."""

    suffix = ".tflite"

    def __init__(self):
        self._interpreter = _needed("ai_edge_litert.interpreter", "litert")
        self.written_by = f"TensorFlow {tf.__version__}, built-in operations alone"
        self.checked_by = f"ai-edge-litert {_needed('ai_edge_litert', 'litert').__version__}"

    def write(self, network, function, graph, *, path, model):
        """Converts the graph; raises UserError with the operations that LiteRT does not have."""
        scratch = path.with_suffix(".saved_model")
        with quiet():
            tf.saved_model.save(network, str(scratch), signatures={"serving_default": graph})
            converter = tf.lite.TFLiteConverter.from_saved_model(str(scratch))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                content = converter.convert()
            except tf.lite.python.convert.ConverterError as error:
                missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
                reason = ", ".join(missing) or str(error).splitlines()[0]
                raise UserError(f"{model}: LiteRT does not support {reason}; use saved_model") from None
        path.write_bytes(content)
        tf.io.gfile.rmtree(str(scratch))

    def run(self, path, x):
        """Runs the file and returns its outputs by name."""
        with quiet():  # it prints a line about its delegate
            interpreter = self._interpreter.Interpreter(model_path=str(path))
            interpreter.allocate_tensors()
            return interpreter.get_signature_runner("serving_default")(**x)


def _tensors(x):
    return {key: tf.constant(value) for key, value in x.items()}


def _needed(module, extra):
    try:
        with quiet():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"export --format {extra} needs {error.name}: pip install 'kgarden[{extra}]'"
        ) from error
