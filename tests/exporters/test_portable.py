"""Detectors without NMS, exported: nothing but the network in the graph, and the same answers elsewhere."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.small_backbone import RESNET10
from support.tf_graphs import loops_and_nms, pairs_of_boxes

from kgarden import build, cli
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.data.canvas import resize_to_canvas
from kgarden.errors import TrainingFailed, UserError
from kgarden.exporters.agreement import check_agreement
from kgarden.exporters.network import Network, ranked
from kgarden.exporters.portable import write_portable
from kgarden.exporters.saved_model import write_saved_model
from kgarden.inference.predictor import Predictor
from kgarden.ops.nms import nms

pytestmark = pytest.mark.tensorflow

ROOT = pathlib.Path(__file__).parents[2]
CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 2, "name": "dish"}, {"id": 90, "name": "spoon"}]
SIZES = {"data.short_side_px": 96, "data.long_side_px": 160, "data.canvases": [[96, 160], [160, 96]]}
TINY = {
    "backbone": RESNET10,
    "neck": {"channels": 32, "levels": [3, 5]},
}
TOTAL = 37
LEVELS = [12 * 20, 6 * 10, 3 * 5]  # places of a canvas
RANGES = {"size_ranges": [[0, 64], [64, 128], [128, 1_000_000]]}
NMS_ON = {"name": "fcos", "dense_head": {"num_convs": 1, **RANGES}, "selection": {"score_threshold": 0.0}}


def pss_on(base):
    ranges = RANGES if base == "fcos" else {}
    # a norm in RetinaNet's towers keeps its boxes near the picture
    base = {"name": base, "num_convs": 1, "norm": "gn", **ranges}
    return {"name": "pss", "base": base, "selector": {"num_convs": 1}}


def detector_of(model):
    """(recipe, detector) with random weights whose scores differ."""
    model = {**TINY, **model, "selection": {**model.get("selection", {}), "total": TOTAL}}
    recipe = load_recipe("quickstart", {"model": model, **SIZES})
    detector = build_model(recipe, len(CATEGORIES))
    rng = np.random.default_rng(0)
    for variable in detector.trainable_variables:
        if variable.path.endswith(("classes/kernel", "code/kernel", "predictor/kernel")):
            variable.assign(variable + rng.normal(0, 0.05, variable.shape))
        elif variable.path.endswith("code/bias"):
            variable.assign(variable + 0.5)  # distances above zero: boxes of some size
    return recipe, detector


@pytest.fixture(scope="module")
def fcos_pss():
    return detector_of(pss_on("fcos"))


def picture(canvas, seed=0):
    height, width = canvas
    cells = np.random.default_rng(seed).integers(0, 256, (1, height // 16, width // 16, 3), dtype="uint8")
    images = cells.repeat(16, axis=1).repeat(16, axis=2)
    images[:, height - 8 :], images[:, :, width - 4 :] = 0, 0
    return {"images": images, "size_hw": np.int32([[height - 8, width - 4]])}


# --- what is in the graph -----------------------------------------------------------------------------------


def counts_of(detector):
    """How many boxes there are at any time: places, candidates, detections, boxes of a block of NMS."""
    pairs = [anchors * places * len(CATEGORIES) for anchors in (1, 9) for places in LEVELS]
    best = detector.selection.per_level
    candidates = {sum(min(best, pair) for pair in pairs[:3]), sum(min(best, pair) for pair in pairs[3:])}
    return {sum(LEVELS), 9 * sum(LEVELS), *LEVELS[:2], 9 * LEVELS[0], TOTAL, TOTAL + 1, *candidates, 128, 256}


def graph_of(detector):
    graph = Network(detector).on((96, 160)).get_concrete_function().graph
    return graph.as_graph_def(add_shapes=True)


@pytest.mark.parametrize("base", ["atss", "gfl", "retinanet"])
def test_nms_free_network_has_no_nms_loop_or_pairwise_iou(base):
    _, detector = detector_of(pss_on(base))
    graph = graph_of(detector)
    assert not loops_and_nms(graph) and not pairs_of_boxes(graph, counts_of(detector))


def test_network_with_nms_has_loop_and_pairwise_iou():
    _, detector = detector_of(NMS_ON)
    graph = graph_of(detector)
    assert "StatelessWhile" in loops_and_nms(graph)
    assert {shape[-2:] for shape in pairs_of_boxes(graph, counts_of(detector))} >= {(128, TOTAL), (128, 128)}

    kernel = tf.function(lambda boxes, scores: tf.image.non_max_suppression(boxes, scores, 5))
    by_kernel = kernel.get_concrete_function(tf.TensorSpec((9, 4)), tf.TensorSpec((9,))).graph.as_graph_def()
    assert loops_and_nms(by_kernel) == {"NonMaxSuppressionV3"}


def test_nms_free_saved_model_has_no_nms_loop_or_pairwise_iou(fcos_pss, tmp_path):
    """All of it: decoding is a tf.data map, and the signatures share the graphs of the network."""
    from tensorflow.core.protobuf import saved_model_pb2

    recipe, detector = fcos_pss
    version = write_saved_model(detector, recipe, CATEGORIES, tmp_path)
    content = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    graph = content.meta_graphs[0].graph_def
    assert not loops_and_nms(graph) and not pairs_of_boxes(graph, counts_of(detector))
    names = [function.signature.name for function in graph.library.function]
    for canvas in ("96x160", "160x96"):
        assert sum(f"_network_{canvas}_" in name for name in names) == 1

    model = tf.saved_model.load(str(version))
    x = picture((160, 96))
    answer = model.signatures["canvas_160x96"](**{key: tf.constant(value) for key, value in x.items()})
    compare(detector.inference_model()(x, training=False), answer)


def test_detections_are_ranked_and_counted():
    answer = ranked(
        {
            "boxes": tf.constant([[[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]]], tf.float32),
            "scores": tf.constant([[0.9, 0.3, 0.5]]),
            "labels": tf.constant([[2, 1, 0]]),
            "valid": tf.constant([[False, True, True]]),
            "source": tf.constant([[0, 1, 2]]),
        }
    )
    assert answer.keys() == {"boxes", "scores", "labels", "num_detections"}
    assert answer["num_detections"].numpy().tolist() == [2]
    assert answer["labels"].numpy().tolist() == [[0, 1, -1]]
    np.testing.assert_allclose(answer["scores"], [[0.5, 0.3, 0.0]])
    assert answer["boxes"].numpy()[0, :, 0].tolist() == [5, 3, 0]


# --- other runtimes -----------------------------------------------------------------------------------------


def compare(expected, answer):
    """Boxes matched, not slots: px of the canvas within 1e-3, scores within 1e-4 of themselves."""
    expected, answer = (
        {key: np.asarray(value)[0] for key, value in one.items()} for one in (expected, answer)
    )
    valid = expected["valid"]
    assert answer["num_detections"] == valid.sum() > 5
    got = {key: answer[key][: valid.sum()] for key in ("boxes", "scores", "labels")}
    last, free = expected["scores"][valid].min() * (1 + 1e-4), np.ones(valid.sum(), bool)
    for row in np.flatnonzero(valid):
        score = expected["scores"][row]
        same = free & (got["labels"] == expected["labels"][row])
        same &= np.abs(got["scores"] - score) <= 1e-4 * score
        same &= np.abs(got["boxes"] - expected["boxes"][row]).max(axis=-1) <= 1e-3
        assert same.any() or score <= last, f"row {row}"
        free[np.flatnonzero(same)[:1]] = False
    assert free.sum() <= 2  # at the end of a full list an equal may have come in


def onnx_answer(path, x):
    import onnx

    runtime = pytest.importorskip("onnxruntime")
    operations = {node.op_type for node in onnx.load(path).graph.node}
    session = runtime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return operations, dict(zip(names, session.run(names, x), strict=True))


def litert_answer(path, x):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    operations = {one["op_name"] for one in interpreter._get_ops_details()}
    return operations, interpreter.get_signature_runner("serving_default")(**x)


WAYS = {"onnx": onnx_answer, "litert": litert_answer}
SUFFIX = {"onnx": "onnx", "litert": "tflite"}
NEEDED = {"onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
# "DELEGATE" stands for what LiteRT's own CPU kernels take over.
NOT_IN_ONNX = re.compile(r"NonMaxSuppression|Loop|Scan|If")
NOT_IN_LITERT = re.compile(r"NON_MAX_SUPPRESSION|WHILE|Flex|CUSTOM|^IF$")


FORMS = ("onnx", "litert")
EXPORTED = {"onnx": ("retinanet", [(96, 160), (160, 96)]), "litert": ("gfl", [(96, 160)])}


def write_run(folder, recipe, detector):
    """The run directory of a training."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "labels.json").write_text(json.dumps(CATEGORIES))
    detector.save_weights(folder / "best.weights.h5")
    return folder


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory):
    """(form, recipe, detector, folder): in it a run, and in served/cups/1 its export by the command."""
    form = request.param
    for package in NEEDED[form]:
        pytest.importorskip(package)
    base, canvases = EXPORTED[form]
    recipe, detector = detector_of(pss_on(base))
    folder = tmp_path_factory.mktemp(form)
    run = write_run(folder / "run", recipe, detector)
    some = [] if form == "onnx" else ["--canvas", "x".join(map(str, canvases[0]))]
    assert cli.main(["export", str(run), "--to", str(folder / "served/cups"), "--format", form, *some]) == 0
    return form, recipe, detector, folder


