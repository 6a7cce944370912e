"""Training of a recipe in a run directory; the same call resumes an interrupted run.

train("centernet2", "runs/c2", {"schedule.steps": 1000})
"""

import contextlib
import os
from typing import Any

import keras
from rich.console import Console

from kgarden import build
from kgarden.config.loading import as_recipe, load_recipe, stage_recipes
from kgarden.config.recipe import Recipe
from kgarden.data.identity import changes, check_classes
from kgarden.errors import UserError
from kgarden.runs import best_weights, claimed, default_run, load_categories, write_recipe
from kgarden.training.data_remarks import data_remarks
from kgarden.training.distribution import make_cluster, make_deterministic
from kgarden.training.gradient_accumulation import accumulated_train_step
from kgarden.training.loggers import check_packages
from kgarden.training.reporter import Reporter
from kgarden.training.trainer import Trainer
from kgarden.utils.arguments import path_of
from kgarden.utils.files import make_folder, read_json, write_json
from kgarden.utils.progress import progress_of


def train(
    recipe: Recipe | str | os.PathLike,
    run: str | os.PathLike | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    row: str | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> dict | None:
    """Trains a recipe in a run directory, or resumes the run that the directory holds, as `kgarden train`.

    Args:
        recipe:    of `load_recipe`; or its path, or the name of a packaged one.
        run:       run directory; created if missing; must not hold another recipe. None: runs/NAME, or
                   runs/NAME.ROW, in the working directory.
        overrides: {"schedule.steps": 20, ...}, keys of the recipe that are replaced.
        row:       id of one of the recipe's rows.
        fresh:     move the existing run aside and start over.
        reporter:  kgarden.training.reporter.Reporter; None: standard output.
    Returns:
        the final evaluation, as in `evaluation.json`; None if the training was interrupted.
    Raises:
        UserError:      the directory or the recipe cannot be used.
        TrainingFailed: a loss is not finite, or another worker is lost.
    """
    recipe = as_recipe(recipe, overrides, row)
    if row in recipe.rows and recipe.rows[row].evaluates:  # a row may lead to a recipe with other rows
        raise UserError(
            f"row {row} re-evaluates {recipe.rows[row].evaluates}; train that row, then evaluate its run "
            f"with --set"
        )
    run = default_run(recipe.name, row) if run is None else path_of(run, "run")
    reporter = reporter or Reporter()
    for stage in stage_recipes(recipe):
        if remark := build.check_learning_rate(stage):
            reporter.line(remark)
        build.check_init(stage)
        check_packages(stage.loggers)
    recipe = build.with_pixels_of_weights(recipe)
    stages = [build.with_pixels_of_weights(stage) for stage in stage_recipes(recipe)]
    cluster = make_cluster(recipe.replicas, reporter.line)
    for stage in stages:
        cluster.check(stage.data.batch_size, stage.schedule.micro_batches)
    with cluster.fail_together(), contextlib.ExitStack() as held:
        if cluster.is_chief:
            held.enter_context(claimed(run, recipe, fresh, reporter))
        else:
            reporter = Reporter(Console(quiet=True))
        cluster.barrier()
        _check_shared(run, recipe)
        return _train_stages(stages, run, reporter, cluster)


def _train_stages(stages, run, reporter, cluster):
    """Trains the stages in turn; the last one in the run directory itself."""
    before, evaluation = None, None
    for number, stage in enumerate(stages, start=1):
        folder = run if number == len(stages) else run / "stages" / str(number)
        if len(stages) > 1:
            reporter.line(f"stage {number} of {len(stages)}")
        evaluation = _train_stage(stage, folder, before, reporter=reporter, cluster=cluster)
        if evaluation is None:
            return None
        before = folder
    return evaluation


def _check_shared(run, recipe):
    """Checks that this worker sees the run directory that the chief has claimed."""
    held = run / "recipe.yaml"
    if not held.is_file() or load_recipe(held).digest() != recipe.digest():
        raise UserError(
            f"{run}: this worker does not find the recipe that the chief wrote; use the same command on "
            f"all workers, with a --run on shared storage"
        )


def _train_stage(recipe, run, before, *, reporter, cluster):
    """Trains one recipe without stages: data, model, fit, final evaluation."""
    built = {}

    def make(categories):
        built["detector"] = _compiled(recipe, categories, before, reporter=reporter, cluster=cluster)

    # What is wrong with the model is said before data are converted. Workers build theirs together, later.
    early = None if cluster.workers else make
    data = _chief_first(cluster, lambda: _prepare(recipe, run, reporter, cluster.is_chief, on_classes=early))
    if not built:
        make(data.categories)
    detector = built["detector"]
    trained = recipe.init is not None or before is not None
    trainer = Trainer(detector, recipe, run, data=data, reporter=reporter, cluster=cluster, trained=trained)
    trainer.resume()
    if cluster.is_chief and trainer.step == 0 and before is None:
        for remark in data_remarks(data, recipe, detector):
            reporter.line(remark)
    if trainer.step < recipe.schedule.steps:
        trainer.fit()
        if trainer.step < recipe.schedule.steps:
            reporter.line(f"stopped at step {trainer.step}; run the same command to resume")
            return None
    return trainer.finish()


def _compiled(recipe, categories, before, *, reporter, cluster):
    """Builds and compiles the detector with its initial weights, or with those of the stage before."""
    keras.utils.set_random_seed(recipe.seed)
    if recipe.deterministic:
        make_deterministic()
    with cluster.strategy.scope():
        detector = build.build_model(recipe, num_classes=len(categories), say=reporter.note)
        detector.categories = categories
        if before is not None and recipe.init is None:
            left_out = build.start_from(detector, weights=best_weights(before))
            if left_out:
                reporter.note(left_out)
        optimizer = build.build_optimizer(recipe)
        detector.compile(optimizer=optimizer, jit_compile=recipe.jit or keras.backend.backend() == "jax")
        detector.optimizer.build(detector.trainable_variables)
        if recipe.schedule.micro_batches > 1:
            detector.train_step = accumulated_train_step(detector, recipe.schedule.micro_batches)
    return detector


def _prepare(recipe, run, reporter, writes, on_classes):
    """Opens the data, after converting it if necessary; the chief also creates the run directory."""
    if writes:
        make_folder(run)
        if not (run / "recipe.yaml").exists():
            write_recipe(run, recipe)
    with progress_of("images converted", reporter.console) as progress:
        data = build.prepare_data(recipe, cache=run / "data", progress=progress, on_classes=on_classes)
    if writes:
        _remember_data(run, data, reporter)
    return data


def _remember_data(run, data, reporter):
    """Writes what a new run has to know of its data; of a run that is resumed, says what has changed."""
    labels = run / "labels.json"
    if labels.is_file():
        check_classes(load_categories(run), str(labels), data.categories, "the data")
    write_json(labels, data.categories)
    identity = data.identity()
    if (run / "data.json").is_file():
        for line in changes(read_json(run / "data.json"), identity):
            reporter.line(line)
    else:
        write_json(run / "data.json", identity)


def _chief_first(cluster, function):
    """Calls a function on the chief first, so that the other workers find what it has written."""
    if cluster.is_chief:
        result = function()
    cluster.barrier()
    return result if cluster.is_chief else function()
