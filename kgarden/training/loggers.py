"""Metric loggers: JSON lines, TensorBoard, CSV, MLflow, Weights & Biases.

`metrics.jsonl` and TensorBoard are always written, the others if the recipe's `loggers` list them. `add`
takes a step and a flat dictionary of numbers. A logger that cannot start or fails never ends a training:
`Tolerant` says so once. Optional packages are imported when their logger is constructed.
"""

import contextlib
import csv
import importlib.util
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.utils.files import append, replace_file, replacing

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # logger -> package, also the name of the extra


def make_loggers(
    names: Sequence[str], run: pathlib.Path, recipe: Recipe, after: int, say: Callable[[str], object] = print
) -> "list[Tolerant]":
    """Builds the loggers of a run.

    Args:
        names:  the recipe's `loggers`.
        run:    run directory.
        recipe: its keys are logged as parameters.
        after:  the step from which training resumes; entries of later steps are dropped.
        say:    called with one line about a logger that fails, and about damaged entries.
    Returns:
        [JsonLines, TensorBoard, and the named ones in their order].
    Raises:
        UserError: a package is not installed.
    """
    check_packages(names)
    kinds = {"csv": Table, "mlflow": MLflow, "wandb": WandB}
    makers = {
        JsonLines: lambda: JsonLines(run / "metrics.jsonl", after, say),
        TensorBoard: lambda: TensorBoard(run / "tensorboard"),
        **{kinds[name]: lambda kind=kinds[name]: kind(run, recipe, after) for name in names},
    }
    return [
        Tolerant(kind.name, make, say, lasting=kind in (JsonLines, Table)) for kind, make in makers.items()
    ]


def check_packages(names: Sequence[str]) -> None:
    """Checks that the packages of the recipe's `loggers` are installed.

    Raises:
        UserError: one is not.
    """
    for package in (PACKAGES[name] for name in names if name in PACKAGES):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"loggers: {package} is not installed: pip install 'kgarden[{package}]', or remove it"
            )


class Tolerant:
    """A logger whose failure is told in one line and does not end the training.

    Args:
        name:    of the logger.
        make:    function without arguments that constructs it.
        say:     called with the line.
        lasting: whether it is used on after a failure, as a file is, for a full disk may have room again; a
                 tracker is left alone, for each try may wait for a server.
    """

    def __init__(
        self, name: str, make: Callable[[], Any], say: Callable[[str], object], lasting: bool = False
    ):
        self.name, self._say, self._lasting = name, say, lasting
        self._logger, self._failing = None, False
        with self._telling("cannot be started"):
            self._logger = make()

    @property
    def reports(self) -> list[dict]:
        """Reports of earlier steps; empty if they could not be read."""
        return getattr(self._logger, "reports", [])

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Logs values; after a failure, says so and goes on without them."""
        if self._logger is None:
            return
        with self._telling(f"failed at step {step}"):
            self._logger.add(step, values)
            self._failing = False

    def close(self) -> None:
        """Closes the logger."""
        if self._logger is not None:
            with self._telling("could not be closed"):
                self._logger.close()

    @contextlib.contextmanager
    def _telling(self, what):
        try:
            yield
        # whatever a tracker raises, and the SystemExit of one that asks for a login
        except (Exception, SystemExit) as error:
            if not self._failing:
                self._say(f"{self.name} {what} ({_first_line(error)}); training continues without it")
            self._failing = True
            if not self._lasting:
                self._logger = None


def _first_line(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


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

    A killed process may leave its last line incomplete, which is dropped. If other lines are damaged, the
    file is kept as `metrics.jsonl.damaged`, or `metrics.jsonl.damaged2` and so on.

    Args:
        path:  of the file.
        after: the step from which training resumes; lines of later steps are dropped.
        say:   called with one line if the file is damaged.
    """

    name = "metrics.jsonl"

    def __init__(self, path, after=0, say=print):
        self.path = pathlib.Path(path)
        self.reports = []  # of earlier steps, read from the file
        if self.path.is_file():
            content = self.path.read_text(errors="replace")
            *whole, last = content.split("\n")  # the last is empty, or incomplete
            reports = [_report_of(line) for line in (*whole, *([last] if last else []))]
            if damaged := reports[: len(whole)].count(None):
                copy = _free(self.path.with_name(f"{self.path.name}.damaged"))
                os.replace(self.path, copy)
                say(f"{self.path}: {damaged} of {len(whole)} lines are damaged; they stay in {copy.name}")
            self.reports = [report for report in reports if report is not None and report["step"] <= after]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(report)}\n" for report in self.reports))

    def add(self, step: int, values: dict[str, Any]) -> None:
        append(self.path, (json.dumps({"step": step, **values}) + "\n").encode())

    def close(self):
        pass


def _free(path):
    """The path, or the first with a number behind it that is not taken."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def _report_of(line):
    """A line of `metrics.jsonl` as a dictionary; None if it is not one of ours."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(report, dict) and all(
        isinstance(report.get(key, 0), int | float) for key in ("loss", "gradient_norm", "traces")
    )
    return report if numbers and type(report.get("step")) is int else None


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
            with open(self.path, newline="", errors="replace") as file:
                reader = csv.DictReader(line.replace("\0", "") for line in file)
                rows = [row for row in reader if str(row.get("step")).isdecimal()]
            self.rows = [{key: row[key] for key in row if key} for row in rows if int(row["step"]) <= after]
            self.columns = list(dict.fromkeys(["step", *(key for row in self.rows for key in row)]))
        self._rewrite()

    def add(self, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, **values}
        self.rows.append(row)
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            return self._rewrite()
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns).writerow(row)
        append(self.path, line.getvalue().encode())

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
        # MLflow's own are 7 retries with growing pauses and 120 s each: minutes for a server that is gone
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        self.mlflow = mlflow
        note = run / "mlflow_run.txt"
        if note.is_file() and after:
            mlflow.start_run(run_id=note.read_text().strip())
        else:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "kgarden"))
            replace_file(note, mlflow.start_run(run_name=run.name).info.run_id.encode())
            mlflow.log_params({name: str(value)[:500] for name, value in parameters(recipe).items()})

    def add(self, step: int, values: dict[str, Any]) -> None:
        self.mlflow.log_metrics(grouped(values), step=step)

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
        replace_file(note, self.run.id.encode())

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
