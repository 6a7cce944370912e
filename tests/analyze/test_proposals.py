"""Proposals of first stages: known proposals by hand, and those of a run against its detector."""

import csv
import types

import numpy as np
import pytest
from keras import ops
from support.fake_runs import KnownRun, make_run
from support.small_backbone import RESNET10

from kgarden import cli
from kgarden.analyze import proposals
from kgarden.analyze.proposals import (
    Found,
    analyze_proposals,
    best_iou,
    bins_of,
    calibration_rows,
    expected_calibration_error,
    recall_rows,
)
from kgarden.errors import UserError
from kgarden.heads.selection import Selection

pytestmark = pytest.mark.tensorflow
OBJECTS = {
    4: [
        {"label": 0, "bbox": [20, 20, 40, 40], "area": 1600},
        {"label": 2, "bbox": [80, 20, 20, 20], "area": 400},
    ],
    9: [{"label": 1, "bbox": [0, 0, 100, 100], "area": 10000}],
}


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Known:
    """A detector whose proposals are given: of each image, boxes in px of the network input and P(O)."""

    def __init__(self, boxes, probability):
        self.known = np.float32(boxes), np.float32(probability)
        self.proposer = types.SimpleNamespace(test=Selection(total=len(probability)))

    def __call__(self, x, training=False):
        return x

    def proposals(self, x, raw):
        boxes, probability = self.known
        total = self.proposer.test.total
        boxes, probability = boxes[None, :total], probability[None, :total]
        scores = ops.sqrt(ops.convert_to_tensor(probability))
        valid = ops.convert_to_tensor(probability > 0)
        return {
            "boxes": ops.convert_to_tensor(boxes),
            "scores": scores,
            "probability": probability,
            "valid": valid,
        }


def run_of(name, boxes, probability):
    recipe = types.SimpleNamespace(model=types.SimpleNamespace(name="known"))
    categories = [{"id": n, "name": str(n)} for n in range(3)]
    return KnownRun(
        name, recipe, Known(boxes, probability), categories=categories, data=None, objects=OBJECTS
    )


# In a network input of half the size: the first object exactly, the third at IoU 0.8, nothing, padding.
BOXES = [[10, 10, 30, 30], [0, 0, 50, 40], [45, 45, 50, 50], [40, 10, 50, 20]]
PROBABILITY = [0.95, 0.55, 0.25, 0.0]


def test_known_proposals(tmp_path, monkeypatch):
    runs = [run_of("known", BOXES, PROBABILITY)]
    monkeypatch.setattr(proposals, "open_runs", lambda names, weights: runs)
    monkeypatch.setattr(proposals, "COUNTS", (1, 2, 3, 1000))
    seen = []
    result = analyze_proposals(["a"], tmp_path / "look", pictures=0, progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    rows = rows_of(tmp_path / "look" / "recall.csv")
    # The best proposal finds object 1 of 3 at all ten thresholds; the second object 3 up to IoU 0.8: 7 of 10.
    expected = {"1": 10 / 30, "2": 17 / 30, "3": 17 / 30, "4": 17 / 30}
    assert {row["proposals"]: float(row["ar_all"]) for row in rows} == pytest.approx(
        {count: 100 * value for count, value in expected.items()}, abs=1e-3
    )
    assert [float(row["mean_proposals"]) for row in rows] == [1, 2, 3, 3]
    assert (rows[1]["ar_small"], rows[1]["ar_medium"], rows[1]["ar_large"]) == ("0.0", "100.0", "70.0")
    bins = {row["from"]: row for row in rows_of(tmp_path / "look" / "calibration.csv") if row["n"] != "0"}
    # Every image has the same three proposals: one right on image 4, one right on image 9.
    assert {key: (row["n"], row["fraction_objects"]) for key, row in bins.items()} == {
        "0.2": ("2", "0.0"),
        "0.5": ("2", "0.5"),
        "0.9": ("2", "0.5"),
    }
    assert result["ece"]["known"] == pytest.approx(100 * (2 * 0.25 + 2 * 0.05 + 2 * 0.45) / 6, abs=1e-4)
    assert "known: ECE 25.0 %." in result["reading"]
    strict = analyze_proposals(["a"], tmp_path / "strict", iou=0.81, pictures=0)
    assert [row["fraction_objects"] for row in strict["calibration"] if row["n"]] == [0.0, 0.0, 0.5]
    assert not (tmp_path / "strict" / "proposals.png").exists()
    fewer = analyze_proposals(["a"], tmp_path / "fewer", proposals=1, pictures=0)
    assert [row["proposals"] for row in fewer["recall"]] == [1]
    assert sum(row["n"] for row in fewer["calibration"]) == 2


def test_calibration_of_drawn_probabilities():
    """Likelihoods lie on the diagonal; the same ones squared are underconfident."""
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=200_000)
    hit = rng.uniform(size=len(probability)) < probability
    assert expected_calibration_error(bins_of(probability, hit)) < 0.5
    assert expected_calibration_error(bins_of(probability**2, hit)) == pytest.approx(
        100 / 6, abs=0.3
    )  # 1/2 - 1/3
    opposite = bins_of(np.array([0.2, 0.8]), np.array([True, False]))
    assert expected_calibration_error(opposite) == pytest.approx(80.0)  # and not the mean of +80 and -80
    bins = bins_of(np.array([0.0, 0.1, 0.999, 1.0]), np.array([False, True, True, True]))
    assert bins[:, 0].tolist() == [1, 1] + [0] * 7 + [2]
    assert calibration_rows(bins)[9] == {
        "from": 0.9,
        "to": 1.0,
        "n": 2,
        "mean_probability": 0.9995,
        "fraction_objects": 1.0,
    }
    assert calibration_rows(bins)[5]["mean_probability"] is None


