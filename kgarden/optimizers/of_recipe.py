"""The optimizer and the learning-rate schedule of a recipe."""

import keras

from kgarden.config.recipe import Recipe
from kgarden.optimizers.optimizers import SGD, AdamW, LossScaled
from kgarden.optimizers.schedules import check_plan, learning_rate


def learning_rate_of(recipe: Recipe) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds the recipe's learning-rate schedule, a function of the step, which counts from 0."""
    warmup = recipe.schedule.warmup
    constant = warmup is not None and warmup.constant
    return learning_rate(recipe.schedule.base_lr, **_plan(recipe), constant_warmup=constant)


def check_learning_rate(recipe: Recipe) -> str | None:
    """Checks the learning-rate schedule against the length of the training; see `check_plan`."""
    return check_plan(**_plan(recipe))


def _plan(recipe):
    schedule = recipe.schedule
    decay, warmup = schedule.decay, schedule.warmup
    return {
        "steps": schedule.steps,
        "cosine": decay is not None and decay.name == "cosine",
        "at": decay.at if decay else None,
        "factor": decay.factor if decay else None,
        "warmup": (warmup.steps, warmup.factor) if warmup else None,
    }


def build_optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Builds the recipe's optimizer with its learning-rate schedule, and loss scaling for float16."""
    settings = recipe.schedule.optimizer.model_dump(exclude_none=True)
    kind = {"sgd": SGD, "adamw": AdamW}[settings.pop("name")]
    optimizer = kind(learning_rate_of(recipe), **settings)
    return LossScaled(optimizer) if recipe.precision == "mixed_float16" else optimizer
