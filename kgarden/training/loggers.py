"""Where the numbers of a training go besides the screen.

`metrics.jsonl` and TensorBoard always; a table, MLflow and Weights & Biases where the recipe's `loggers` name
them. Each takes a step and a flat dictionary of numbers, and raises OSError where it cannot keep them; a
package is imported when its logger is made.
"""

import csv
import importlib.util
import json
import os
import pathlib

from kgarden.errors import UserError

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # logger -> package, which is also the name of the extra


def make_loggers(names, run, recipe, after):
    """Loggers of a run, in the order in which they are fed.

    Args:
        names:  of the recipe's `loggers`.
        run:    directory.
        recipe: what is trained: its keys are the parameters that trackers show.
        after:  the step from which training goes on; what was noted of later steps is dropped.
    Raises:
        UserError: a package is not installed.
    """
    for name in names:
        if name in PACKAGES:
            _check(PACKAGES[name])
    made = [JsonLines(run / "metrics.jsonl", after), TensorBoard(run / "tensorboard")]
    kinds = {"csv": Table, "mlflow": MLflow, "wandb": WandB}
    return made + [kinds[name](run, recipe, after) for name in names]


def _check(package):
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"loggers: {package} is not installed: pip install 'kgarden[{package}]', or leave it out"
        )


def parameters(recipe):
    """The recipe as {"schedule.base_lr": 0.02, ...}, without what is not set."""
    return dict(_leaves(recipe.plain(), ""))


def _leaves(value, key):
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if name != "rows":
                yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif value not in (None, {}, []):
        yield key, value if isinstance(value, int | float | str) else json.dumps(value)


class JsonLines:
    """`metrics.jsonl`: a line for each report, never two reports of one step.

    Args:
        path:  of the file.
        after: lines of later steps are dropped: the training goes on from here.
    """

    name = "metrics.jsonl"

    def __init__(self, path, after=0):
        self.path = pathlib.Path(path)
        self.reports = []  # what the file held of earlier steps
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    report = json.loads(line)
                    if report["step"] <= after:
                        self.reports.append(report)
                except (ValueError, KeyError, TypeError):  # a killed process may leave half a line
                    continue
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        aside.write_text("".join(f"{json.dumps(report)}\n" for report in self.reports))
        os.replace(aside, self.path)

    def add(self, step, values):
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self):
        pass


class TensorBoard:
    """Scalars, named as in `grouped`."""

    name = "TensorBoard"

    def __init__(self, folder):
        import tensorflow as tf

        self.scalar = tf.summary.scalar
        self.board = tf.summary.create_file_writer(str(folder))

    def add(self, step, values):
        with self.board.as_default(step=step):
            for name, value in grouped(values).items():
                self.scalar(name, value)

    def close(self):
        self.board.close()


class Table:
    """`metrics.csv`: one row for each report, empty cells for what it does not hold.

    Rows of an evaluation have other columns than those of training: when a new one comes the file is written
    again, aside.
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

    def add(self, step, values):
        row = {"step": step, **values}
        self.rows.append(row)
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            return self._rewrite()
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self):
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(aside, self.path)

    def close(self):
        pass


class MLflow:
    """A run of MLflow, the same again when training goes on; where to is said by MLFLOW_TRACKING_URI."""

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

    def add(self, step, values):
        try:
            self.mlflow.log_metrics(grouped(values), step=step)
        except self.mlflow.exceptions.MlflowException as error:
            raise OSError(str(error)) from error

    def close(self):
        self.mlflow.end_run()


class WandB:
    """A run of Weights & Biases, the same again when training goes on; WANDB_MODE=offline keeps it here."""

    name = "Weights & Biases"

    def __init__(self, run, recipe, after):
        import wandb

        note = run / "wandb_run.txt"
        known = note.read_text().strip() if note.is_file() and after else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kgarden"),
            name=run.name,
            dir=str(run),
            id=known,
            resume="allow",
            config=parameters(recipe),
        )
        note.write_text(self.run.id)

    def add(self, step, values):
        self.run.log(grouped(values), step=step)

    def close(self):
        self.run.finish()


def grouped(values):
    """Numbers alone, those of training under "train/"; those of an evaluation stand under "val/" already."""
    return {
        name if name.startswith("val/") else f"train/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float)
    }
