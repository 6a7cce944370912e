"""TSD's derived proposals: those of the detections, their offsets by hand, the drawing, and the command."""

import csv

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from support.fake_runs import known_run, make_run, without_graphs
from support.variants import VARIANTS, batch

from kgarden import cli
from kgarden.analyze import derived_proposals
from kgarden.analyze.derived_proposals import (
    PINK,
    RED,
    WHITE,
    YELLOW,
    DerivedProposals,
    Moves,
    best_rows,
    drawings,
)
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.faster_rcnn import FasterHead
from kgarden.models.tsd import CONFIGURATIONS, TSDHead
from kgarden.models.tsd_cascade import TSDCascadeHead

NOTHING = np.zeros((1, 1, 1, 2), "float32")


def stage_of(offsets, boxes, points=None):
    """Outputs for one image: K detections whose offsets are given for each task."""
    boxes = np.float32(boxes)
    points = points or {task: np.zeros((len(boxes), 7, 7, 2), "float32") for task in offsets}
    return {"boxes": boxes, "moved": boxes, "points": points, "offsets": offsets}


def test_offsets_by_hand():
    """Two small detections and a large one, whose boxes are halved in the network input."""
    proposals = [[0, 0, 10, 20], [0, 0, 10, 20], [0, 0, 100, 100]]
    r = np.float32([[0.1, -0.2], [0.3, 0.4], [0.0, 0.6]]).reshape(3, 1, 1, 2)
    c = np.zeros((3, 7, 7, 2), "float32")
    c[0, 0, :, 0] = [0.7, -0.7, 0.7, -0.7, 0.7, -0.7, 0.7]  # a seventh of the bins, by 0.7 of the width
    points = np.full((3, 7, 7, 2), 5.0, "float32")
    points[0, 0, 0] = [-1, 5]  # beyond the left, beyond the lower edge; on a corner
    points[0, 0, 1], points[0, 0, 2] = [5, 21], [10, 20]
    found = {
        "boxes": np.float32([[0, 0, 12, 12], [0, 0, 12, 12], [0, 0, 60, 60]]),
        "labels": np.int32([1, 0, 1]),
        "stages": [stage_of({"box": r, "class": c}, proposals, {"box": points, "class": points})],
    }
    moves = Moves()
    moves.add(found, np.array([0, 2]), area_factor=4.0)
    moves.add(found, np.array([1]), area_factor=4.0)
    small, large, every = moves.rows_by_size()
    assert [one["size"] for one in (small, large, every)] == ["small", "large", "all"]
    assert [one["detections"] for one in (small, large, every)] == [2, 1, 3]
    values = {"delta_r_x": 0.2, "delta_r_y": 0.3, "delta_c_x": 0.05, "delta_c_y": 0, "outside": 1 / 49}
    assert {key: small[key] for key in values} == pytest.approx(values, abs=1e-6)
    assert every["delta_r_y"] == pytest.approx(0.4) and large["delta_r_x"] == 0
    b, a = moves.rows_by_class([{"name": "b"}, {"name": "a"}, {"name": "none"}])
    assert (b["class"], b["detections"], b["delta_r_x"]) == ("b", 1, pytest.approx(0.3))
    assert (a["class"], a["detections"], a["delta_r_x"]) == ("a", 2, pytest.approx(0.05))
    text = derived_proposals.describe(moves.rows_by_size(), 7, 0.3)
    assert text.startswith("3 detections of 7 images with a score of at least 0.3: P_r is moved by 13.3% of")


def test_rows_of_the_best_detections():
    scores, valid = np.float32([0.5, 0.9, 0.25, 0.99, 0.7]), np.array([True, True, True, False, True])
    assert best_rows({"scores": scores, "valid": valid}, 0.5).tolist() == [1, 4, 0]


