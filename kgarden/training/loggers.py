"""Metric loggers: JSON lines, TensorBoard, CSV, MLflow, Weights & Biases.

`metrics.jsonl` and TensorBoard are always written, the others if the recipe's `loggers` list them. `add`
takes a step and a flat dictionary of numbers, and raises OSError if they cannot be stored. Optional packages
are imported when their logger is constructed.
"""

import csv
import importlib.util
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.utils.files import replacing

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # logger -> package, also the name of the extra


def make_loggers(names: Sequence[str], run: pathlib.Path, recipe: Recipe, after: int) -> list:
    """Builds the loggers of a run.

    Args:
        names:  the recipe's `loggers`.
        run:    run directory.
        recipe: its keys are logged as parameters.
        after:  the step from which training resumes; entries of later steps are dropped.
    Returns:
        [JsonLines, TensorBoard, and the named ones in their order].
    Raises:
        UserError: a package is not installed.
    """
    for name in names:
        if name in PACKAGES:
            _check(PACKAGES[name])
    always = [JsonLines(run / "metrics.jsonl", after), TensorBoard(run / "tensorboard")]
    kinds = {"csv": Table, "mlflow": MLflow, "wandb": WandB}
    return always + [kinds[name](run, recipe, after) for name in names]


def _check(package):
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"loggers: {package} is not installed: pip install 'kgarden[{package}]', or remove it"
        )


def parameters(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as {"schedule.base_lr": 0.02, ...}, without unset keys."""
    return dict(_leaves(recipe.plain(), ""))


def _leaves(value, key):
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if name != "rows":
                yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif value not in (None, {}, []):
        yield key, value if isinstance(value, int | float | str) else json.dumps(value)


class JsonLines:
    """`metrics.jsonl`: one line for each report.

    Args:
        path:  of the file.
        after: the step from which training resumes; lines of later steps are dropped.
    """

    name = "metrics.jsonl"

    def __init__(self, path, after=0):
        self.path = pathlib.Path(path)
        self.reports = []  # of earlier steps, read from the file
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    report = json.loads(line)
                    if report["step"] <= after:
                        self.reports.append(report)
                except (ValueError, KeyError, TypeError):  # a killed process may leave an incomplete line
                    continue
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(report)}\n" for report in self.reports))

    def add(self, step: int, values: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self):
        pass


class TensorBoard:
    """TensorBoard scalars, named as in `grouped`."""

    name = "TensorBoard"

    def __init__(self, folder):
        import tensorflow as tf

        self.scalar = tf.summary.scalar
        self.board = tf.summary.create_file_writer(str(folder))

    def add(self, step: int, values: dict[str, Any]) -> None:
        with self.board.as_default(step=step):
            for name, value in grouped(values).items():
                self.scalar(name, value)

    def close(self):
        self.board.close()


class Table:
    """`metrics.csv`: one row for each report, with empty cells for missing columns.

    Evaluation reports have other columns than training reports: a new column rewrites the file atomically.
    """

    name = "metrics.csv"

    def __init__(self, run, recipe, after):
        self.path, self.columns, self.rows = run / "metrics.csv", ["step"], []
        if self.path.is_file():
            with open(self.path, newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or ["step"])
                self.rows = [row for row in reader if row["step"].isdigit() and int(row["step"]) <= after]
        self._rewrite()

    def add(self, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, **values}
        self.rows.append(row)
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            return self._rewrite()
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self):
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self):
        pass


class MLflow:
    """MLflow run, continued when training resumes; MLFLOW_TRACKING_URI sets the server."""

    name = "MLflow"

    def __init__(self, run, recipe, after):
        import mlflow

        self.mlflow = mlflow
        note = run / "mlflow_run.txt"
        if note.is_file() and after:
            mlflow.start_run(run_id=note.read_text().strip())
        else:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "kgarden"))
            note.write_text(mlflow.start_run(run_name=run.name).info.run_id)
            mlflow.log_params({name: str(value)[:500] for name, value in parameters(recipe).items()})

    def add(self, step: int, values: dict[str, Any]) -> None:
        try:
            self.mlflow.log_metrics(grouped(values), step=step)
        except self.mlflow.exceptions.MlflowException as error:
            raise OSError(str(error)) from error

    def close(self):
        self.mlflow.end_run()


class WandB:
    """Weights & Biases run, continued when training resumes; WANDB_MODE=offline keeps it local."""

    name = "Weights & Biases"

    def __init__(self, run, recipe, after):
        import wandb

        note = run / "wandb_run.txt"
        earlier = note.read_text().strip() if note.is_file() and after else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kgarden"),
            name=run.name,
            dir=str(run),
            id=earlier,
            resume="allow",
            config=parameters(recipe),
        )
        note.write_text(self.run.id)

    def add(self, step: int, values: dict[str, Any]) -> None:
        self.run.log(grouped(values), step=step)

    def close(self):
        self.run.finish()


def grouped(values: dict[str, Any]) -> dict[str, int | float]:
    """Returns the numbers among the values, those of training with the prefix "train/"."""
    return {
        name if name.startswith("val/") else f"train/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float)
    }
