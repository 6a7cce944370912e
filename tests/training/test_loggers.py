"""Metric loggers: rows, columns, resuming, and packages that are not installed."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from support.size_limit import size_limit

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.training import loggers
from kgarden.training.loggers import JsonLines, Table, Tolerant


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_adds_columns_and_drops_later_steps_on_resume(tmp_path):
    table = Table(tmp_path, None, after=0)
    table.add(20, {"loss": 2.0})
    table.add(20, {"val/ap": 10.0})
    table.add(40, {"loss": 1.0})
    table = Table(tmp_path, None, after=20)
    table.add(40, {"loss": 1.5, "val/ap": 12.0})
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "20", "loss": "2.0", "val/ap": ""},
        {"step": "20", "loss": "", "val/ap": "10.0"},
        {"step": "40", "loss": "1.5", "val/ap": "12.0"},
    ]


def test_what_was_not_measured_is_empty_and_null(tmp_path):
    """A third value, beside 0 and a number: an empty cell, null, and no point in a curve."""
    for logger in (Table(tmp_path, None, after=0), JsonLines(tmp_path / "metrics.jsonl")):
        logger.add(20, {"val/ap": None})
        logger.add(40, {"val/ap": 0.0})
    assert [row["val/ap"] for row in rows_of(tmp_path / "metrics.csv")] == ["", "0.0"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val/ap"] for line in lines] == [None, 0.0]


def test_incomplete_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n[1]\n{"step": 2, "lo')
    assert JsonLines(path, after=5).reports == [{"step": 1, "loss": 3.0}]
    assert path.read_text() == '{"step": 1, "loss": 3.0}\n'


def test_damaged_lines_are_told_and_kept_beside_the_file(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", []
    content = '{"step": 1, "loss": 3.0}\n\0\0\n{"step": "2"}\n{"step": 2, "loss": "x"}\n{"step": 3}\n{"st'
    path.write_bytes(content.encode() + b"\xff")
    assert JsonLines(path, 5, lines.append).reports == [{"step": 1, "loss": 3.0}, {"step": 3}]
    assert lines == [f"{path}: 3 of 5 lines are damaged; they stay in metrics.jsonl.damaged"]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content.encode() + b"\xff"
    assert JsonLines(path, 5, lines.append).reports[1] == {"step": 3} and len(lines) == 1
    path.write_text("\0\n")
    JsonLines(path, 5, lines.append)
    assert lines[1].endswith("they stay in metrics.jsonl.damaged2")  # the first stays as well


def test_damaged_csv_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2.0\n\0\xff,1\n2\n,\n3,1.0,7,8\n")
    Table(tmp_path, None, after=9).add(4, {"loss": 0.5})
    rows = [("1", "2.0"), ("2", ""), ("3", "1.0"), ("4", "0.5")]
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path / "metrics.csv")] == rows


def test_a_full_disk_leaves_no_half_line(tmp_path):
    """At a limit of their size: what still fits is cut off again, and later lines are whole."""
    lines = []
    files = [JsonLines(tmp_path / "metrics.jsonl"), Table(tmp_path, None, after=0)]
    for file in files:
        file.add(1, {"loss": 1.0})
        tolerant = Tolerant("a file", lambda file=file: file, lines.append, lasting=True)
        with size_limit(file.path.stat().st_size + 5):
            tolerant.add(2, {"loss": 1.0})
            tolerant.add(3, {"loss": 1.0})
        tolerant.add(4, {"loss": 2.0})
    assert lines == ["a file failed at step 2 (File too large); training continues without it"] * 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 4] and [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "4"]


class Fails:
    """A tracker that fails at a call of its methods, or at its start."""

    def __init__(self, error, at):
        self.error, self.at, self.calls = error, at, []
        self._call("start")

    def _call(self, name):
        self.calls.append(name)
        if name == self.at:
            raise self.error

    def add(self, step, values):
        self._call("add")

    def close(self):
        self._call("close")


@pytest.mark.parametrize(
    "error", [RuntimeError("gone\nfor good"), BrokenPipeError(32, "gone"), SystemExit("gone")]
)
@pytest.mark.parametrize(
    "at, calls", [("start", []), ("add", ["start", "add"]), ("close", ["start", "add", "add", "close"])]
)
def test_a_tracker_that_fails_is_told_once_and_left_alone(error, at, calls):
    made, lines = [], []

    def make():
        made.append(Fails(error, at))
        return made[0]

    tracker = Tolerant("MLflow", make, lines.append)
    for step in (1, 2):
        tracker.add(step, {"loss": 1.0})
    tracker.close()
    (line,) = lines
    assert line.startswith("MLflow ") and line.endswith("(gone); training continues without it")
    assert [one.calls for one in made] == ([calls] if calls else [])
    assert tracker.reports == []


def test_metric_names_are_grouped():
    values = {"loss": 1.0, "cls/positive": 2, "val/ap": 3.0, "what": "x", "val/ap_small": None}
    assert loggers.grouped(values) == {
        "train/loss": 1.0,
        "train/cls/positive": 2,
        "val/ap": 3.0,
    }


def test_parameters_are_flat():
    found = loggers.parameters(load_recipe("quickstart"))
    assert found["schedule.optimizer.name"] == "adamw" and found["model.name"] == "centernet2"
    assert all(isinstance(value, int | float | str) for value in found.values())
    assert not any(key.startswith("rows") for key in found)


def test_missing_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow is not installed: pip install 'kgarden\[mlflow\]'"):
        loggers.make_loggers(["mlflow"], tmp_path, load_recipe("quickstart"), 0)


def test_trackers_are_imported_lazily():
    code = "import sys, kgarden.training.loggers; print({'mlflow', 'wandb', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(not installed("mlflow", "sqlalchemy"), reason="mlflow is not installed")
def test_mlflow_resumes_the_same_run(tmp_path, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    recipe, run = load_recipe("quickstart"), tmp_path / "run"
    run.mkdir()
    for after in (0, 20):
        logger = loggers.MLflow(run, recipe, after)
        logger.add(after + 20, {"loss": 1.0 + after, "val/ap": 3.0})
        logger.close()
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("kgarden").experiment_id])
    assert found.data.params["model.name"] == "centernet2"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(20, 1.0), (40, 21.0)]


@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed")
def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    run.mkdir()
    logger = loggers.WandB(run, load_recipe("quickstart"), 0)
    logger.add(20, {"loss": 1.0})
    logger.close()
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    assert (run / "wandb_run.txt").read_text() == logger.run.id
