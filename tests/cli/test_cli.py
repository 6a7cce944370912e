"""The command line: exit codes, one-line errors, and all commands from raw data to predictions."""

import errno
import json
import logging
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from support.fake_detector import CATEGORIES, RECIPE, StandIn, ground_truth, pictures  # noqa: E402

import kgarden  # noqa: E402
from kgarden import build, cli  # noqa: E402
from kgarden.cli import listing  # noqa: E402
from kgarden.cli.options import start_tensorflow  # noqa: E402
from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.errors import TrainingFailed, UserError  # noqa: E402
from kgarden.metrics import report  # noqa: E402


@pytest.fixture
def call(capsys):
    """call("list", "models") -> (exit code, standard output, standard error)."""

    def _call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return _call


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a COCO data set, a recipe for it, and the fake detector as the only model."""

    def build_detector(settings, num_classes, seed=0):
        detector = StandIn(num_classes, seed)
        detector.build()
        return detector

    monkeypatch.setattr(build, "build_detector", build_detector)
    monkeypatch.chdir(tmp_path)
    for split, count, seed in (("train", 12, 0), ("val", 6, 1)):
        images, boxes, labels = pictures(count, seed)
        (tmp_path / split).mkdir()
        for n, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / split / f"{n}.png")
        truth = ground_truth(boxes, labels)
        (tmp_path / f"{split}.json").write_text(json.dumps(truth))
    (tmp_path / "standin.yaml").write_text(
        RECIPE.replace("train: none", "train: shards/train").replace("val: none", "val: shards/val")
        + "rows:\n  t.a: {set: {schedule.steps: 4}, reported: {ap: 1.5}}\n  t.b: {evaluates: t.a}\n"
    )
    return tmp_path


def test_all_commands_from_images_to_predictions(world, call):
    for split in ("train", "val"):
        code, out, err = call(
            "data",
            "build",
            "coco",
            "--images",
            split,
            "--annotations",
            f"{split}.json",
            "--to",
            f"shards/{split}",
        )
        assert code == 0 and "2 classes" in out, err
    code, out, err = call("train", "standin.yaml")
    assert code == 0 and "AP50" in out and "runs/standin" in out, err
    run = world / "runs/standin"
    first = json.loads((run / "evaluation.json").read_text())
    assert first["images"] == 6 and first["metrics"]["ap50"] == 100.0

    code, out, _ = call("evaluate", run, "--json", "again.json")
    again = json.loads((world / "again.json").read_text())
    assert code == 0 and again["metrics"] == first["metrics"]
    assert again["recipe_sha256"] == load_recipe("standin.yaml").digest()
    assert again["errors"] == first["errors"] and again["thresholds"] == first["thresholds"]
    code, out, _ = call("evaluate", run, "--set", "evaluate.batch_size=2", "--to", "figures")
    assert code == 0 and (world / "figures/errors.png").is_file() and "score of best F1" in out
    elsewhere = json.loads((world / "figures/evaluation.json").read_text())
    assert elsewhere["metrics"] == first["metrics"] and elsewhere["written_by"].startswith("kgarden")
    results = json.loads((world / "figures/detections.json").read_text())
    assert len(results) == first["detections"] and (world / "figures/analysis.json").is_file()
    (world / "mine").mkdir()
    (world / "mine/detections.json").write_text("[]")
    code, _, err = call("evaluate", run, "--data", "shards/val", "--to", "mine")
    assert code == 2 and "mine/detections.json" in err
    code, _, err = call("evaluate", run, "--metrics", "coco,voc70")
    assert code == 2 and err == (
        "kgarden: --metrics voc70: did you mean voc07? There are coco, voc07, voc_area, open_images, lvis\n"
    )
    for left in ("evaluation.json", "evaluation/analysis.json"):
        (run / left).unlink()
    code, out, _ = call("evaluate", run)
    assert code == 0 and "AP50 gain" in out and (run / "evaluation/analysis.json").is_file()
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == first["metrics"]
    code, out, _ = call("evaluate", run, "--metrics", "voc07", "--json", "voc.json")
    assert code == 0 and json.loads((world / "voc.json").read_text())["metrics"] == {"voc07_map": 100.0}
    code, out, _ = call("evaluate", run, "--max-detections", "5", "--json", "five.json")
    assert (
        code == 0 and "AP@5" in out and json.loads((world / "five.json").read_text())["headline"] == "ap_max5"
    )
    # what the run left is enough to score it again
    truth = next((world / "shards/val").glob("annotations.json"))
    code, _, _ = call("evaluate", run / "detections.json", "--annotations", truth, "--json", "file.json")
    assert code == 0 and json.loads((world / "file.json").read_text())["metrics"] == first["metrics"]
    code, _, _ = call("evaluate", run, "--data", "shards/train", "--json", "train.json")
    assert code == 2  # that is the ground truth
    code, _, _ = call("evaluate", run, "--data", "shards/train", "--json", "on_train.json")
    assert code == 0 and json.loads((world / "on_train.json").read_text())["images"] == 12

    # and so is what `predict` writes: images by name, classes by id, boxes from corners
    code, _, err = call("predict", run, "val", "--to", "plain", "--labels", "score")
    assert code == 0, err
    options = ["--annotations", "val.json", "--json", "plain.json"]
    code, _, err = call("evaluate", "plain/detections.json", *options)
    assert code == 0 and err == ""
    metrics = json.loads((world / "plain.json").read_text())["metrics"]
    assert metrics == pytest.approx(first["metrics"], nan_ok=True)
    assert call("predict", run, "val", "--to", "plain", "--labels", "all")[0] == 2

    # a larger photo, whose answer must come in its own px; and one that cannot be read
    image = np.asarray(Image.open("val/0.png"))
    Image.fromarray(image.repeat(3, axis=0).repeat(3, axis=1)).save("val/large.png")
    (world / "val" / "broken.jpg").write_text("no")
    code, out, err = call("predict", run, "val", "--to", "drawn")
    assert code == 1 and "7 images saved" in out and err.count("\n") == 1 and "broken.jpg" in err
    assert "scores of 0.3 and more" in out
    found = {one["file"]: one for one in json.loads((world / "drawn/detections.json").read_text())}
    small, large = (found[f"val/{name}.png"]["detections"][0] for name in ("0", "large"))
    np.testing.assert_allclose(large["box"], 3 * np.array(small["box"]), atol=0.01)
    assert (
        small["box"]
        == json.loads((world / "val.json").read_text())["annotations"][0]["bbox"][:2] + small["box"][2:]
    )
    assert small["name"] in ("red", "green") and small["category_id"] in (7, 3)
    assert Image.open("drawn/large.png").size == (288, 192)

    code, _, err = call("predict", run, "val/broken.jpg", "--to", "drawn")
    assert (
        code == 2
        and err.startswith("kgarden: val/broken.jpg: not an image in a format")
        and err.count("\n") == 1
    )
    predictor = kgarden.Predictor.from_run(run, batch_size=4)
    one, two = predictor(["val/0.png", image])
    np.testing.assert_allclose(one["boxes"], two["boxes"])
    np.testing.assert_allclose(one["boxes"][0], small["box"], atol=1e-3)
    assert predictor.names == [category["name"] for category in sorted(CATEGORIES, key=lambda c: c["id"])]


def test_classes_and_splits_of_raw_data(world, call):
    """A list, renamings and a split, through the command line."""
    code, out, err = call("data", "split", "train.json", "--to", "parts", "--val", "0.25", "--group", "^.")
    assert code == 0 and "saved to parts/train.json, parts/val.json" in out, err
    assert "train 9 images, val 3 images" in out
    first, second = (category["name"] for category in CATEGORIES)
    (world / "names.txt").write_text("thing\n")
    given = ["--images", "train", "--annotations", "parts/val.json", "--classes", "names.txt", "--strict"]
    renamed = ["--rename", f"{first}=thing", "--rename", f"{second}=thing"]
    code, out, err = call("data", "build", "coco", *given, *renamed, "--to", "joined")
    assert code == 0 and "3 of 3 images" in out and "1 classes" in out, err
    code, _, err = call("data", "build", "coco", *given, *renamed, "--rename", f"{first}=b", "--to", "two")
    assert code == 2 and "gets two new names, thing and b" in err


def test_views_are_set_by_recipe_keys(world, call, monkeypatch):
    """In a training, for `evaluate`, for `predict`; an export says that it has one."""
    monkeypatch.setattr(report, "all_figures", lambda analysis: {})
    for split in ("train", "val"):
        given = ["--images", split, "--annotations", f"{split}.json", "--to", f"shards/{split}"]
        assert call("data", "build", "coco", *given)[0] == 0
    once = ["train", "standin.yaml", "--set", "evaluate.every=12"]  # at the end alone
    code, _, err = call(*once, "--set", "evaluate.views.flip=true", "--run", "seen_twice")
    assert code == 0, err
    measured = json.loads((world / "seen_twice/evaluation.json").read_text())
    assert measured["views"] == 2 and measured["metrics"]["ap50"] == 100.0 and measured["detections"] == 6
    assert len(list((world / "seen_twice/pictures").iterdir())) == 2

    assert call(*once, "--run", "seen_once")[0] == 0
    run, numbers = world / "seen_once", world / "numbers.json"
    assert "views" not in json.loads((run / "evaluation.json").read_text())
    flip = ["--set", "evaluate.views.flip=true"]
    assert call("evaluate", run, *flip, "--json", numbers)[0] == 0
    assert json.loads(numbers.read_text())["metrics"]["ap"] == 100.0
    soft = ["--set", "evaluate.merge={convention: maskrcnn_benchmark, soft: linear}"]
    code, _, err = call("evaluate", run, *flip, *soft)
    assert code == 2 and "evaluate.merge.soft does not apply to method nms" in err and err.count("\n") == 1

    assert call("predict", run, "val/0.png", "--to", "once")[0] == 0
    assert call("predict", run, "val/0.png", "--to", "twice", *flip)[0] == 0
    once, twice = (json.loads((world / f"{name}/detections.json").read_text()) for name in ("once", "twice"))
    assert len(twice[0]["detections"]) == 1
    assert once[0]["detections"][0]["box"] == twice[0]["detections"][0]["box"]

    code, out, _ = call("export", world / "seen_twice", "--to", "served")
    assert code == 0 and "evaluate.views: the exported model uses one view" in out and "instead of 2" in out
    assert "one view" in json.loads((world / "served/1/metadata.json").read_text())["views"]
    code, out, _ = call("export", run, "--to", "plain")
    assert code == 0 and "views" not in out + (world / "plain/1/metadata.json").read_text()


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["train", "standn"], "no recipe 'standn'"),
        (["train", "standin.yaml", "--set", "schedule.step=3"], "'steps'"),
        (["train", "standin.yaml", "--set", "schedule.steps"], "KEY=VALUE"),
        (["train", "standin.yaml", "--row", "t.c"], "no row 't.c'"),
        (["train", "standin.yaml", "--row", "t.b"], "re-evaluates t.a"),
        (["train", "standin.yaml"], "shards/train"),
        (["train", "double_head", "--row", "table5.c4_r50"], "data/coco/train2017"),  # of another recipe
        (["evaluate", "nowhere"], "not a run directory"),
        (["predict", "nowhere", "nothing*.jpg", "--to", "x"], "nothing*.jpg: no image found"),
        (["list", "nothing"], "list nothing"),
        (["list", "rows"], "list rows needs a recipe"),
        (
            ["data", "build", "coco", "--images", "train", "--annotations", "none.json", "--to", "x"],
            "none.json",
        ),
        (["data", "build", "shapes", "--to", "x", "--count", "0"], "--count"),
        (["data", "build", "yolo", "--annotations", "none.yaml", "--to", "x"], "none.yaml"),
        (["data", "build", "yolo", "--annotations", "x", "--to", "x", "--rename", "mug"], "OLD=NEW"),
        (["data", "split", "train.json", "--to", "x", "--val", "2"], "not a fraction"),
        (["data", "check", "train.json"], "kgarden data build coco --images IMAGES --annotations train.json"),
        (["train", "standin.yaml", "--set", "data.train=data.yaml"], "kgarden data build yolo"),
        (["trian", "standin.yaml"], "trian"),
        (["train"], "RECIPE"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(world, call, arguments, words):
    (world / "data.yaml").write_text("train: images\nnames: [a, b]\n")
    code, out, err = call(*arguments)
    assert code == 2 and words in err and out == ""
    assert err.startswith("kgarden: ") and err.count("\n") == 1 and "Traceback" not in err


def test_debug_raises_user_errors(world, call):
    with pytest.raises(kgarden.UserError):
        call("train", "standn", "--debug")


def test_list(world, call):
    _, out, _ = call("list")
    assert "centernet2" in out and "quickstart" in out
    _, out, _ = call("list", "rows", "standin.yaml")
    assert (
        out.splitlines()[0].split() == ["t.a", "ap", "1.5", "schedule.steps=4"] and "re-evaluates t.a" in out
    )
    _, out, _ = call("list", "backbones")
    assert "resnet50" in out.splitlines()
    assert call("--version")[1].strip() == kgarden.__version__


def test_rows_without_their_backbone_are_marked(world, call):
    """A backbone that does not exist, in a whole model, a backbone, a name, or another recipe."""
    recipe = world / "standin.yaml"
    text = recipe.read_text()
    rows = """
  n.none: {set: {schedule.steps: 5}}
  n.whole: {set: {model: {name: fcos, backbone: swin_tiny}}}
  n.part: {set: {model.backbone: {name: swin_tiny, freeze_at: 2}}}
  n.name: {set: {model.backbone.name: swin_tiny}}
  n.there: {set: {model.backbone.name: resnet50}}
  n.other: {recipe: atss_pss, row: table1.atss_pss_x101_dcn}
  n.other_there: {recipe: atss_pss, row: table1.atss_pss_r50}
