"""Stages of a cascade: known detections by hand, and runs against their evaluation with one stage alone."""

import csv
import json
import types

import numpy as np
import pytest
from keras import ops
from support.fake_runs import make_run, without_graphs
from support.small_backbone import RESNET10

from kgarden import cli
from kgarden.analyze import stages
from kgarden.analyze.loaded_runs import LoadedRun
from kgarden.analyze.stages import analyze_stages, scores_of
from kgarden.build import load_run
from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.metrics.coco import ap_by_iou
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.models.tsd_cascade import TSDCascadeHead

pytestmark = pytest.mark.tensorflow
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]
BOXES = {4: (0, [30, 40, 40, 20]), 9: (1, [10, 10, 80, 60]), 11: (1, [20, 10, 40, 30])}  # an object each
SCORE = 0.3


def narrower(objects, width):
    """Boxes around the same centres, whose IoU with the objects is `width`."""
    x0, y0, x1, y1 = (objects[..., side] for side in range(4))
    center, half = (x0 + x1) / 2, width * (x1 - x0) / 2
    return ops.stack([center - half, y0, center + half, y1], axis=-1)


def candidates(x, width, score):
    scores = SCORE * ops.one_hot(x["labels"], 2) * score
    return {"boxes": narrower(x["objects"], width), "scores": scores, "valid": x["labels"][..., None] >= 0}


class KnownHead:
    """A cascade whose stages find every object with known IoUs, less and less sure of it."""

    def __init__(self, widths, ensemble):
        self.widths, self.ensemble, self.ious = widths, ensemble, (0.5, 0.6, 0.7)[: len(widths)]

    def of_stage(self, raw, stage, size_hw):
        assert self.test_stage is None
        found = candidates(raw, self.widths[stage - 1], 1 / stage)
        return {key: found[key] for key in ("boxes", "scores")}

    def candidates(self, raw, proposals, size_hw):
        return candidates(raw, 0.97, 1.0)


class Known:
    """A detector with that head, or with none: one that finds every object with one IoU."""

    selection = Selection(score_threshold=0.01, iou=0.5, total=3)

    def __init__(self, *widths, ensemble="last", single=False):
        self.width = widths[0]
        if not single:
            self.roi_head = KnownHead(widths, ensemble)

    def __call__(self, x, training=False):
        return x

    def proposals(self, x, raw):
        return {"valid": x["labels"] >= 0}

    def refined(self, x, raw, proposals):
        return raw

    def fused(self, found, proposals):
        return {**found, "scores": found["scores"] * 0.5}

    def candidates(self, x, raw):
        return candidates(x, self.width, 1.0)

    def select(self, x, found):
        return self.selection(found)


