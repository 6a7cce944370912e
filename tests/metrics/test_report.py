"""Evaluation of existing detections from the command line: numbers, files and error messages."""

import copy
import csv
import io
import json
import os
import subprocess
import sys
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from support import real_data
from support.metric_tables import table

from kgarden import cli
from kgarden.config import recipe
from kgarden.errors import UserError
from kgarden.metrics import figures
from kgarden.metrics.analysis import analyse
from kgarden.metrics.coco_json import read_results, read_truth
from kgarden.metrics.figures import all_figures
from kgarden.metrics.registry import HEADLINES
from kgarden.metrics.report import score, score_file, write_folder
from kgarden.metrics.tables import evaluation_tables
from kgarden.utils.files import write_json
from kgarden.utils.text import printable

BOX = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 40, 40]}
TRUTH = {
    "images": [{"id": n, "width": 200, "height": 100, "file_name": f"{n}.jpg"} for n in (1, 2)],
    "categories": [{"id": 2, "name": "cup, small"}, {"id": 7, "name": "lid"}],
    "annotations": [
        {**BOX, "id": 1, "difficult": 1},
        {**BOX, "id": 2, "image_id": 2, "bbox": [50, 50, 40, 40]},
        {**BOX, "id": 3, "image_id": 2, "category_id": 7},
    ],
}
FOUND = [{**BOX, "score": 0.9}, {**BOX, "image_id": 2, "category_id": 7, "score": 0.8}]
FIGURES = {"pr_curves.png", "confusion_matrix.png", "errors.png"}


def names_in(folder):
    return {path.name for path in folder.glob("[!.]*")}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    return tmp_path