def agrees(version, form, detector, canvases):
    """A version directory: its files answer as the model, and say so."""
    about = json.loads((version / "metadata.json").read_text())
    assert about["classes"] == CATEGORIES
    for canvas, file in zip(canvases, about["files"], strict=True):
        name = f"model_{canvas[0]}x{canvas[1]}.{SUFFIX[form]}"
        x = picture(canvas, seed=1)
        operations, answer = WAYS[form](version / name, x)
        compare(detector.inference_model()(x, training=False), answer)
        forbidden = NOT_IN_ONNX if form == "onnx" else NOT_IN_LITERT
        assert len(operations) > 5 and not [one for one in operations if forbidden.search(one)]
        assert file["file"] == name and file["canvas"] == list(canvas) and file["checked"]["detections"] > 5
        assert about["inputs"].keys() == x.keys() and about["outputs"].keys() == answer.keys()
    files = {"labels.txt", "metadata.json", "recipe.yaml", *(file["file"] for file in about["files"])}
    assert {one.name for one in version.iterdir()} == files


@pytest.mark.parametrize("exported", FORMS, indirect=True)
def test_other_runtimes_agree_with_the_model(exported):
    form, _, detector, folder = exported
    agrees(folder / "served/cups/1", form, detector, EXPORTED[form][1])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", ["fcos", "atss", "gfl", "retinanet"])
