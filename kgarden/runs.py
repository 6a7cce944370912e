"""Run directories: the recipe, the classes and the weights that a directory holds."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from kgarden.config.loading import load_recipe
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.utils.arguments import path_of
from kgarden.utils.files import ASIDE, read_json, replace_file, writing
from kgarden.utils.process_lock import locked

# Keys that may differ when a run is resumed. With more steps the learning rate follows the longer schedule
# from the current step on.
MAY_CHANGE = {
    "schedule.steps",
    "schedule.checkpoint_every",
    "replicas",
    "evaluate.pictures",
    "loggers",
    "remat",
}


LOCK = "lock"
HEADER = "# The resolved recipe of this run, written by kgarden.\n"
CACHED = re.compile(r"\.?\w+-[0-9a-f]{16}(\.partial)?")  # names of converted data sets
# What a start writes before its first step, with the loggers' own; the recipe last, since it tells whose
# the rest is.
BEFORE_A_STEP = (
    "labels.json data.json metrics.jsonl metrics.csv tensorboard mlflow_run.txt wandb_run.txt wandb stages "
    "recipe.yaml"
).split()


def default_run(name: str, row: str | None = None) -> pathlib.Path:
    """Returns the run directory of a recipe without `--run`: runs/NAME, or runs/NAME.ROW.

    Raises:
        UserError: the name leads out of runs/.
    """
    folder = f"{name}.{row}" if row else name
    parts = pathlib.PurePath(folder.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0].startswith("/") or not folder.isprintable():
        raise UserError(f"name: {folder!r} is no folder inside runs/; use --run DIR, or another name")
    return pathlib.Path("runs") / folder


@contextlib.contextmanager
def claimed(run: pathlib.Path, recipe: Recipe, fresh: bool, reporter) -> Iterator[None]:
    """Holds the run directory of a recipe during its training: creates it, or checks that it can be resumed.

    One process at a time trains in a run directory. A training that ends before its first step leaves
    nothing behind but converted data, so that another recipe may use the directory.

    Args:
        run:      run directory.
        recipe:   to be trained.
        fresh:    move an existing run aside and start over.
        reporter: kgarden.training.reporter.Reporter.
    Raises:
        UserError: the directory holds another recipe or other files, or another process trains in it.
    """
    _check_place(run)
    remedy = "wait for it to end, or use another --run"
    if fresh and (run / "recipe.yaml").exists():
        with writer_of(run, reporter.line, remedy):
            _move_aside(run, reporter)
    try:
        with writer_of(run, reporter.line, remedy):
            if has_begun(run):
                _check_same(run, recipe)
            else:
                _clear(run)  # what a killed start has left may be of another recipe
            try:
                write_recipe(run, recipe)
                yield
            finally:
                if not has_begun(run):
                    _clear(run)
    finally:
        with contextlib.suppress(OSError):
            run.rmdir()  # if it is empty


def writer_of(
    run: pathlib.Path, say: Callable[[str], object], remedy: str
) -> contextlib.AbstractContextManager[None]:
    """Context in which this process alone writes to a run directory; see kgarden/utils/process_lock.py."""
    return locked(run / LOCK, str(run), say, remedy=remedy)


def write_recipe(run: pathlib.Path, recipe: Recipe) -> None:
    """Writes recipe.yaml of a run."""
    replace_file(run / "recipe.yaml", (HEADER + recipe.to_yaml()).encode())


def has_begun(run: pathlib.Path) -> bool:
    """Returns whether a run has made a step: it holds metrics, a checkpoint, weights or an evaluation."""
    metrics = run / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        return True
    results = ("checkpoint/*.npz", "*.weights.h5", "evaluation.json")
    return any(any(run.glob(pattern)) for pattern in results) or any(map(has_begun, run.glob("stages/*")))


def _check_place(run):
    """Checks that the directory is one of a run, or empty but for what a start before its first step left."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; use another --run")
    held = run / "recipe.yaml"
    if held.exists():
        if not (has_begun(run) or _is_provisional(held)):
            raise UserError(f"{run}: its recipe.yaml is not that of a run; use another --run")
        return
    strange = [path for path in run.iterdir() if not _is_leftover(path)] if run.exists() else []
    if strange:
        raise UserError(f"{run} is not empty and holds no run; use another --run")