def call(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_a_results_file_gives_metrics_figures_and_analysis(files, capsys):
    arguments = [
        "--annotations",
        "truth.json",
        "--metrics",
        "voc_area, coco",
        "--to",
        "out",
        "--json",
        "n.json",
    ]
    assert call("found.json", *arguments) == 0
    shown = capsys.readouterr().out
    assert "VOC mAP" in shown and "cup, small" in shown and "missed" in shown
    numbers = json.loads((files / "n.json").read_text())
    # cups: the difficult one is found, the other is not; lids: all
    assert numbers["headline"] == "voc_area_map" and numbers["metrics"]["voc_area_map"] == 50.0
    assert numbers["metrics"]["ap50"] == pytest.approx(100 * (1 + 51 / 101) / 2, abs=1e-5)
    assert "explanation" not in numbers and numbers["errors"]["missed"]["count"] == 1
    assert names_in(files / "out") == FIGURES | {"analysis.json", "per_class.csv", "evaluation.json"}
    assert json.loads((files / "out/evaluation.json").read_text()) == numbers
    analysis = json.loads((files / "out/analysis.json").read_text())
    assert analysis["right"] == 2 and analysis["errors"] == numbers["errors"]
    rows = list(csv.DictReader(io.StringIO((files / "out/per_class.csv").read_text())))
    assert [(row["name"], row["right"], row["missed"]) for row in rows] == [
        ("cup, small", "1", "1"),
        ("lid", "1", "0"),
    ]


def test_command_line_reproduces_published_numbers(tmp_path):
    """COCO's own example, boxes and masks, to the published digits."""
    folder = real_data.folder("coco_samples", "cocoapi_val2014_100")
    for kind, ap, small in (("bbox", 0.505, 0.586), ("segm", 0.320, 0.387)):
        found = folder / f"instances_val2014_fake{kind}100_results.json"
        options = ["--annotations", folder / "instances_val2014_100.json", "--iou-type", kind]
        assert call(found, *options, "--json", tmp_path / "n.json") == 0
        metrics = json.loads((tmp_path / "n.json").read_text())["metrics"]
        assert round(metrics["ap"] / 100, 3) == ap and round(metrics["ap_small"] / 100, 3) == small


def test_no_deep_learning_framework_is_imported(files):
    """In a separate process: neither TensorFlow, Keras nor JAX is imported, nor pyplot with its state."""
    program = (
        "import sys, kgarden.cli as cli\n"
        "code = cli.main(['evaluate', 'found.json', '--annotations', 'truth.json', '--to', 'out'])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert FIGURES < {path.name for path in (files / "out").iterdir()}


@pytest.mark.parametrize("content,words", [
    (json.dumps(TRUTH), "found.json: this is ground truth"),
    ("[]", "found.json: the list of detections is empty"),
    ('[{"image_id": 1, "category', "found.json: not valid JSON"),
    ("", "found.json: not valid JSON"),
    ("[" * 100_000, "found.json: not valid JSON"),
    ('[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": NaN}]', "score nan is not a finite"),
    ('[{"file": "a.jpg", "detections": []}]', "a.jpg is not in the ground truth"),
    (json.dumps([{**FOUND[0], "image_id": 9}]), "1 of 1 detections have image ids"),
    (json.dumps([{**FOUND[0], "category_id": 1}]), "increased by one, all would be"),
    (json.dumps({"metrics": {}}), "not detections"),
])  # fmt: skip
def test_invalid_detections_exit_2_with_one_line(files, capsys, content, words):
    (files / "found.json").write_text(content)
    assert_refused(capsys, ["found.json", "--annotations", "truth.json", "--to", "out"], words)
    assert not (files / "out").exists()


@pytest.mark.parametrize("arguments,words", [
    (["found.json"], "--annotations FILE"),
    (["nothing.json", "--annotations", "truth.json"], "nothing.json: cannot be read"),
    (["found.json", "--annotations", "nothing.json"], "nothing.json: cannot be read"),
    (["found.json", "--annotations", "."], ".: cannot be read"),
    (["found.json", "--annotations", "found.json"], "found.json: a list is not ground truth"),
    (["found.json", "--annotations", "truth.json", "--metrics", "map"], "--metrics map: There are coco"),
    (["found.json", "--annotations", "truth.json", "--iou-type", "segm"], "3 of 3 annotations have no"),
    (["found.json", "--annotations", "truth.json", "--iou-type", "box"], "use bbox or segm"),
    (["found.json", "--annotations", "truth.json", "--weights", "w.h5"], "--weights: only valid for runs"),
    (["run", "--annotations", "truth.json"], "--annotations: only valid for results files"),
    (["run", "--iou-type", "segm"], "--iou-type segm is for results files"),
])  # fmt: skip
def test_wrong_usage_exits_2_with_one_line(files, capsys, arguments, words):
    assert_refused(capsys, arguments, words)


def assert_refused(capsys, arguments, words):
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and out == "" and err.startswith("kgarden: ") and err.count("\n") == 1


def test_faults_of_the_ground_truth_are_reported(files, capsys):
    lost = {**TRUTH["annotations"][0], "image_id": 77}
    (files / "truth.json").write_text(json.dumps({**TRUTH, "annotations": [*TRUTH["annotations"], lost]}))
    assert call("found.json", "--annotations", "truth.json") == 0
    assert "1 annotations left out: image_id is not among the images" in capsys.readouterr().err


def test_near_zero_ap_is_diagnosed(files, capsys):
    wrong = [{**one, "bbox": [10, 10, 500, 500]} for one in FOUND]
    (files / "found.json").write_text(json.dumps(wrong))
    assert call("found.json", "--annotations", "truth.json", "--json", "n.json") == 0
    (cause,) = json.loads((files / "n.json").read_text())["explanation"]
    assert f"why: {cause}" in capsys.readouterr().out.replace("\n", "")


def test_an_existing_output_folder_is_updated(files):
    """Files of an earlier report are replaced, those of others stay, no temporary file is left."""
    evaluation, analysis = score_file("found.json", "truth.json")
    (files / "out").mkdir()
    (files / "out/mine.txt").write_text("old")
    write_folder("out", evaluation, analysis)
    write_folder("out", evaluation, {**analysis, "right": -1})
    assert names_in(files / "out") == FIGURES | {"analysis.json", "per_class.csv", "mine.txt"}
    assert json.loads((files / "out/analysis.json").read_text())["right"] == -1
    (files / "out/errors.png").write_text("somebody's work")
    with pytest.raises(UserError, match="errors.png: exists and was not written by kgarden"):
        write_folder("out", evaluation, analysis)
    assert (files / "out/errors.png").read_text() == "somebody's work"
    assert json.loads((files / "out/analysis.json").read_text())["right"] == -1
    (files / "wall").write_text("a file where a folder should be")
    with pytest.raises(OSError):
        write_json(files / "wall" / "n.json", {})


def test_recipes_accept_the_same_metrics():
    assert set(typing.get_args(recipe.Metric)) == HEADLINES.keys()


@pytest.mark.parametrize("num_classes, num", [(1, 0), (3, 300), (90, 0), (90, 300)])
def test_figures_are_drawn_for_any_number_of_classes(num_classes, num):
    """They open, are not blank and fit a page, with class names that could break layouts."""
    random = np.random.default_rng(0)
    corner = random.integers(0, 80, (num, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1)
    image, label = random.integers(0, 10, num), random.integers(0, num_classes, num)
    objects = np.column_stack([image, boxes, label])
    found = np.column_stack([image, boxes + random.integers(-6, 7, (num, 1)), random.random(num), label])
    data = table(objects.tolist(), found, num_classes, num_images=10)
    for category in data.categories:
        category["name"] = f"a $ and {{a}} \\ very_long^name\n of class {category['id']} " * 2
    drawn = all_figures(analyse(data))
    assert drawn.keys() == FIGURES
    for content in drawn.values():
        image = Image.open(io.BytesIO(content)).convert("RGB")
        assert 400 < image.width < 2000 and 400 < image.height < 2000
        assert (np.asarray(image) < 200).any()


def test_gains_that_were_not_measured_are_no_zeros(monkeypatch):
    """Without objects AP is undefined, and so is what a correction would gain."""
    monkeypatch.setattr(figures, "png_of", lambda figure: figure)
    found = np.array([[0, 5, 5, 20, 20, 0.9, 0]])
    drawn = figures.errors(analyse(table([], found, 1, num_images=1)))
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert texts == ["–"] * len(texts) and len(texts) == 6
    assert "now –" in drawn.axes[0].get_title()


def mutated(content, draw):
    """The content with one entry removed, duplicated or replaced by another value."""
    content = copy.deepcopy(content)
    at, steps = content, draw(st.integers(1, 5))
    for step in range(steps):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if step + 1 < steps and isinstance(at[key], dict | list):
            at = at[key]
            continue
        change = draw(st.sampled_from(["remove", "double", "replace"]))
        if change == "remove":
            del at[key]
        elif change == "double" and isinstance(at, list):
            at.append(at[key])
        else:
            values = [
                None,
                -1,
                0,
                3.7,
                float("nan"),
                float("inf"),
                1e300,
                True,
                "x",
                "2",
                [],
                {},
                [[]],
                [1, 2],
            ]
            at[key] = draw(st.sampled_from(values))
        break
    return content


MASKED = [{**one, "segmentation": [[10, 10, 50, 10, 50, 50]]} for one in FOUND]
MASKED_TRUTH = {
    **TRUTH,
    "annotations": [{**one, "segmentation": [[10, 10, 50, 10, 50, 50]]} for one in TRUTH["annotations"]],
}


@settings(max_examples=300, deadline=None, derandomize=True, report_multiple_bugs=False)
@given(data=st.data())
def test_damaged_files_are_evaluated_or_rejected(data):
    """One to three entries of either file are changed: metrics, or a one-line error."""
    truth, found = MASKED_TRUTH, data.draw(st.sampled_from([FOUND, MASKED, {**TRUTH, "annotations": FOUND}]))
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            truth = mutated(truth, data.draw)
        else:
            found = mutated(found, data.draw)
    try:
        truth, _ = read_truth(truth)
        results, _ = read_results(found, truth)
        iou_type = data.draw(st.sampled_from(["bbox", "segm"]))
        evaluation, analysis = score(truth, results, metrics=tuple(HEADLINES), iou_type=iou_type)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(evaluation, allow_nan=False), json.dumps(analysis, allow_nan=False)


@pytest.mark.parametrize(
    "name", ["[/red]", "[link=x]cat", "\ud800", "a\x1b[2Jb", "$\\frac$", "c\nd", "\u202ecat"]
)
def test_odd_class_names_are_shown_as_they_are(tmp_path, name, capsys):
    truth = {
        "images": [{"id": 1, "height": 50, "width": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": name}],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.5}]
    for file, content in (("truth.json", truth), ("found.json", results)):
        (tmp_path / file).write_text(json.dumps(content))
    found, annotations, to = (str(tmp_path / one) for one in ("found.json", "truth.json", "to"))
    assert cli.main(["evaluate", found, "--annotations", annotations, "--to", to]) == 0
    shown = capsys.readouterr().out
    expected = "?" if name == "\ud800" else printable(name)  # no character: replaced where it is read
    assert expected in shown and not {"\x1b", "\ud800", "\u202e"} & set(shown)
    assert (tmp_path / "to/errors.png").is_file() and (tmp_path / "to/per_class.csv").read_bytes()


def test_thresholds_are_those_of_the_best_f1():
    """Of each class by itself, and of all: by hand."""
    wrong = {**BOX, "image_id": 1, "category_id": 7, "bbox": [120, 10, 40, 40], "score": 0.85}
    evaluation, _ = score(TRUTH, [*FOUND, wrong])
    cup, lid = evaluation["thresholds"]["per_class"]
    assert (cup["id"], cup["name"]) == (2, "cup, small") and (lid["id"], lid["score"]) == (7, 0.8)
    assert (lid["precision"], lid["recall"]) == (50.0, 100.0) and lid["f1"] == pytest.approx(
        200 / 3, abs=1e-5
    )
    # all three objects: 0.9 right, 0.85 wrong, 0.8 right
    assert evaluation["thresholds"]["all"]["score"] == 0.8
    console = Console(file=io.StringIO(), width=120)
    console.print(*evaluation_tables({**evaluation, "detections_file": "found.json"}), sep="\n")
    assert "score of best F1" in console.file.getvalue() and "0.800" in console.file.getvalue()