def test_other_runtimes_agree_with_every_model(base, form, tmp_path):
    for package in NEEDED[form]:
        pytest.importorskip(package)
    recipe, detector = detector_of(pss_on(base))
    canvases = [(96, 160), (160, 96)] if base == "fcos" else [(96, 160)]
    version = write_portable(detector, recipe, CATEGORIES, tmp_path, form=form, canvases=canvases)
    agrees(version, form, detector, canvases)


@pytest.mark.parametrize("form", ["onnx", pytest.param("litert", marks=pytest.mark.slow)])
def test_nms_agrees_in_other_runtimes(form, tmp_path):
    """Several blocks of boxes, chains within a block; tf2onnx loses a loop state that is handed through."""
    for package in NEEDED[form]:
        pytest.importorskip(package)
    from kgarden.exporters.portable import LiteRT, Onnx

    count, total = 300, 40
    shapes = {"boxes": (1, count, 4), "scores": (1, count), "labels": (1, count)}
    types = {"boxes": tf.float32, "scores": tf.float32, "labels": tf.int32}

    def run(boxes, scores, labels):
        rows, valid = nms(boxes, scores, scores > 0, iou_threshold=0.6, max_output=total, labels=labels)
        return {"rows": rows, "valid": valid}

    function = tf.function(run, input_signature=[tf.TensorSpec(shapes[k], types[k], k) for k in shapes])
    graph, converter = function.get_concrete_function(), {"onnx": Onnx, "litert": LiteRT}[form]()
    assert loops_and_nms(graph.graph.as_graph_def())
    converter.write(tf.Module(), function, graph, path=tmp_path / "nms", model="nms")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        center = rng.uniform(0, 20, (1, count, 2))
        sides = rng.uniform(5, 40, (2, 1, count, 2))
        x = {
            "boxes": np.concatenate([center - sides[0], center + sides[1]], axis=-1).astype("float32"),
            "scores": rng.uniform(0, 1, (1, count)).astype("float32"),
            "labels": rng.integers(0, 3, (1, count)).astype("int32"),
        }
        expected, answer = function(**x), converter.run(tmp_path / "nms", x)
        np.testing.assert_array_equal(answer["valid"], expected["valid"])
        np.testing.assert_array_equal(answer["rows"], expected["rows"])


def answer_of(scores, boxes, labels, total=4):
    """One picture as kgarden/exporters/network.py answers."""
    missing = total - len(scores)
    return {
        "boxes": np.pad(np.float32(boxes).reshape(1, -1, 4), ((0, 0), (0, missing), (0, 0))),
        "scores": np.pad(np.float32([scores]), ((0, 0), (0, missing))),
        "labels": np.pad(np.int32([labels]), ((0, 0), (0, missing)), constant_values=-1),
        "num_detections": np.int32([len(scores)]),
    }


