"""The four analyses of Double-Head R-CNN from the command line, on runs whose weights are as they start."""

import csv

import pytest
from support.fake_runs import make_run, without_graphs
from support.small_backbone import RESNET10

from kgarden import cli

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def ext(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ext")


@pytest.fixture
def call(capsys):
    """call("compare", run, ...) -> (exit code, standard output, standard error)."""

    def _call(*arguments):
        code = cli.main(["analyze", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return _call


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder):
    return {path.name for path in folder.glob("[!.]*")}


def test_sliding_windows_of_a_run(ext, call, tmp_path):
    to = tmp_path / "look"
    code, out, err = call("sliding-window", ext, "--to", to, "--per-object", 20, "--limit", 2)
    assert code == 0, err
    assert "2/2 images" in out and "s per object and run" in out and "Around every object" in out
    rows = rows_of(to / "sliding_window.csv")
    assert {(row["run"], row["answer"]) for row in rows} == {("ext", one) for one in ("own", "fc", "conv")}
    of = {
        (row["answer"], row["bin"]): (row["score_mean"], row["iou_mean"])
        for row in rows
        if row["group"] == "all"
    }
    for number in map(str, range(20)):
        score, iou = of["own", number]
        assert iou == of["conv", number][1]  # its boxes are those of its conv-head
        if score:  # 1 - (1 - a)(1 - b)
            alone = [float(of[name, number][0]) for name in ("fc", "conv")]
            assert max(alone) - 1e-6 <= float(score) <= sum(alone) + 1e-6
    assert files_of(to) == {"sliding_window.csv", "sliding_window.png", "sliding_window.svg", "reading.txt"}


@without_graphs()
def test_scores_over_iou_of_a_run(ext, call, tmp_path):
    to = tmp_path / "look"
    code, out, err = call("score-iou", ext, "--to", to, "--per-object", 20, "--limit", 2)
    assert code == 0, err
    rows = rows_of(to / "score_iou.csv")
    count = {(row["answer"], row["boxes"], row["group"], row["which"]): int(row["n"]) for row in rows}
    assert count["own", "proposals", "all", "all"] == count["fc", "proposals", "all", "all"] <= 2 * 20
    assert count["own", "detections", "all", "all"] >= count["own", "detections", "all", "overlapping"]
    assert ("fc", "detections", "all", "all") not in count
    assert "Pearson's r" in out and files_of(to) >= {"score_iou.png", "score_iou.svg", "reading.txt"}


@without_graphs()
def test_spatial_correlation_of_a_run(ext, call, tmp_path):
    to = tmp_path / "look"
    code, out, err = call("spatial-correlation", ext, "--to", to)
    assert code == 0, err
    rows = rows_of(to / "spatial_correlation.csv")
    assert [row["map"] for row in rows] == ["fc output", "conv output", "fc weights"]
    assert -0.2 < float(rows[2]["off_diagonal"]) < 0.2  # weights that are drawn have no order
    distances = rows_of(to / "by_distance.csv")
    assert {row["pairs"] for row in distances if row["distance"] == "0.0"} == {"49"}
    assert len(rows_of(to / "cosines.csv")) == 3 * 49 * 49
    assert (to / "spatial_correlation.svg").is_file()


def test_side_by_side_comparison(ext, call, tmp_path):
    to = tmp_path / "look"
    code, out, err = call("compare", ext, "--to", to, "--pictures", 2, "--min-score", 0.1)
    assert code == 0, err
    rows = rows_of(to / "compare.csv")
    assert {row["column"] for row in rows} <= {
        "fc-head alone",
        "conv-head alone",
        "both: classes fused, boxes of conv",
    }
    assert all(float(row["score"]) >= 0.1 for row in rows)
    assert len({row["image_id"] for row in rows}) <= 2
    assert files_of(to) == {"compare.csv", "compare.png", "compare.svg", "reading.txt"}
    code, _, err = call("compare", ext, "--to", to, "--ids", "1,9999")
    assert code == 2 and "--ids 9999: no such image" in err
    code, _, err = call("compare", ext, "--to", to, "--ids", "one")
    assert code == 2 and "use comma-separated numbers" in err


@without_graphs()
def test_other_heads_and_runs_without_any(call, tmp_path):
    """Faster R-CNN and a cascade answer too, a dense detector is refused."""
    faster = make_run(tmp_path / "faster", **{"model.configuration": "single_fc"})
    proposer = {"train": 32, "test": 10, "num_convs": 1}
    cascade = make_run(
        tmp_path / "cascade",
        **{
            "model": {
                "name": "centernet2",
                "backbone": RESNET10,
                "neck": {"channels": 32, "levels": [3, 5]},
                "proposer": {**proposer, "size_ranges": [[0, 64], [48, 128], [96, 1000000]]},
                "roi_head": {"name": "cascade", "width": 8},
            }
        },
    )
    to = tmp_path / "look"
    code, _, err = call("sliding-window", faster, cascade, "--to", to, "--per-object", 10, "--limit", 1)
    assert code == 0, err
    assert {row["run"] for row in rows_of(to / "sliding_window.csv")} == {"faster", "cascade"}
    code, _, err = call("spatial-correlation", cascade, "--to", to, "--limit", 1)
    assert code == 0, err
    assert [row["map"] for row in rows_of(to / "spatial_correlation.csv")] == ["fc output", "fc weights"]
    code, _, err = call("sliding-window", faster, "--to", to, "--groups", "difficulty")
    assert code == 2 and "evaluation.json: no such file" in err
    dense = {
        "name": "fcos",
        "backbone": RESNET10,
        "neck": {"channels": 32},
    }
    dense = make_run(tmp_path / "dense", **{"model": dense})
    for command in ("sliding-window", "score-iou", "spatial-correlation"):
        code, _, err = call(command, dense, "--to", to)
        assert code == 2 and "fcos has no RoI head" in err and err.count("\n") == 1
