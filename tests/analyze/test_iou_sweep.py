"""AP over IoU thresholds: files of detections against pycocotools, and runs."""

import contextlib
import copy
import csv
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.fake_runs import make_run, without_graphs

from kgarden import cli
from kgarden.analyze import iou_sweep
from kgarden.metrics.coco import AREAS, IOUS
from kgarden.utils.files import read_json

SIDES = {"small": 20.0, "medium": 60.0, "large": 150.0}


@pytest.fixture
def call(capsys):
    """call(subject, ..., "--to", folder) -> (exit code, standard output, standard error)."""

    def _call(*arguments):
        code = cli.main(["analyze", "iou-sweep", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return _call


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def truth_of(sizes=("small", "medium", "large")):
    """Two classes, ten images with an object of each size and a crowd."""
    rng, annotations = np.random.default_rng(0), []
    for image in range(1, 11):
        for number, size in enumerate(sizes):
            side = SIDES[size] * rng.uniform(0.8, 1.2)
            box = [160.0 * number + 5, rng.uniform(0, 20), side, side]
            annotations.append({"image_id": image, "category_id": 1 + number % 2, "bbox": box})
        crowd = {"image_id": image, "category_id": 1, "bbox": [0, 180, 90, 19], "iscrowd": 1}
        annotations.append(crowd)
    return {
        "images": [{"id": n, "height": 200, "width": 480, "file_name": f"{n}.jpg"} for n in range(1, 11)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "lid"}],
        "annotations": annotations,
    }


def detections_of(truth, spread, seed=1):
    """Boxes beside the objects, by up to a fraction of their sides, and as many wrong ones."""
    rng, results = np.random.default_rng(seed), []
    for one in truth["annotations"]:
        x, y, side, _ = one["bbox"]
        away = rng.uniform(-spread, spread, 2) * side
        for box in ([x + away[0], y + away[1], side, side], [x, 100.0, side, 30.0]):
            row = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": box}
            results.append({**row, "score": rng.uniform(0.1, 1)})
    return results


def with_fields(truth):
    """What pycocotools needs."""
    truth = copy.deepcopy(truth)
    for number, one in enumerate(truth["annotations"], start=1):
        area = one["bbox"][2] * one["bbox"][3]
        one.update({"id": number, "area": one.get("area", area), "iscrowd": one.get("iscrowd", 0)})
    return truth


def directly(truth, results):
    """AP of pycocotools, (10 thresholds, 4 sizes) in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = with_fields(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., -1]  # (10, 101, classes, 4)
    return 100 * np.ma.masked_less(precision, 0).mean(axis=(1, 2))


def test_files_of_detections_against_pycocotools(call, tmp_path):
    truth = truth_of()
    results = {"base": detections_of(truth, 0.15), "tight": detections_of(truth, 0.05)}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for name, of_one in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(of_one))
    files = [tmp_path / "base.json", tmp_path / "tight.json"]
    code, out, err = call(*files, "--annotations", tmp_path / "truth.json", "--to", tmp_path / "look")
    assert code == 0, err
    rows = rows_of(tmp_path / "look/iou_sweep.csv")
    wanted = {name: directly(truth, of_one) for name, of_one in results.items()}
    assert len(rows) == 2 * 4 * 10
    for row in rows:
        at = np.argmin(np.abs(IOUS - float(row["iou"]))), AREAS.index(row["size"])
        assert float(row["ap"]) == pytest.approx(wanted[row["run"]][at], abs=1e-5), row
        if row["run"] == "base":
            assert row["difference"] == ""
        else:
            difference = wanted["tight"][at] - wanted["base"][at]
            assert float(row["difference"]) == pytest.approx(difference, abs=1e-5), row
        assert row["objects"] == ("30" if row["size"] == "all" else "10")
    low, high = (wanted["tight"][at, 0] - wanted["base"][at, 0] for at in (0, 8))
    assert high > low + 5  # boxes are tighter
    reading = (tmp_path / "look/reading.txt").read_text()
    assert f"tight - base: {low:+.1f} at IoU 0.5, {high:+.1f} at 0.9." in reading and "30 objects" in reading
    assert reading.strip() in out and f"{wanted['tight'][8, 3]:.1f}" in out
    names = {path.name for path in (tmp_path / "look").glob("[!.]*")}
    assert names == {"iou_sweep.csv", "iou_sweep.png", "iou_sweep.svg", "reading.txt"}


def test_sizes_without_objects_and_limits(call, tmp_path):
    """By hand: one detection of each class in an image counts, the better one of two is wrong."""
    truth = truth_of(sizes=("small", "medium"))
    results = [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for one in truth["annotations"]
        if not one.get("iscrowd")
    ]
    results += [{**one, "bbox": [400, 100, 60, 60], "score": 0.9} for one in results]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(results))
    arguments = (tmp_path / "found.json", "--annotations", tmp_path / "truth.json", "--to", tmp_path / "look")
    for more, ap in (((), 50.0), (("--max-detections", 1), 0.0)):
        code, out, err = call(*arguments, *more)
        assert code == 0, err
        of = {(row["size"], row["iou"]): row["ap"] for row in rows_of(tmp_path / "look/iou_sweep.csv")}
        assert float(of["all", "0.95"]) == pytest.approx(ap) and of["large", "0.5"] == ""
        assert "large" not in out.split("Top")[0] and "Bottom" not in out


@pytest.mark.tensorflow
@without_graphs()
def test_runs_on_their_validation_data(call, tmp_path, monkeypatch):
    """The detectors run; their detections are replaced by the objects, moved by 1 px and by 4 px."""
    runs, calls = [make_run(tmp_path / name) for name in ("one", "two")], []
    really = iou_sweep.detect

    def moved(model, batches, categories, on_batch):
        results, image_ids, has_masks = really(model, batches, categories, on_batch)
        assert results and categories[0]["name"] == "disc"
        calls.append(image_ids)
        number = len(calls) - 1
        (path,) = runs[number].glob("data/*/annotations.json")
        return list(_moved_objects(path, px=(1, 4)[number])), image_ids, has_masks

    monkeypatch.setattr(iou_sweep, "detect", moved)
    code, out, err = call(*runs, "--to", tmp_path / "look", "--limit", 2)
    assert code == 0, err
    assert [len(one) for one in calls] == [2, 2] and "4/4 images" in out
    rows = {(row["run"], row["size"], row["iou"]): row for row in rows_of(tmp_path / "look/iou_sweep.csv")}
    assert float(rows["one", "all", "0.5"]["ap"]) > 99
    assert float(rows["two", "all", "0.9"]["difference"]) < -50
    code, _, err = call(runs[0], "--to", tmp_path / "look", "--iou-type", "segm")
    assert code == 2 and "double_head predicts no masks; use --iou-type bbox" in err
    other = make_run(tmp_path / "other", **{"evaluate.max_detections": 50})
    code, _, err = call(runs[0], other, "--to", tmp_path / "look")
    assert code == 2 and "different evaluate.max_detections (50, 100); use --max-detections N" in err


def _moved_objects(path, px):
    """Yields the objects as detections, moved to the right."""
    for one in read_json(path)["annotations"]:
        x, y, width, height = one["bbox"]
        row = {"image_id": one["image_id"], "category_id": one["category_id"], "score": 0.9}
        yield {**row, "bbox": [x + px, y, width, height]}


def test_mistakes_are_named(call, tmp_path):
    truth = truth_of()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections_of(truth, 0.1)))
    found, to = tmp_path / "found.json", ("--to", tmp_path / "look")
    given = (*to, "--annotations", tmp_path / "truth.json")
    for arguments, message in (
        ((found, *to), "files of detections need ground truth; use --annotations FILE"),
        ((found, tmp_path / "run", *given), "give runs alone, or files alone"),
        ((found, found, *given), "found.json: the file is given twice"),
        ((found, *given, "--limit", 2), "--limit: only valid for runs"),
        ((tmp_path / "run", *given), "--annotations: only valid for files of detections"),
        ((tmp_path / "run", *to), "not a run directory"),
        ((found, *given, "--iou-type", "mask"), "--iou-type mask is not supported"),
        ((found, *given, "--iou-type", "segm"), "segmentation"),
    ):
        code, _, err = call(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1, (arguments, err)
    empty = {**truth, "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps(empty))
    code, _, err = call(found, *given)
    assert code == 2 and "truth.json: the ground truth has no objects" in err
