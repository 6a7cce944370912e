"""Sliding windows by hand and against the documented histogram; curves of known heads; groups of objects."""

import csv

import numpy as np
import pytest
from support.fake_runs import CATEGORIES, known_run

from kgarden.analyze import loaded_runs, sliding_window
from kgarden.analyze.curve_styles import curve_styles
from kgarden.analyze.loaded_runs import difficulties, evaluation_for, grouping, open_runs, size_of
from kgarden.analyze.sliding_window import analyze_sliding_window
from kgarden.analyze.statistics import bin_of
from kgarden.analyze.windows import Windows, window_grid, windows_around
from kgarden.errors import UserError

HISTOGRAM = [3224, 1008, 1016, 1032, 696, 938, 990, 864, 1034, 792]  # of one object away from the border
HISTOGRAM += [426, 424, 482, 222, 256, 136, 68, 60, 12, 9]


@pytest.mark.parametrize("box", [[300, 300, 364, 428], [310.3, 220.7, 355.1, 291.9], [400, 400, 407, 403]])
def test_the_iou_histogram_is_the_same_for_every_object(box):
    boxes, iou = windows_around(box, (1000, 1000), window_grid())
    assert len(boxes) == sum(HISTOGRAM) == 13689
    assert np.bincount(bin_of(iou), minlength=20).tolist() == HISTOGRAM
    assert (iou == 0).sum() == 2240 and (iou == 1).sum() == 1
    np.testing.assert_allclose(boxes[iou == 1][0], box, rtol=1e-6)


def test_windows_are_clipped_to_the_image_before_iou_is_computed():
    grid = np.array([[-0.5, -0.5, 0.5, 0.5], [-1.5, -0.5, 0.5, 0.5], [-1.4, -0.5, -0.45, 0.5], [0, 0, 1, 1]])
    boxes, iou = windows_around([10, 0, 30, 40], (40, 35), grid)
    # the third is left of the image but for 1 px; the fourth extends beyond the image at the right and below
    np.testing.assert_allclose(boxes, [[10, 0, 30, 40], [0, 0, 30, 40], [0, 0, 11, 40], [20, 20, 35, 40]])
    np.testing.assert_allclose(iou, [1, 2 / 3, 40 / 1200, 200 / 900])
    boxes, _ = windows_around([10, 0, 30, 40], (40, 35), np.array([[-1.5, -0.5, -0.96, 0.5]]))
    assert len(boxes) == 0  # 0.8 px of it remain


def test_a_known_head_on_every_window_of_each_object():
    run = known_run("one", lambda overlap: overlap**2)
    seen = list(Windows(per_object=300, seed=5, chunk=128).over(run))
    assert len(seen) == 3
    boxes_of = {4: run.objects[4], 9: run.objects[9]}
    for (one, iou, found), (image_id, number) in zip(seen, [(4, 0), (4, 1), (9, 0)], strict=True):
        assert one is boxes_of[image_id][number]
        np.testing.assert_allclose(found["own/score"], iou**2, atol=1e-5)
        rows = Windows(300, 5)._rows(image_id, number)
        box = np.array(one["bbox"], "float64") / 2
        box[2:] += box[:2]
        windows, again = windows_around(box, (50, 60), window_grid()[rows])
        np.testing.assert_array_equal(iou, again)
        np.testing.assert_allclose(found["own/iou"], overlap_of((windows + box) / 2, box), atol=1e-5)
    assert len({tuple(iou) for _, iou, _ in seen}) == 3  # a different sample for each
    again = list(Windows(per_object=300, seed=5).over(run))
    np.testing.assert_array_equal(again[2][1], seen[2][1])
    np.testing.assert_allclose(
        again[2][2]["own/iou"], seen[2][2]["own/iou"], atol=1e-6
    )  # chunks do not matter


def overlap_of(boxes, box):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.maximum(sides, 0).prod(axis=1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - common)


@pytest.fixture
def two_runs(monkeypatch):
    """A run that scores by IoU squared, and one with two branches that scores by half the IoU."""
    runs = [
        known_run("square", lambda overlap: overlap**2),
        known_run("halved", lambda overlap: overlap / 2, also_alone=True),
    ]
    monkeypatch.setattr(sliding_window, "open_runs", lambda *_: runs)
    monkeypatch.setattr(sliding_window, "require_roi_heads", lambda _: None)
    return runs


def test_a_branch_has_the_same_style_in_every_panel():
    """A branch that is left out, because it equals the run's own prediction, keeps its colour."""
    own, conv, fc = np.array([0.1, np.nan]), np.array([0.2, np.nan]), np.array([0.3, np.nan])
    scores = curve_styles({("r", "own"): own, ("r", "conv"): conv, ("r", "fc"): fc})
    boxes = curve_styles({("r", "own"): conv, ("r", "conv"): conv, ("r", "fc"): fc})
    assert boxes["r", "fc"] == scores["r", "fc"] and boxes["r", "own"][0] == "r (conv)"
    assert set(boxes) == {("r", "own"), ("r", "fc")} and len({look[1] for look in scores.values()}) == 3