def test_tasks_without_offsets_have_no_numbers():
    found = {"boxes": np.float32([[0, 0, 9, 9]]), "labels": np.int32([0])}
    found["stages"] = [stage_of({"class": NOTHING}, found["boxes"])] * 2
    moves = Moves()
    moves.add(found, np.array([0]), area_factor=1.0)
    rows = moves.rows_by_size()
    assert [(row["stage"], row["size"]) for row in rows] == [
        (1, "small"),
        (1, "all"),
        (2, "small"),
        (2, "all"),
    ]
    assert rows[0]["delta_r_x"] is None and rows[0]["delta_c_x"] == 0
    text = derived_proposals.describe(rows, 1, 0.5)
    assert "(stage 2)" in text and "P_r" not in text and "0.0% of the centres" in text


@pytest.mark.parametrize("together", [True, False])
def test_drawing(together):
    """On 88 px, drawn five times as large: lines of boxes and discs at points have their colours."""
    points = np.full((2, 7, 7, 2), 70.0, "float32")
    points[0, 0, 0], own = [22, 66], np.full((2, 7, 7, 2), 15.0, "float32")
    offsets = {"box": NOTHING if together else np.zeros((1, 7, 7, 2)), "class": np.zeros((1, 7, 7, 2))}
    offsets = {task: np.repeat(one, 2, axis=0) for task, one in offsets.items()}
    stage = stage_of(offsets, [[8, 8, 40, 48], [0, 0, 9, 9]], {"box": own, "class": points})
    stage["moved"] = np.float32([[20, 12, 52, 52], [0, 0, 9, 9]])
    x = {"images": np.full((96, 96, 3), 90, "uint8"), "size_hw": np.int32([88, 88])}
    found = {"boxes": np.float32([[30, 30, 50, 60], [0, 0, 9, 9]]), "labels": np.int32([1, 0])}
    found |= {"scores": np.float32([0.9, 0.2]), "stages": [stage]}
    names = {"names": ["disc", "ring"]}
    cells = drawings(x, found, np.array([0]), **names, truth=np.float64([[60, 60, 80, 80]]))
    derived, last = cells.values()
    assert derived.size == last.size == (440, 440)
    assert derived.getpixel((5 * 9, 5 * 8 + 1)) == YELLOW
    red = (5 * 52 - 1, 5 * 40) if together else (5 * 15, 5 * 15)
    assert derived.getpixel(red) == RED and derived.getpixel((5 * 22, 5 * 66)) == PINK
    assert (derived.getpixel((5 * 52 - 1, 5 * 40)) == RED) == together
    assert derived.getpixel((5 * 4, 5 * 1)) == (90, 90, 90)  # the second detection is not among those shown
    assert last.getpixel((5 * 60 + 1, 5 * 70)) == WHITE and last.getpixel((5 * 22, 5 * 66)) == (
        90,
        90,
        90,
    )
    many = {**found, "stages": [stage] * 2}
    titles = list(drawings(x, many, np.array([0]), **names, truth=np.zeros((0, 4))))
    assert titles == ["stage 1: P, P_r, P_c", "stage 2: P, P_r, P_c", "detections and ground truth"]


