"""Metric loggers: rows, columns, resuming, and packages that are not installed."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.training import loggers
from kgarden.training.loggers import JsonLines, Table


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
