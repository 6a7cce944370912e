"""Run directories: the recipe, the classes and the weights that a directory holds."""

import os
import pathlib

from kgarden.config.loading import load_recipe
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.utils.files import read_json, replace_file

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


def claim(run: pathlib.Path, recipe: Recipe, fresh: bool, reporter) -> None:
    """Creates the run directory of a recipe, or checks that an existing one can be resumed.

    Args:
        run:      run directory.
        recipe:   to be trained.
        fresh:    move an existing run aside and start over.
        reporter: kgarden.training.reporter.Reporter.
    Raises:
        UserError: the directory holds another recipe, or other files.
    """
    held = run / "recipe.yaml"
    if held.exists() and fresh:
        backup = next(
            path for n in range(1, 10_000) if not (path := run.with_name(f"{run.name}.{n}")).exists()
        )
        os.replace(run, backup)
        reporter.line(f"moved the existing run to {backup}")
    elif held.exists():
        before = load_recipe(held)
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
    elif run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run; use another --run")
    run.mkdir(parents=True, exist_ok=True)
    replace_file(held, recipe.to_yaml().encode())


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
    path = pathlib.Path(run) / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run}: not a run directory, it has no recipe.yaml")
    return load_recipe(path, overrides)


def load_categories(run: str | os.PathLike) -> list[dict]:
    """Returns the classes of a run in label order, [{"id", "name"}, ...].

    Raises:
        UserError: the training has not started.
    """
    path = pathlib.Path(run) / "labels.json"
    if not path.is_file():
        raise UserError(f"{run}: no labels.json: the training has not started")
    return read_json(path)
