"""Training: a recipe makes a run directory, and the same call goes on with it.

train(recipe, "runs/c2")
"""

import pathlib

import keras
from rich.console import Console

from kgarden import build
from kgarden.config.loading import load_recipe, stage_recipes
from kgarden.errors import UserError
from kgarden.runs import best_weights, claim
from kgarden.training.distribution import be_deterministic, team_of
from kgarden.training.gradient_accumulation import accumulated
from kgarden.training.reporter import Reporter
from kgarden.training.trainer import Session
from kgarden.utils.files import write_json
from kgarden.utils.progress import progress_of


def train(recipe, run, fresh=False, reporter=None):
    """Train a recipe in a run directory, or go on with what the directory holds.

    Args:
        recipe:   of `load_recipe`.
        run:      directory; made if missing, refused if it holds another recipe.
        fresh:    move what the directory holds aside and start anew.
        reporter: kgarden.training.reporter.Reporter; None: to standard output.
    Returns:
        the final evaluation, as in `evaluation.json`; None if it was stopped before the end.
    Raises:
        UserError:      the directory or the recipe is unfit.
        TrainingFailed: a loss is no longer finite, or another worker is lost.
    """
    run, reporter, stages = pathlib.Path(run), reporter or Reporter(), stage_recipes(recipe)
    team = team_of(recipe.replicas, reporter.line)
    for stage in stages:
        team.check(stage.data.batch_size, stage.schedule.micro_batches)
    with team.one_for_all():
        if team.is_chief:
            claim(run, recipe, fresh, reporter)
        else:
            reporter = Reporter(Console(quiet=True))
        team.meet()
        _check_shared(run, recipe)
        return _train_stages(stages, run, reporter, team)


def _train_stages(stages, run, reporter, team):
    """One after the other; the last one is the run itself."""
    before, evaluation = None, None
    for number, stage in enumerate(stages, start=1):
        folder = run if number == len(stages) else run / "stages" / str(number)
        if len(stages) > 1:
            reporter.line(f"stage {number} of {len(stages)}")
        evaluation = _train_stage(stage, folder, before, reporter=reporter, team=team)
        if evaluation is None:
            return None
        before = folder
    return evaluation


def _check_shared(run, recipe):
    """Every worker must see the directory that the chief has claimed."""
    held = run / "recipe.yaml"
    if not held.is_file() or load_recipe(held).digest() != recipe.digest():
        raise UserError(
            f"{run}: this worker does not find there what the chief wrote: all workers need the same "
            f"command, with a --run that they share"
        )


def _train_stage(recipe, run, before, reporter, team):
    """One recipe without stages: data, model, fit, final evaluation."""
    data = _in_turn(team, lambda: _prepared(recipe, run, reporter, team.is_chief))
    keras.utils.set_random_seed(recipe.seed)
    if recipe.deterministic:
        be_deterministic()
    with team.strategy.scope():
        detector = build.build_model(recipe, num_classes=len(data.categories))
        if before is not None and recipe.init is None:
            build.start_from(detector, weights=best_weights(before))
        optimizer = build.build_optimizer(recipe)
        detector.compile(optimizer=optimizer, jit_compile=recipe.jit or keras.backend.backend() == "jax")
        detector.optimizer.build(detector.trainable_variables)
        if recipe.schedule.micro_batches > 1:
            detector.train_step = accumulated(detector, recipe.schedule.micro_batches)
    trained = recipe.init is not None or before is not None
    session = Session(detector, recipe, run, data=data, reporter=reporter, team=team, trained=trained)
    session.resume()
    if session.step < recipe.schedule.steps:
        session.fit()
        if session.step < recipe.schedule.steps:
            reporter.line(f"stopped at step {session.step}; the same command goes on from here")
            return None
    return session.finish()


def _prepared(recipe, run, reporter, writes):
    """The data, converted if they have to be; the chief also makes the run's folder."""
    if writes:
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "recipe.yaml").exists():
            (run / "recipe.yaml").write_text(recipe.to_yaml())
    with progress_of("pictures converted", reporter.console) as progress:
        data = build.prepare_data(recipe, cache=run / "data", progress=progress)
    if writes:
        write_json(run / "labels.json", data.categories)
    return data


def _in_turn(team, work):
    """The chief's work first; the others find it done."""
    if team.is_chief:
        done = work()
    team.meet()
    return done if team.is_chief else work()