def test_agreement_by_hand():
    a, b, c = [0, 0, 10, 10], [5, 5, 20, 20], [1, 2, 3, 4]
    model = answer_of([0.5, 0.4, 0.3], [a, b, c], [0, 1, 1])
    swapped = answer_of([0.40001, 0.5, 0.3], [[5, 5, 20, 20.005], a, c], [1, 0, 1])
    agreed = check_agreement("file", model, swapped, canvas=(96, 160))
    assert agreed["detections"] == 3 and agreed["boxes_px"] == pytest.approx(0.005, rel=0.01)
    assert agreed["scores"] == pytest.approx(2.5e-5, rel=0.01)
    for wrong in (
        answer_of([0.5, 0.4], [a, b], [0, 1]),  # one is missing
        answer_of([0.5, 0.4, 0.3, 0.2], [a, b, c, c], [0, 1, 1, 1]),  # one too many
        answer_of([0.5, 0.4, 0.3], [a, b, c], [0, 1, 0]),  # another class
        answer_of([0.5, 0.4, 0.3], [a, [5, 5, 20, 20.1], c], [0, 1, 1]),  # another box
        answer_of([0.5, 0.4, 0.301], [a, b, c], [0, 1, 1]),  # another score
        answer_of([0.5, 0.4, 0.4], [a, b, b], [0, 1, 1]),  # one twice instead of another
    ):
        with pytest.raises(TrainingFailed, match="differ from the model's"):
            check_agreement("file", model, wrong, canvas=(96, 160))
    # at the end of a full list, an equal takes the other's place
    expected, outputs = (answer_of([0.5, 0.4], [a, last], [0, 1], 2) for last in (b, c))
    check_agreement("file", expected, outputs, canvas=(96, 160))


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def run(fcos_pss, tmp_path, monkeypatch):
    """The run directory of a training, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run", *fcos_pss)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--format", "onxx"], "--format onxx is not supported; use one of saved_model, onnx, litert"),
        (["--format", "onnx", "--canvas", "800"], "HEIGHTxWIDTH"),
        (["--format", "onnx", "--canvas", "64x64"], "--canvas 64x64: the recipe has 96x160, 160x96"),
        (["--batch", "2"], "--canvas and --batch apply to onnx and litert"),
        (["--format", "onnx"], "pip install 'kgarden[onnx]'"),
        (["--format", "litert"], "pip install 'kgarden[litert]'"),
    ],
)
def test_errors_are_one_line_and_write_nothing(run, capsys, monkeypatch, arguments, words):
    for package in ("tf2onnx", "ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["export", str(run), "--to", "served", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("kgarden: ") and error.count("\n") == 1
    assert not list(run.parent.glob("served/*"))


@pytest.mark.parametrize("exported", ["litert"], indirect=True)
def test_formats_do_not_mix(exported, capsys, monkeypatch):
    monkeypatch.chdir(exported[-1])
    assert cli.main(["export", "run", "--to", "served/cups"]) == 2
    assert "served/cups/1 is litert" in capsys.readouterr().err
    other = pathlib.Path("other/1/mine")
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    assert cli.main(["export", "run", "--to", "other", "--format", "litert"]) == 2
    assert other.read_text() == "mine"


def test_two_stage_models_are_rejected(tmp_path):
    pytest.importorskip("tf2onnx")
    model = {
        "name": "centernet2",
        **TINY,
        "proposer": {"num_convs": 1},
        "roi_head": {"name": "faster", "width": 16},
    }
    recipe = load_recipe("quickstart", {"model": model, **SIZES})
    detector = build_model(recipe, len(CATEGORIES))
    with pytest.raises(UserError, match="centernet2: onnx does not support two-stage models"):
        write_portable(detector, recipe, CATEGORIES, tmp_path / "served", form="onnx", canvases=[(96, 160)])
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize("exported", FORMS, indirect=True)
def test_documented_client_code_maps_boxes_to_the_image(exported, monkeypatch):
    form, recipe, detector, folder = exported
    monkeypatch.chdir(folder)
    sizes = [(160, 96), (75, 100), (300, 90)]  # as it is, enlarged on the tall canvas, a strip
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    lay, by_onnx, by_litert, back = blocks[:4]
    for size in sizes if form == "onnx" else sizes[:1]:
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype="uint8")).resize(size).save("photo.png")
        names = {}
        exec(lay.replace("photo.jpg", "photo.png"), names)
        exec(by_onnx if form == "onnx" else by_litert, names)
        exec(back, names)
        canvas, size_hw = resize_to_canvas(np.asarray(Image.open("photo.png")), **build.test_sizes(recipe))
        assert names["canvas"].shape[1:] == canvas.shape and [names["high"], names["wide"]] == list(
            size_hw.numpy()
        )
        assert np.abs(names["canvas"][0].astype(int) - canvas.numpy()).max() <= 1
        expected = Predictor(detector, recipe)("photo.png")
        assert abs(len(names["boxes"]) - expected["valid"].sum()) <= (0 if size == (160, 96) else 4)
        if size == (160, 96):
            np.testing.assert_allclose(names["boxes"], expected["boxes"][expected["valid"]], atol=1e-2)
        best = names["boxes"][0]
        assert (best >= 0).all() and best[2] <= size[0] + 1e-3 and best[3] <= size[1] + 1e-3
