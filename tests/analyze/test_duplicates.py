"""Duplicates counted by hand, and the command on a run."""

import csv

import keras
import numpy as np
import pytest
from keras import ops
from support.fake_runs import make_run, without_graphs
from support.small_backbone import RESNET10

from kgarden import cli
from kgarden.analyze.duplicates import duplicates, score_maps

SQUARE = [0.0, 0.0, 10.0, 10.0]


def counted(boxes, labels, valid=None):
    valid = [True] * len(boxes) if valid is None else valid
    found = {
        "boxes": ops.convert_to_tensor(np.float32([boxes])),
        "labels": ops.convert_to_tensor(np.int32([labels])),
        "valid": ops.convert_to_tensor(np.array([valid])),
    }
    return ops.convert_to_numpy(duplicates(found)).tolist()


@pytest.mark.parametrize(
    "boxes, labels, valid, pairs",
    [
        ([SQUARE, SQUARE], [0, 0], None, 1),
        ([SQUARE, SQUARE, SQUARE], [0, 0, 0], None, 3),
        ([SQUARE, SQUARE], [0, 1], None, 0),  # two classes
        ([SQUARE, SQUARE], [0, 0], [True, False], 0),
        ([SQUARE, [0.0, 0.0, 10.0, 7.5]], [0, 0], None, 1),  # IoU 0.75
        ([SQUARE, [0.0, 0.0, 10.0, 6.5]], [0, 0], None, 0),  # IoU 0.65
    ],
)
def test_pairs_by_hand(boxes, labels, valid, pairs):
    assert counted(boxes, labels, valid) == [pairs]


def test_score_maps_are_maxima_over_classes_and_anchors():
    scores = np.zeros((1, 2 * 3 * 2 + 1, 2), "float32")
    scores[0, (1 * 3 + 2) * 2 + 1, 1] = 0.8  # row 1, column 2, second anchor, second class
    scores[0, (1 * 3 + 2) * 2, 0] = 0.5
    scores[0, 12, 0] = 0.25
    fine, coarse = score_maps({"scores": ops.convert_to_tensor(scores), "levels": [(2, 3, 2), (1, 1, 1)]})
    np.testing.assert_allclose(ops.convert_to_numpy(fine)[0], [[0, 0, 0], [0, 0, 0.8]])
    np.testing.assert_allclose(ops.convert_to_numpy(coarse)[0], [[0.25]])


@pytest.mark.tensorflow
def test_duplicates_of_a_pss_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", model={"name": "pss", "backbone": RESNET10, "neck": {"channels": 32}})
    assert cli.main(["analyze", "duplicates", "run", "--to", "look", "--pictures", "2"]) == 0
    assert "duplicates per image" in capsys.readouterr().out
    with open("look/duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == ["all places", "NMS", "selected"]
    assert {row["images"] for row in rows} == {"3"}
    assert len(list((tmp_path / "look").glob("maps_*.png"))) == 2
    assert [path.name for path in (tmp_path / "look").glob(".*")] == [
        ".kgarden.jsonl"
    ]  # nothing is left aside


@pytest.mark.tensorflow
@without_graphs()
def test_high_scores_everywhere_are_duplicates_that_nms_removes():
    """A detector whose classes are all likely, and whose boxes are as they start, answers many times."""
    from kgarden.analyze.duplicates import SelectionComparison
    from kgarden.models import build_detector

    detector = build_detector(
        {
            "name": "pss",
            "backbone": RESNET10,
            "neck": {"channels": 32},
        },
        num_classes=2,
    )
    head = detector.dense_head
    head.base.classes.bias.assign(ops.ones_like(head.base.classes.bias) * 8)
    head.base.centerness.bias.assign(ops.ones_like(head.base.centerness.bias) * 8)
    head.base.code.bias.assign(ops.ones_like(head.base.code.bias) * 4)  # boxes of eight cells
    head.selector.predictor.bias.assign(ops.ones_like(head.selector.predictor.bias) * -8)
    model = SelectionComparison(detector)
    model.compile(jit_compile=False)
    x = {"images": np.full((2, 128, 128, 3), 99, "uint8"), "size_hw": np.int32([[128, 128]] * 2)}
    answer = keras.tree.map_structure(np.asarray, model.predict_on_batch(x))
    assert (answer["pairs/all places"] > 100).all()
    assert (answer["pairs/NMS"] == 0).all() and (answer["found/NMS"] > 0).all()
    assert (answer["found/selected"] == 0).all()
    assert [level.shape for level in answer["maps/selected"]][0] == (2, 16, 16)


@pytest.mark.tensorflow
def test_a_run_without_a_dense_head(tmp_path, monkeypatch, capsys):
    from kgarden.analyze import duplicates as analysis

    class Frame:
        dense_head = object()

    class Found:
        name = "centernet2"
        model = None

    Found.model = Found
    monkeypatch.setattr(analysis, "load_run", lambda run, weights: (Found, Frame(), []))
    assert cli.main(["analyze", "duplicates", "run", "--to", str(tmp_path / "look")]) == 2
    assert "centernet2 has no dense head" in capsys.readouterr().err