"""
    recipe.write_text(text + rows.lstrip("\n"))
    lines = call("list", "rows", "standin.yaml")[1].splitlines()
    ends = {line.split()[0]: line.partition("  [needs ")[2] for line in lines}
    mark = "swin_tiny, not available yet]"
    assert {row: end for row, end in ends.items() if end} == {
        **dict.fromkeys(("n.whole", "n.part", "n.name"), mark),
        "n.other": "resnext101_32x4d_dcn, not available yet]",
    }
    assert len(ends) == 9


def test_describe_counts_by_hand(world, call):
    """The stand-in: a norm of 6 weights and a dense layer of 3 x 2 + 2, 6 multiplications for a picture."""
    code, out, err = call("describe", "standin.yaml", "--classes", "2")
    assert code == 0, err
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["norm"][0] == "BatchNormalization" and rows["norm"][3:5] == ["6", "6"]
    assert rows["head"][0] == "Dense" and rows["head"][2:5] == ["2", "8", "8"]
    assert rows["whole"][1].endswith("fake_detector.py") and rows["whole"][3] == "14"


def test_gmacs_of_known_layers():
    """A 3x3 convolution 4 -> 8 on 10x12 of stride 2, a depthwise one and a dense layer, each by hand."""
    import keras

    from kgarden.commands.describe import describe

    class Toy(StandIn):
        def build(self, input_shape=None):
            self.conv = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)
            self.depth = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)
            self.last = keras.layers.Dense(5)
            super().build()
            self.conv.build((None, None, None, 3))
            self.depth.build((None, None, None, 8))
            self.last.build((None, None, None, 8))

        def parts(self):
            return {"conv": self.conv, "depth": self.depth, "last": self.last}

        def call(self, x, training=False):
            y = self.conv(keras.ops.cast(x["images"], "float32") / 255)
            self.last(self.depth(y))
            self.last(y)  # a layer that is used twice counts twice
            return super().call(x, training)

    toy = Toy(2)
    toy.build()
    rows = {row["part"]: row for row in describe(toy, (64, 96))}
    by_hand = {"conv": 32 * 48 * 27 * 8, "depth": 32 * 48 * 9 * 8, "last": 2 * 32 * 48 * 8 * 5}
    for part, macs in by_hand.items():
        assert rows[part]["gmacs"] == round(macs / 1e9, 3) and rows[part]["parameters"] > 0
    assert rows["conv"]["output"] == "32x48x8" and rows["conv"]["file"].endswith(".py")


@pytest.mark.parametrize(
    "installed,words",
    [
        ({"keras": "3.15.1", "tensorflow": "2.21.0"}, None),
        ({"keras": "3.15.0"}, None),
        ({"keras": "3.14.2", "tensorflow": "2.21.0"}, "keras 3.14.2: pip install 'keras~=3.15.0'"),
        ({"keras": "3.15.1", "tensorflow": "2.3.0"}, "tensorflow 2.3.0"),
    ],
)
def test_untested_versions_are_reported_in_one_line(installed, words):
    complaint = kgarden.version_complaint(installed)
    assert complaint is None if words is None else words in complaint and "\n" not in complaint


def test_help_is_fast_and_imports_no_heavy_packages():
    """Nor does a list of rows, some of whose backbones do not exist."""
    code = (
        "import sys, kgarden.cli; kgarden.cli.main(['--help']); "
        "heavy = {'tensorflow', 'keras', 'jax', 'matplotlib', 'numpy'}; assert not heavy & set(sys.modules); "
        "assert kgarden.cli.main(['list', 'rows', 'fcos_pss']) == 0; "
        "assert kgarden.cli.main(['list', 'backbones']) == 0; "
        "sys.exit(bool(heavy - {'numpy'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "resnet50" in done.stdout and "table1." in done.stdout
    assert "train" in done.stdout and time.perf_counter() - started < 3  # < 1 s on an idle machine


@pytest.mark.parametrize(
    "error, code",
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/detections.json"), 2),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 2),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2),
        (TrainingFailed("step 3: loss no longer finite"), 1),
        (UserError("runs/a: no such directory"), 2),
    ],
)
def test_failures_are_one_line(monkeypatch, call, error, code):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    got, out, err = call("train", "quickstart")
    assert got == code and out == "" and err == f"kgarden: {error}\n"


def test_internal_errors_keep_their_traceback(monkeypatch, call):
    def fails(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(OSError):
        call("train", "quickstart")


def test_warnings_are_lines_of_ours_and_those_of_libraries_are_kept_away(monkeypatch, capsys):
    def listed():
        for place in (listing.__file__, np.__file__):
            warnings.warn_explicit(f"from {place}\nand on", UserWarning, place, lineno=1)
        return {}

    monkeypatch.setattr(listing, "recipe_summaries", listed)
    before = warnings.showwarning
    assert cli.main(["list", "recipes"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"kgarden: from {listing.__file__}") and np.__file__ not in err
    assert len(err.splitlines()) == 1 and "UserWarning" not in err
    assert warnings.showwarning is before


def test_messages_of_libraries_below_an_error_are_kept_away():
    start_tensorflow()
    for library in ("absl", "PIL"):
        assert not logging.getLogger(library).isEnabledFor(logging.WARNING)
        assert logging.getLogger(library).isEnabledFor(logging.ERROR)
