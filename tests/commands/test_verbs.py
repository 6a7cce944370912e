"""kgarden.train, evaluate, predict and export: any arguments give an answer or a UserError in one line."""

import ast
import io
import json
import pathlib

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.fake_detector import CATEGORIES, RECIPE, StandIn, StandInData

import kgarden
from kgarden import build
from kgarden.commands import evaluate as evaluation
from kgarden.inference import predictor
from kgarden.training.reporter import Reporter
from kgarden.utils.output_folder import LIST

pytestmark = pytest.mark.tensorflow
SILENT = Reporter(Console(file=io.StringIO()))
QUICK = {"schedule.steps": 1, "evaluate.pictures": 0, "evaluate.every": None, "schedule.ema": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a recipe, its run after one step, and images; model and data are stand-ins."""
    folder = tmp_path_factory.mktemp("verbs")

    def build_detector(settings, num_classes, seed=0):
        detector = StandIn(num_classes, seed)
        detector.build()
        return detector

    def prepare_data(recipe, cache=None, progress=None, on_classes=None, splits=None):
        return StandInData(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_detector", build_detector)
        patch.setattr(build, "prepare_data", prepare_data)
        patch.setattr(evaluation, "prepare_data", prepare_data)
        patch.chdir(folder)
        (folder / "standin.yaml").write_text(RECIPE)
        (folder / "photos").mkdir()
        for name, color in (("red.png", (250, 0, 0)), ("green.png", (0, 250, 0))):
            image = Image.new("RGB", (192, 128))
            image.paste(color, (32, 32, 64, 64))
            image.save(folder / "photos" / name)
        (folder / "broken.png").write_bytes(b"no image")
        kgarden.train("standin.yaml", "run", QUICK, reporter=SILENT)
        yield folder


def walk(verb, calls):
    """[what each call returned, or None for a UserError of one line]."""
    answers = []
    for arguments, settings in calls:
        try:
            answers.append(verb(*arguments, **settings))
        except kgarden.UserError as error:
            assert str(error) and "\n" not in str(error), str(error)
            answers.append(None)
    return answers


NO_RUNS = [None, 7, 0.5, b"run", ["run"], {}, "", "missing", "photos", "standin.yaml", "x" * 5000, "a\0b"]
NO_OVERRIDES = [
    7,
    "schedule.steps=1",
    ["a"],
    {7: 1},
    {"": 1},
    {"schedule.stepz": 1},
    {"schedule.steps": None},
]
NO_OVERRIDES += [{"schedule.steps": np.zeros(3)}, {"model": object()}, {"data.canvases": "wide"}]


def test_train(world):
    recipe = kgarden.load_recipe("standin.yaml")
    good = [
        (("standin.yaml", "run", QUICK), {}),  # has ended: evaluated again
        ((recipe, pathlib.Path("other"), QUICK), {"fresh": True}),
        ((world / "standin.yaml",), {"overrides": QUICK}),  # runs/standin
    ]
    bad = [
        ((one, "new", QUICK), {}) for one in (None, 7, b"standin.yaml", [], {"name": "standin"}, "fcoz", "")
    ]
    bad += [
        ((recipe, one, QUICK), {})
        for one in (7, b"new", [], "", "standin.yaml", "photos", "a\0b", "x" * 5000)
    ]
    bad += [((recipe, "new", one), {}) for one in NO_OVERRIDES]
    bad += [(("standin.yaml", "new", one), {}) for one in NO_OVERRIDES]
    bad += [(("standin.yaml", "new", QUICK), {"row": one}) for one in (7, "t.z", b"t")]
    bad += [((recipe, "new", QUICK), {"row": "t.a"}), (("standin.yaml", "run", {**QUICK, "seed": 3}), {})]
    answers = walk(lambda *a, **s: kgarden.train(*a, **s, reporter=SILENT), good)
    assert all(0 <= one["metrics"]["ap"] <= 100 for one in answers)
    assert (world / "other/best.weights.h5").is_file() and (world / "runs/standin/labels.json").is_file()
    assert walk(lambda *a, **s: kgarden.train(*a, **s, reporter=SILENT), bad) == [None] * len(bad)
    assert not (world / "new").exists()


def test_evaluate(world):
    stored = (world / "run/evaluation.json").read_text()
    other = {"evaluate.max_detections": 1}
    good = [
        (("run",), {}),
        ((world / "run", "elsewhere/*", "run/model.weights.h5", other), {"to": "figures"}),
    ]
    bad = [((one,), {}) for one in NO_RUNS]
    bad += [(("run", one), {}) for one in (7, b"x", "")]
    bad += [(("run", None, one), {}) for one in (7, "", "missing.h5", "broken.png", "photos")]
    bad += [(("run", None, None, one), {}) for one in NO_OVERRIDES]
    bad += [(("run",), {"to": one}) for one in (7, "", "standin.yaml")]
    bad += [(("run", None, None, other), {"store": True}), (("missing",), {"store": True})]
    for one in walk(kgarden.evaluate, good):
        assert one["images"] == 10 and all(0 <= (ap or 0) <= 100 for ap in one["metrics"].values())
    assert (world / "figures/analysis.json").is_file()
    assert walk(kgarden.evaluate, bad) == [None] * len(bad)
    assert (world / "run/evaluation.json").read_text() == stored and not (world / "missing").exists()
    kgarden.evaluate("run", store=True)
    again = json.loads((world / "run/evaluation.json").read_text())
    assert again["metrics"] == json.loads(stored)["metrics"]
    assert len(json.loads((world / "run/detections.json").read_text())) == 10


def test_predict(world):
    photo = world / "photos/red.png"
    pixels = np.asarray(Image.open(photo))
    kept = {"min_score": 0.0}
    good = [
        (("run", photo), kept),
        (("run", [str(photo), photo.read_bytes(), io.BytesIO(photo.read_bytes())]), kept),
        (("run", [Image.open(photo), pixels, pixels.astype("float32")]), {**kept, "batch_size": 2}),
        (("run", [keras.ops.convert_to_tensor(pixels)]), kept),
        (("run", np.stack([pixels, pixels])), kept),
        (("run", "photos"), kept),
        (("run", []), kept),
    ]
    answers = walk(kgarden.predict, good)
    assert [len(one) for one in answers] == [1, 3, 3, 1, 2, 2, 0]
    for found in [found for one in answers[:5] for found in one]:
        np.testing.assert_array_equal(found["boxes"], answers[0][0]["boxes"])
        assert found.size_hw == (128, 192) and len(found) == 1 and found.image.shape == (128, 192, 3)
    score = float(answers[0][0].scores[0])
    for least, count in ((score, 1), (min(1.0, score + 1e-3), 0)):
        assert len(kgarden.predict("run", photo, min_score=least)[0]) == count
    bad = [((one, photo), {}) for one in NO_RUNS]
    images = [
        None,
        7,
        b"",
        b"x",
        {},
        "",
        "missing.png",
        "broken.png",
        "https://a.b/c.png",
        "clip.mp4",
        [None],
    ]
    images += [
        np.zeros((2, 2)) - 1,
        pixels / 255,
        np.zeros((2, 3, 4, 3, 3)),
        ["photos"],
        "standin.yaml",
    ]
    bad += [(("run", one), {}) for one in images]
    for key, values in {
        "min_score": (None, "high", -1, 2, np.nan),
        "batch_size": (None, 0, 1.5, "2", True),
        "labels": (None, "all", 7),
        "overrides": NO_OVERRIDES,
        "to": (7, "", "standin.yaml"),
    }.items():
        bad += [(("run", photo), {key: value}) for value in values]
    bad += [(("run", one, "drawn"), {}) for one in (None, pixels, [pixels], 7, "missing/*.png", "broken.png")]
    bad += [(("run", "broken.png", "drawn"), {"on_fault": str})]  # nothing is left
    bad += [(("run", "photos", "photos"), {}), (("run", [photo, "broken.png"]), {})]
    assert walk(kgarden.predict, bad) == [None] * len(bad)


def test_videos_yield_results_frame_by_frame(world, monkeypatch):
    """As soon as a frame is there; of every second one; frames of another size in a batch of their own."""
    asked = []

    def frames(source, every):
        for number in range(0, 6, every):
            asked.append(number)
            size = (128, 192) if number < 4 else (192, 128)
            yield np.full((*size, 3), number, "uint8"), f"{source}, frame {number}"

    monkeypatch.setattr(predictor, "frames_of", frames)
    found = kgarden.Predictor.from_run("run").video("clip.mp4", every=2)
    assert next(found).path == "clip.mp4, frame 0" and asked == [0]
    assert [one.path for one in found] == ["clip.mp4, frame 2", "clip.mp4, frame 4"]
    canvases = {"data.canvases": [[64, 96], [96, 64]]}
    together = list(kgarden.Predictor.from_run("run", 3, canvases).video("clip.mp4"))
    assert [int(one.image.max()) for one in together] == list(range(6))
    assert [one.size_hw for one in together] == [(128, 192)] * 4 + [(192, 128)] * 2
    for every in (0, None, 1.5):
        with pytest.raises(kgarden.UserError, match="every: a whole number"):
            kgarden.Predictor.from_run("run").video("clip.mp4", every)


def test_predict_draws(world):
    faults = []
    images = ["photos", "broken.png"]
    records = kgarden.predict(
        "run", images, "drawn", on_fault=faults.append, say=faults.append, min_score=0.9
    )
    assert [one["drawn"] for one in records] == ["green.png", "red.png"]
    assert len(faults) == 1 and "broken.png" in faults[0]
    assert json.loads((world / "drawn/detections.json").read_text()) == records
    assert all(len(one["detections"]) == 1 for one in records)  # whatever its score
    assert {path.name for path in (world / "drawn").iterdir()} == {
        *(one["drawn"] for one in records),
        "detections.json",
        LIST,
    }
    faults.clear()
    found = kgarden.predict("run", [world / "broken.png", world / "photos/red.png"], on_fault=faults.append)
    assert len(found) == 1 and found[0].path.name == "red.png" and len(faults) == 1


def test_export(world):
    assert kgarden.export("run", world / "served") == world / "served/1"
    assert kgarden.export("run", "served", "saved_model") == pathlib.Path("served/2")
    labels = "".join(f"{one['id']} {one['name']}\n" for one in CATEGORIES)
    assert (world / "served/2/labels.txt").read_text() == labels
    bad = [((one, "out"), {}) for one in NO_RUNS]
    bad += [(("run", one), {}) for one in (None, 7, b"out", "", "standin.yaml", "a\0b")]
    bad += [(("run", "out", one), {}) for one in (None, 7, "", "SavedModel", "h5", ["onnx"])]
    bad += [
        (("run", "out", "onnx"), {"canvases": one}) for one in (7, "64x96", [64, 96], [(64,)], [(32, 32)])
    ]
    bad += [(("run", "out", "litert"), {"batch": one}) for one in (0, 1.5, "2", True)]
    bad += [(("run", "out"), {"batch": 2}), (("run", "out"), {"canvases": [(64, 96)]})]
    assert walk(kgarden.export, bad) == [None] * len(bad)
    assert not (world / "out").exists()


def test_names_that_type_checkers_see_are_those_of_run_time():
    tree = ast.parse(pathlib.Path(kgarden.__file__).read_text())
    [block] = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == kgarden._HOMES and set(kgarden.__all__) == {*seen, "__version__"}


def test_verbs_are_functions_with_types():
    for name in ("train", "evaluate", "predict", "export"):
        assert getattr(kgarden, name).__name__ == name and "return" in getattr(kgarden, name).__annotations__