@pytest.fixture
def annotations(tmp_path):
    crowd = {"id": 9, "image_id": 4, "category_id": 7, "bbox": [31, 40, 40, 20], "area": 800, "iscrowd": 1}
    truth = {
        "images": [{"id": one, "height": 100, "width": 120} for one in BOXES],
        "categories": CATEGORIES,
        "annotations": [
            {"id": n, "image_id": one, "category_id": CATEGORIES[label]["id"], "bbox": box, "iscrowd": 0}
            for n, (one, (label, box)) in enumerate(BOXES.items(), start=1)
        ]
        + [crowd],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path / "truth.json"


def known(name, annotations, detector, max_detections=70):
    """A run on three images, two in a batch, in an input of half their size."""

    def val_batches(limit):
        for ids in ([4, 9], [11, -1]) if limit is None else ([4, -1],):
            found = [BOXES.get(one, (-1, [0, 0, 0, 0])) for one in ids]
            boxes = np.float32([box for _, box in found])
            boxes[:, 2:] += boxes[:, :2]
            x = {"objects": boxes[:, None] / 2, "labels": np.int32([[label] for label, _ in found])}
            x["size_hw"] = np.int32([[50, 60]] * len(ids))
            yield x, {"image_id": np.int64(ids), "original_hw": np.int32([[100, 120]] * len(ids))}

    data = types.SimpleNamespace(val_batches=val_batches, annotations=annotations)
    data.val = [types.SimpleNamespace(index=types.SimpleNamespace(image_id=list(BOXES), __len__=lambda: 3))]
    recipe = types.SimpleNamespace(evaluate=types.SimpleNamespace(max_detections=max_detections))
    objects = {one: [{"label": label, "bbox": box}] for one, (label, box) in BOXES.items()}
    run = LoadedRun(name, recipe, detector, categories=CATEGORIES, data=data, objects=objects)
    object.__setattr__(run, "num_images", lambda limit=None: min(limit or 3, 3))
    return run


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def found_up_to(most):
    """AP at each threshold where every object is found with an IoU between `most` and the next one."""
    return [100.0 if iou <= most + 1e-6 else 0.0 for iou in np.arange(0.5, 0.96, 0.05)]


def test_known_detections_of_every_stage(annotations, tmp_path, monkeypatch):
    runs = [
        known("cascade", annotations, Known(0.52, 0.72, 0.88, ensemble="logits")),
        known("fpn", annotations, Known(0.67, single=True)),
        known("two", annotations, Known(0.92, 0.57)),
    ]
    monkeypatch.setattr(stages, "open_runs", lambda names, weights: runs)
    seen, limits = [], {}

    def remembered(table):
        limits[len(limits)] = table.max_detections
        return ap_by_iou(table)

    monkeypatch.setattr(stages, "ap_by_iou", remembered)
    result = analyze_stages(["a"], tmp_path / "look", progress=lambda *done: seen.append(done))
    assert seen == [(2, 9), (3, 9), (5, 9), (6, 9), (8, 9), (9, 9)]
    assert list(limits.values()) == [70] * 7
    assert result["rows"] and [*result["rows"][0]][:5] == ["run", "answer", "ap", "ap50", "ap55"]
    expected = {
        ("cascade", "stage 1"): found_up_to(0.5),
        ("cascade", "stage 2"): found_up_to(0.7),
        ("cascade", "stage 3"): found_up_to(0.85),
        ("cascade", "ensemble"): found_up_to(0.95),
        ("fpn", "own"): found_up_to(0.65),
        ("two", "stage 1"): found_up_to(0.9),
        ("two", "stage 2"): found_up_to(0.55),
    }
    rows = {(row["run"], row["answer"]): row for row in rows_of(tmp_path / "look" / "stages.csv")}
    assert list(rows) == list(expected)
    for key, wanted in expected.items():
        assert [float(rows[key][f"ap{50 + 5 * n}"]) for n in range(10)] == wanted, key
        assert float(rows[key]["ap"]) == pytest.approx(np.mean(wanted))
    gaps = {
        (row["run"], row["answer"], row["minus"]): [float(row[f"ap{50 + 5 * n}"]) for n in range(10)]
        for row in rows_of(tmp_path / "look" / "differences.csv")
    }
    assert gaps == {
        (run, last, minus): list(np.subtract(expected[run, last], expected[key]))
        for run, last, minus, key in (
            ("cascade", "stage 3", "stage 2", ("cascade", "stage 2")),
            ("cascade", "stage 3", "fpn", ("fpn", "own")),
            ("two", "stage 2", "stage 1", ("two", "stage 1")),
            ("two", "stage 2", "fpn", ("fpn", "own")),
        )
    }
    assert "cascade: stage 3 minus stage 2 is +0.0 at IoU 0.5 and +100.0 at IoU 0.8." in result["reading"]
    head, lines = stages.gap_table(result["differences"])
    assert head[2:] == ("at IoU 0.5", "at IoU 0.8")
    assert lines[1] == ["cascade", "stage 3 - fpn", 0.0, 100.0]
    # Boxes with IoU 0.52 in the first bin of five from 0.5 to 0.75, with 0.72 in the last.
    scores = [row for row in rows_of(tmp_path / "look" / "scores.csv") if row["n"] != "0"]
    assert [(row["run"], row["answer"], row["iou_from"], row["n"]) for row in scores] == [
        ("cascade", "stage 1", "0.5", "3"),
        ("cascade", "stage 2", "0.7", "3"),
        ("fpn", "own", "0.65", "3"),
        ("two", "stage 2", "0.55", "3"),
    ]
    means = [float(row[f"score_{name}"]) for name in ("mean", "median") for row in scores]
    fused = [SCORE / 2, SCORE / 4, SCORE, SCORE / 4]  # a dense detector has nothing to fuse
    np.testing.assert_allclose(means, fused * 2, rtol=1e-5)
    runs[1].recipe.evaluate.max_detections = 50
    with pytest.raises(UserError, match=r"max_detections \(50, 70\); use --max-detections N"):
        analyze_stages(["a"], tmp_path / "other")
    files = {
        f"{name}.{form}" for name in ("stages", "differences", "scores") for form in ("csv", "png", "svg")
    }
    assert {path.name for path in (tmp_path / "look").glob("[!.]*")} == files | {"reading.txt"}


def test_scores_are_those_of_boxes_of_moderate_iou():
    """The best object of the class counts, from 0.5 to 0.75 with both ends, and no crowd."""
    object_ = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 10], "iscrowd": 0}
    crowd = {**object_, "bbox": [0, 50, 100, 10], "iscrowd": 1}
    truth = {
        "images": [{"id": 1, "height": 100, "width": 200}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [object_, {**object_, "bbox": [0, 0, 70, 10]}, crowd],
    }
    results = [
        {"image_id": 1, "category_id": label, "bbox": [0, top, width, 10], "score": score}
        for label, top, width, score in (
            (1, 0, 50, 0.1),  # 0.5 and 5 / 7
            (1, 0, 74, 0.2),  # 0.74 and 70 / 74
            (1, 0, 30, 0.3),  # 0.3 and 3 / 7
            (1, 0, 35, 0.4),  # 0.35 and 0.5
            (1, 0, 200, 0.45),  # 0.5 and 0.35
            (2, 0, 52, 0.5),  # another class: 0.52 and 52 / 70
            (1, 54, 60, 0.6),  # 0.6 of it in a crowd
        )
    ]
    iou, score = scores_of(EvaluationTable(truth, results).arrays())
    np.testing.assert_allclose(iou, [5 / 7, 0.5, 0.5])
    np.testing.assert_allclose(score, [0.1, 0.4, 0.45])
    full = {**results[0], "bbox": [0, 0, 75, 10]}
    iou, _ = scores_of(EvaluationTable({**truth, "annotations": [object_]}, [full]).arrays())
    np.testing.assert_allclose(iou, [0.75])


def test_bins_of_moderate_iou():
    """Of 0.05, the last one with its end; none of the boxes is lost."""
    iou, score = np.array([0.5, 0.52, 0.56, 0.74, 0.75]), np.array([0.2, 0.4, 0.5, 0.1, 0.3])
    rows = stages.score_rows({("run", "own"): (iou, score)})
    assert [row["n"] for row in rows] == [2, 1, 0, 0, 2]
    assert [row["score_mean"] for row in rows] == pytest.approx([0.3, 0.5, None, None, 0.2])
    assert (rows[4]["iou_from"], rows[4]["iou_to"]) == (0.7, 0.75)
    assert rows[0]["score_q25"] == pytest.approx(0.25) and rows[0]["score_q75"] == pytest.approx(0.35)


PROPOSER = {"train": 32, "test": 10, "num_convs": 1}
CASCADE = {
    "name": "centernet2",
    "backbone": RESNET10,
    "neck": {"channels": 32, "levels": [3, 5]},
    "proposer": {**PROPOSER, "size_ranges": [[0, 64], [48, 128], [96, 1000000]]},
    "roi_head": {"name": "cascade", "width": 8},
    "selection": {"score_threshold": 0.0, "total": 20},
}
DENSE = {"name": "fcos", "backbone": RESNET10, "neck": {"channels": 32}, "dense_head": {"num_convs": 1}}


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "cascade", model=CASCADE)


