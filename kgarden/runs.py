"""Run directories: which recipe a directory belongs to, and the weights it holds."""

import os
import pathlib

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError

# What may differ when a run is continued. With more steps the learning rate follows the longer schedule from
# the present step on.
MAY_CHANGE = {
    "schedule.steps",
    "schedule.checkpoint_every",
    "replicas",
    "evaluate.pictures",
    "loggers",
    "remat",
}


def claim(run, recipe, fresh, reporter):
    """Make the directory this recipe's own, or say why it cannot be."""
    held = run / "recipe.yaml"
    if held.exists() and fresh:
        aside = next(
            path for n in range(1, 10_000) if not (path := run.with_name(f"{run.name}.{n}")).exists()
        )
        os.replace(run, aside)
        reporter.line(f"moved the old run to {aside}")
    elif held.exists():
        before = load_recipe(held)
        changed = set(differing_keys(before.plain(), {**recipe.plain(), "rows": {}})) - MAY_CHANGE
        if recipe.schedule.steps < before.schedule.steps:
            raise UserError(
                f"{run}: is to have {before.schedule.steps} steps: a run can be made longer, not shorter "
                f"(schedule.steps is {recipe.schedule.steps}); give another --run, or --fresh"
            )
        if changed:
            raise UserError(
                f"{run} holds another recipe (differs in {', '.join(sorted(changed))}): give another --run, "
                f"or --fresh to move it aside and start anew"
            )
    elif run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run: give another --run")
    run.mkdir(parents=True, exist_ok=True)
    aside = run / ".recipe.yaml"
    aside.write_text(recipe.to_yaml())
    os.replace(aside, held)


MISSING = object()  # unlike null, which is a value


def differing_keys(one, other, prefix=""):
    """Dotted keys in which two plain recipes differ."""
    found = []
    for key in {**one, **other}:
        first, second = one.get(key, MISSING), other.get(key, MISSING)
        if isinstance(first, dict) and isinstance(second, dict):
            found += differing_keys(first, second, f"{prefix}{key}.")
        elif first != second:
            found.append(f"{prefix}{key}")
    return found


def best_weights(run):
    """The best weights that a run has so far."""
    for name in ("best.weights.h5", "model.weights.h5"):
        if (pathlib.Path(run) / name).is_file():
            return pathlib.Path(run) / name
    raise UserError(f"{run}: no weights there; is it a run directory, has it been evaluated once?")