MASK_RCNN = {**VARIANTS["mask_rcnn"], "roi_head": VARIANTS["tsd"]["roi_head"] | {"name": "tsd"}}
CENTERNET2 = {**VARIANTS["centernet2"], "roi_head": {"name": "tsd", "width": 16, "offset_width": 8}}
HOSTS = {"tsd": VARIANTS["tsd"], "tsd_cascade": VARIANTS["tsd_cascade"]}
HOSTS |= {"mask_rcnn": MASK_RCNN, "centernet2": CENTERNET2}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", HOSTS)
def test_derived_proposals_are_those_of_the_detections(name):
    """A regressor that predicts no change detects P_r itself, clipped to the image."""
    keras.utils.set_random_seed(1)
    settings = {**HOSTS[name], "selection": {"score_threshold": 0.0, "total": 8}}
    detector = build_detector(settings, 3)
    heads = getattr(detector.roi_head, "heads", [detector.roi_head])
    for head in heads:
        head.regressor.output_layer.kernel.assign(0 * head.regressor.output_layer.kernel)
        for last in head.estimators.last.values():  # so that boxes stay in the image
            last.kernel.assign(last.kernel / 300)
    x, _ = batch(images=2)
    found = keras.tree.map_structure(ops.convert_to_numpy, DerivedProposals(detector)(x))
    assert len(found["stages"]) == len(heads) and found["valid"].any(axis=1).all()
    *earlier, last = found["stages"]
    height, width = x["size_hw"][0]
    valid = found["valid"]
    clipped = np.clip(last["moved"], 0, [width, height] * 2)
    np.testing.assert_allclose(found["boxes"][valid], clipped[valid], atol=1.5)  # `least_px` keeps some
    side = last["boxes"][..., 2:] - last["boxes"][..., :2]
    moved = last["boxes"] + np.tile(last["offsets"]["box"][:, :, 0, 0] * side, 2)
    np.testing.assert_allclose(last["moved"], moved, atol=1e-3)
    assert np.abs(last["moved"] - last["boxes"]).max() > 0.5
    for one, other in zip(earlier, found["stages"][1:], strict=True):  # a stage passes its boxes on
        clipped = np.clip(one["moved"], 0, [width, height] * 2)
        np.testing.assert_allclose(other["boxes"][valid], clipped[valid], atol=1.5)


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys):
    """call(run, ...) -> (exit code, standard output, standard error)."""

    def _call(*arguments):
        code = cli.main(["analyze", "tsd", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return _call


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "name, stages",
    [("tsd", ["1"]), pytest.param("tsd_cascade", ["1", "2", "3"], marks=pytest.mark.slow)],
)
@without_graphs()
def test_a_run_with_initial_weights(call, tmp_path, monkeypatch, name, stages):
    drawn, really = [], derived_proposals.drawings
    monkeypatch.setattr(
        derived_proposals,
        "drawings",
        lambda x, found, shown, **how: drawn.append(shown) or really(x, found, shown, **how),
    )
    run, to = make_run(tmp_path / name, model=HOSTS[name]), tmp_path / "look"
    code, out, err = call(run, "--to", to, "--min-score", 0.1, "--limit", 2, "--pictures", 1)
    assert code == 0, err
    assert "2/2 images" in out and "of P's width" in out and [len(rows) for rows in drawn] == [3]
    rows, by_class = rows_of(to / "tsd.csv"), rows_of(to / "by_class.csv")
    every = [row for row in rows if row["size"] == "all"]
    assert [row["stage"] for row in every] == stages
    for kind, parts in (("size", rows), ("class", by_class)):
        count = [int(row["detections"]) for row in parts if row["stage"] == "1" and row[kind] != "all"]
        assert sum(count) == int(every[0]["detections"]) <= 2 * 100
    assert all(float(row[key]) > 0 for row in every for key in ("delta_r_x", "delta_c_y"))
    names = {path.name for path in to.glob("[!.]*")}
    assert names == {"tsd.csv", "by_class.csv", "tsd.png", "tsd.svg", "reading.txt"}
    width, height = Image.open(to / "tsd.png").size
    assert width > height * len(stages)  # one row, a column for each stage and the detections
    code, _, err = call(run, "--to", to, "--min-score", 2, "--limit", 1)
    assert code == 2 and "no detection scores 2 or more in 1 images; use --min-score" in err


@pytest.mark.parametrize(
    "head, message",
    [
        (TSDHead([4], 2, **CONFIGURATIONS["d_head"]), "TSD head moves nothing, classify_at and regress_at"),
        (TSDCascadeHead([4], 2, classify_at=None, regress_at=None, sibling=False), "moves nothing"),
        (FasterHead([4], 2), "known has no TSD head; use a run of tsd"),
        (None, "known has no TSD head; use a run of tsd"),
    ],
)
def test_other_heads_are_refused(tmp_path, monkeypatch, head, message):
    run = known_run("given", None)
    run.detector.roi_head = head
    monkeypatch.setattr(derived_proposals, "open_runs", lambda runs, weights: [run])
    with pytest.raises(UserError, match=f"given: .*{message}"):
        derived_proposals.analyze_tsd("given", tmp_path / "look")
    assert not (tmp_path / "look").exists()
