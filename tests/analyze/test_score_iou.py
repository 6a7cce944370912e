"""IoU and score of proposals and detections by hand, and the correlation of known heads."""

import numpy as np
import pytest
from keras import ops
from support.fake_runs import known_run

from kgarden.analyze import score_iou
from kgarden.analyze.score_iou import JointCounts, analyze_score_iou, detection_iou, proposal_iou_and_scores
from kgarden.analyze.windows import Windows

TRUTH = [
    np.float32([[[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]]]),
    np.int32([[2, 1, 0]]),
    np.array([[True, True, False]]),  # the last row is padding
]


def arrays(found):
    return {key: ops.convert_to_numpy(value) for key, value in found.items()}


def test_proposals_are_scored_by_the_class_of_the_object_of_highest_iou():
    boxes = np.float32([[[0, 0, 10, 5], [5, 0, 25, 10], [18, 0, 30, 10], [50, 50, 60, 60]]])
    scores = np.float32([[[0.9, 0.1, 0.3], [0.9, 0.2, 0.4], [0.9, 0.5, 0.6], [0.9, 0.7, 0.1]]])
    found = arrays(proposal_iou_and_scores(boxes, {"own": scores, "fc": scores / 2}, *TRUTH))
    np.testing.assert_allclose(found["proposals/iou"], [[0.5, 0.2, 100 / 120, 0]], rtol=1e-6)
    # object, first of two ties, object, and the higher score of the two classes in the image
    np.testing.assert_allclose(found["proposals/own"], [[0.3, 0.4, 0.5, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(found["proposals/fc"], [[0.15, 0.2, 0.25, 0.35]], rtol=1e-6)


def test_detections_are_compared_with_objects_of_their_class():
    boxes = np.float32([[[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 5]]])
    found = detection_iou(boxes, np.int32([[2, 1, 0, 1]]), *TRUTH)
    np.testing.assert_allclose(ops.convert_to_numpy(found), [[1, 0, 0, 0.5]], rtol=1e-6)


def test_all_boxes_and_overlapping_boxes():
    one = JointCounts()
    ious, scores = np.array([0.0, 0.0, 0.2, 0.6, 1.0]), np.array([0.9, 0.0, 0.3, 0.5, 0.7])
    one.add(ious, scores)
    assert one.pearson["overlapping"].r == pytest.approx(1) and one.pearson["overlapping"].count == 3
    assert one.pearson["all"].r == pytest.approx(np.corrcoef(ious, scores)[0, 1])
    assert one.counts.sum() == 5 and one.counts[0, 36] == 1 and one.counts[39, 28] == 1


def test_known_heads_have_known_correlations(monkeypatch, tmp_path):
    runs = [known_run("line", lambda overlap: 0.1 + overlap / 2), known_run("fall", lambda o: 1 - o)]
    monkeypatch.setattr(score_iou, "open_runs", lambda *_: runs)
    monkeypatch.setattr(score_iou, "require_roi_heads", lambda _: None)
    monkeypatch.setattr(score_iou, "_add_own_boxes", lambda *_: None)
    found = analyze_score_iou(["line", "fall"], tmp_path, Windows(per_object=400))
    assert len(found["rows"]) == 2 * 3 * 2  # runs, groups with objects, all and overlapping
    for row in found["rows"]:
        assert row["r"] == pytest.approx({"line": 1, "fall": -1}[row["run"]], abs=1e-6)
        assert row["boxes"] == "windows"
    count = {(row["group"], row["which"]): row["n"] for row in found["rows"] if row["run"] == "line"}
    assert count["all", "all"] == count["small", "all"] + count["large", "all"] > count["all", "overlapping"]
    assert (tmp_path / "score_iou.svg").is_file() and (tmp_path / "score_iou.csv").is_file()