def test_nothing_to_count():
    assert best_iou(np.zeros((2, 4)), np.zeros((0, 4))).tolist() == [0, 0]
    assert len(best_iou(np.zeros((0, 4)), np.zeros((2, 4)))) == 0
    objects = [{"id": 1, "image_id": 3, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 9, 9], "area": 81}]
    found = Found(objects=objects, image_ids=[3])
    assert [row["ar_all"] for row in recall_rows("none", found, 20)] == [0.0, 0.0]
    assert [row["proposals"] for row in recall_rows("none", found, 16)] == [16]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = {
        "name": "centernet2",
        "backbone": RESNET10,
        "neck": {"channels": 16, "levels": [3, 5]},
        "proposer": {
            "num_convs": 1,
            "norm_groups": 4,
            "test": 20,
            "size_ranges": [[0, 64], [48, 128], [96, 1000000]],
        },
        "roi_head": {"name": "faster", "width": 8},
    }
    return make_run(tmp_path_factory.mktemp("runs") / "little", model=model)


def test_proposals_of_a_run_by_the_command_line(run, tmp_path, capsys):
    options = ["--limit", "2", "--pictures", "1", "--min-score", "0", "--proposals", "18"]
    assert cli.main(["analyze", "proposals", str(run), "--to", str(tmp_path / "look"), *options]) == 0
    printed = capsys.readouterr().out
    assert "ECE" in printed and "saved to" in printed
    rows = rows_of(tmp_path / "look" / "recall.csv")
    assert [row["proposals"] for row in rows] == ["16", "18"]
    files = {f"{name}.{form}" for name in ("recall", "calibration") for form in ("csv", "png", "svg")}
    files |= {"proposals.png", "proposals.svg", "reading.txt"}
    assert {path.name for path in (tmp_path / "look").glob("[!.]*")} == files
    total = sum(int(row["n"]) for row in rows_of(tmp_path / "look" / "calibration.csv"))
    assert total <= 2 * 18 and float(rows[1]["mean_proposals"]) == total / 2


def test_detectors_of_one_stage_are_refused(tmp_path, monkeypatch):
    single = types.SimpleNamespace(name="fcos", detector=object())
    single.recipe = types.SimpleNamespace(model=types.SimpleNamespace(name="fcos"))
    monkeypatch.setattr(proposals, "open_runs", lambda names, weights: [single])
    with pytest.raises(UserError, match="fcos: fcos has no first stage; use two-stage detectors"):
        analyze_proposals(["a"], tmp_path / "look")