def test_known_heads_give_known_curves(two_runs, tmp_path):
    told = []
    windows = Windows(per_object=2000, seed=1)
    found = analyze_sliding_window(
        ["square", "halved"], tmp_path, windows, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with open(tmp_path / "sliding_window.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["run"], row["answer"]) for row in rows} == {
        ("square", "own"),
        ("halved", "own"),
        ("halved", "fc"),
        ("halved", "conv"),
    }
    assert {row["group"] for row in rows} == {"small", "large", "all"}  # no medium object
    # the first object and the second one, of 800 and 480 px^2, are small, the third one is large
    ious = [iou for _, iou, _ in windows.over(two_runs[0])]
    groups = {"small": np.concatenate(ious[:2]), "large": ious[2], "all": np.concatenate(ious)}
    checked = 0
    for row in rows:
        if row["group"] not in groups:
            continue
        inside = groups[row["group"]]
        inside = inside[bin_of(inside) == int(row["bin"])]
        assert int(row["n"]) == len(inside)
        score = {"square": inside**2, "halved": inside / 2}[row["run"]]
        score = score / 2 if row["answer"] == "fc" else score
        if row["answer"] == "conv":
            assert row["score_mean"] == "" and (row["iou_mean"] != "") == (len(inside) > 0)
        elif len(inside):
            checked += 1
            assert float(row["score_mean"]) == pytest.approx(score.mean(), abs=1e-5)
            assert float(row["score_std"]) == pytest.approx(score.std(), abs=1e-4)
            assert row["answer"] == "own" or row["iou_mean"] == ""
            mean = float(row["iou_mean"] or 1)
            assert mean > inside.mean() - 1e-6
    assert checked > 100
    names = {"sliding_window.csv", "sliding_window.png", "sliding_window.svg", "reading.txt"}
    assert {path.name for path in tmp_path.glob("[!.]*")} == names
    assert "3 objects (2 small, 1 large)" in found["reading"] and found["seconds_per_object"] > 0
    assert (tmp_path / "reading.txt").read_text().strip() == found["reading"]
    svg = (tmp_path / "sliding_window.svg").read_text()
    for label in ("square", "halved", "halved: fc alone", "halved (conv)"):
        assert f"<!-- {label} -->" in svg


def test_sizes_of_coco():
    sizes = [size_of(area) for area in (1023.9, 1024, 9216, 9216.1)]
    assert sizes == ["small", "medium", "medium", "large"]


def test_difficulties_are_thirds_of_the_classes_by_ap():
    categories = [{"id": n, "name": str(n)} for n in range(1, 82)]
    per_class = [{"id": n, "ap": float(100 - n)} for n in range(1, 81)] + [{"id": 81, "ap": None}]
    of_class = difficulties({"per_class": per_class}, categories)
    limited = [{"id": one["id"], "ap_max300": one["ap"]} for one in per_class]
    assert difficulties({"per_class": limited, "max_detections": 300}, categories) == of_class
    assert [list(of_class.values()).count(name) for name in ("easy", "medium", "hard")] == [27, 27, 26]
    assert of_class[1] == of_class[27] == "easy" and of_class[54] == "medium" and of_class[55] == "hard"
    names, groups_of = grouping("difficulty", categories, {"per_class": per_class})
    assert names == ("easy", "medium", "hard", "all")
    assert groups_of({"label": 79}) == ("hard", "all") and groups_of({"label": 80}) == ("all",)


def test_wrong_arguments_are_errors(tmp_path, monkeypatch):
    per_class = [{"id": one["id"], "ap": 1.0 if one["id"] > 3 else None} for one in CATEGORIES]
    with pytest.raises(UserError, match="AP of at least 3 classes; there are 2"):
        difficulties({"per_class": per_class}, CATEGORIES)
    with pytest.raises(UserError, match="evaluation.json: no such file"):
        evaluation_for("difficulty", [tmp_path])
    with pytest.raises(UserError, match="--results one.json applies to --groups difficulty only"):
        evaluation_for("size", [tmp_path], "one.json")
    with pytest.raises(UserError, match="--groups age is not supported; use size or difficulty"):
        grouping("age", CATEGORIES)
    with pytest.raises(UserError, match="--weights w.h5 applies to a single RUN; 2 runs were given"):
        open_runs(["a", "b"], "w.h5")
    with pytest.raises(UserError, match="given twice"):
        open_runs(["a", "a"])
    monkeypatch.setattr(loaded_runs, "_open", lambda run, name, *_: known_run(name, abs))
    assert [one.name for one in open_runs(["here/a", "there/a"])] == ["here/a", "there/a"]

    def other(_, name, *__):
        run = known_run(name, abs)
        if name == "b":
            run.objects.pop(9)
        return run

    monkeypatch.setattr(loaded_runs, "_open", other)
    with pytest.raises(UserError, match="b: its data.val differ from those of a"):
        open_runs(["a", "b"])