def _is_provisional(held):
    """Whether kgarden wrote this recipe, perhaps not to its end: a crash may leave an empty file."""
    try:
        text = held.read_bytes()
    except OSError as error:
        raise UserError(f"{held}: cannot be read ({error.strerror})") from error
    return not text.strip(b"\0") or text.startswith(HEADER.encode())


def _is_leftover(path):
    """Whether a start before its first step left this: converted data, a lock, a temporary file."""
    if path.name == "data" and path.is_dir():
        return all(CACHED.fullmatch(one.name) for one in path.iterdir())
    return path.name in (LOCK, "bad_batch.npz") or path.name.startswith(ASIDE)


def _move_aside(run, reporter):
    backup = next(path for n in range(1, 10_000) if not (path := run.with_name(f"{run.name}.{n}")).exists())
    with writing(run):
        os.replace(run, backup)
    (backup / LOCK).unlink(missing_ok=True)
    reporter.line(f"moved the existing run to {backup}")


def _check_same(run, recipe):
    """Checks that a run which has begun can be resumed with this recipe."""
    before = load_recipe(run / "recipe.yaml")
    changed = set(differing_keys(before.plain(), {**recipe.plain(), "rows": {}})) - MAY_CHANGE
    if recipe.schedule.steps < before.schedule.steps:
        raise UserError(
            f"{run}: schedule.steps is {recipe.schedule.steps}, the run has {before.schedule.steps}; "
            f"a run can be extended but not shortened: use another --run, or --fresh to start over"
        )
    if changed:
        raise UserError(
            f"{run} holds another recipe (differs in {', '.join(sorted(changed))}); use another --run, "
            f"or --fresh to move it aside and start over"
        )


def _clear(run):
    """Removes what a start writes before its first step; converted data and temporary files' folders stay."""
    for path in (run / name for name in BEFORE_A_STEP):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


MISSING = object()  # null is a value


def differing_keys(one: dict, other: dict, prefix: str = "") -> list[str]:
    """Returns the dotted keys in which two plain recipes differ."""
    keys = []
    for key in {**one, **other}:
        first, second = one.get(key, MISSING), other.get(key, MISSING)
        if isinstance(first, dict) and isinstance(second, dict):
            keys += differing_keys(first, second, f"{prefix}{key}.")
        elif first != second:
            keys.append(f"{prefix}{key}")
    return keys


def best_weights(run: str | os.PathLike) -> pathlib.Path:
    """Returns the path of the best weights of a run.

    Raises:
        UserError: it has none.
    """
    for name in ("best.weights.h5", "model.weights.h5"):
        if (pathlib.Path(run) / name).is_file():
            return pathlib.Path(run) / name
    raise UserError(f"{run}: no weights found; give a run directory that has been evaluated at least once")


def load_run_recipe(run: str | os.PathLike, overrides: dict | None = None) -> Recipe:
    """Returns the recipe of a run, with other settings where `overrides` gives them.

    Raises:
        UserError: the directory is not a run directory.
    """
    path = path_of(run, "run") / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run}: not a run directory, it has no recipe.yaml")
    return load_recipe(path, overrides)


def load_categories(run: str | os.PathLike) -> list[dict]:
    """Returns the classes of a run in label order, [{"id", "name"}, ...].

    Raises:
        UserError: the training has not started.
    """
    path = path_of(run, "run") / "labels.json"
    if not path.is_file():
        raise UserError(f"{run}: no labels.json: the training has not started")
    categories = read_json(path)
    try:
        classes = [{"id": int(one["id"]), "name": str(one["name"])} for one in categories]
    except (TypeError, KeyError, ValueError):
        classes = []
    if not classes:
        raise UserError(
            f"{path}: not a list of classes with id and name; remove it and resume the run to write it anew"
        )
    return classes