def test_each_stage_detects_as_an_evaluation_with_it_alone(cascade):
    """And the ensemble as the run itself; a recipe may name the stage."""
    _, detector, _ = load_run(cascade, overrides={"model.roi_head.test_stage": 2})
    assert detector.roi_head.test_stage == 2
    rng = np.random.default_rng(0)
    x = {"images": rng.integers(0, 256, (1, 128, 128, 3), "uint8"), "size_hw": np.int32([[96, 128]])}
    detector.roi_head.test_stage = None
    together = stages.StageDetections(detector)(x)
    assert list(together) == ["stage 1", "stage 2", "stage 3", "ensemble"] == stages.answers_of(detector)
    seen = []
    for answer, found in together.items():
        detector.roi_head.test_stage = None if answer == "ensemble" else int(answer[-1])
        wanted = detector.detect(x, detector(x))
        assert np.sum(found["valid"]) > 5
        for key in found:
            np.testing.assert_allclose(
                found[key], wanted[key], rtol=1e-5, atol=1e-4, err_msg=f"{answer} {key}"
            )
        assert all(np.abs(found["scores"] - other).max() > 1e-4 for other in seen)
        seen.append(found["scores"])
    detector.roi_head.test_stage, detector.roi_head.ensemble = None, "last"
    assert stages.answers_of(detector) == ["stage 1", "stage 2", "stage 3"]
    of_tsd = types.SimpleNamespace(roi_head=TSDCascadeHead([4], 2, ious=(0.5, 0.6)))
    assert stages.answers_of(of_tsd) == ["stage 1", "stage 2", "ensemble"]
    of_one = types.SimpleNamespace(roi_head=TSDCascadeHead([4], 2, ious=(0.5,)))
    assert stages.answers_of(of_one) == ["stage 1"]


@without_graphs()
def test_stages_from_the_command_line(cascade, tmp_path, capsys):
    """A run of one stage is a curve; alone it is refused."""

    def call(*arguments):
        return (cli.main(["analyze", "stages", *map(str, arguments)]), *capsys.readouterr())

    dense = make_run(tmp_path / "dense", model=DENSE)
    code, out, err = call(cascade, dense, "--to", tmp_path / "look", "--limit", 2)
    assert code == 0, err
    assert "4/4 images" in out and "stage 3 - stage 2" in out and "stage 3 - dense" in out
    assert "at IoU 0.8" in out and "AP of each stage alone" in out
    answers = [(row["run"], row["answer"]) for row in rows_of(tmp_path / "look" / "stages.csv")]
    assert answers[3:] == [("cascade", "ensemble"), ("dense", "own")]
    code, _, err = call(dense, "--to", tmp_path / "look")
    assert code == 2 and "no cascade of two stages or more" in err and err.count("\n") == 1
