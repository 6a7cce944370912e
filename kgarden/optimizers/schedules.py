"""Learning-rate schedules as in detectron2: multi-step, cosine, linear or constant warm-up."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from kgarden.errors import UserError


@keras.saving.register_keras_serializable("kgarden")
class Steps(keras.optimizers.schedules.LearningRateSchedule):
    """Multi-step schedule: base_lr times `factor` for every step of `at` that has been reached."""

    def __init__(self, base_lr, at=(), factor=0.1):
        self.base_lr, self.at, self.factor = base_lr, tuple(at), factor

    def __call__(self, step):
        rates = [self.base_lr * self.factor**n for n in range(len(self.at) + 1)]
        reached = sum((ops.cast(step >= at, "int32") for at in self.at), ops.zeros((), "int32"))
        return ops.take(ops.convert_to_tensor(rates, "float32"), reached)

    def get_config(self):
        return {"base_lr": self.base_lr, "at": self.at, "factor": self.factor}


@keras.saving.register_keras_serializable("kgarden")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine schedule, base_lr * (1 + cos(pi * step / steps)) / 2, as a squared sine, precise near 0."""

    def __init__(self, base_lr, steps):
        self.base_lr, self.steps = base_lr, steps

    def __call__(self, step):
        left = ops.maximum(ops.cast(self.steps - step, "float32"), 0.0)
        return self.base_lr * ops.square(ops.sin(left * (math.pi / 2 / self.steps)))

    def get_config(self):
        return {"base_lr": self.base_lr, "steps": self.steps}


@keras.saving.register_keras_serializable("kgarden")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from factor * schedule(0) to schedule(steps), followed by the schedule.

    With `constant` the rate stays at factor * schedule(0) until then.
    """

    def __init__(self, schedule, steps, factor, constant=False):
        self.schedule, self.steps, self.factor, self.constant = schedule, steps, factor, constant

    def __call__(self, step):
        fraction = ops.cast(step, "float32") / self.steps
        first = self.schedule(0) * self.factor
        last = first if self.constant else self.schedule(self.steps)
        return ops.where(step < self.steps, first * (1 - fraction) + last * fraction, self.schedule(step))

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.steps,
            "factor": self.factor,
            "constant": self.constant,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


def learning_rate(
    base_lr: float,
    steps: int,
    at: Sequence[int] | None = None,
    factor: float | None = None,
    cosine: bool = False,
    warmup: tuple[int, float] | None = None,
    constant_warmup: bool = False,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds the learning-rate schedule, a function of the step, which counts from 0.

    Args:
        base_lr:    before any decay.
        steps:      length of the training.
        at, factor: steps at which the rate is multiplied by the factor.
        cosine:     half a cosine period over all steps instead.
        warmup:     (steps, factor) of a linear warm-up, or None.
        constant_warmup: whether the warm-up stays at its factor to its end.
    """
    schedule = Cosine(base_lr, steps) if cosine else Steps(base_lr, at or (), factor or 1.0)
    return Warmup(schedule, *warmup, constant=constant_warmup) if warmup else schedule


def check_plan(
    steps: int,
    at: Sequence[int] | None = None,
    factor: float | None = None,
    cosine: bool = False,
    warmup: tuple[int, float] | None = None,
) -> str | None:
    """Checks a learning-rate schedule against the length of the training.

    Args:
        steps, at, factor, cosine, warmup: as in `learning_rate`.
    Returns:
        a sentence on what lies beyond the end, as in a short trial of a long recipe; None if nothing does.
    Raises:
        UserError: the schedule is of no use for a training of any length, or the rate would be 0.
    """
    length = f"the training has {steps} steps (schedule.steps)"
    warmup_steps, warmup_factor = warmup or (0, 0.0)
    if warmup_factor > 1:
        raise UserError(
            f"schedule.warmup.factor is {warmup_factor:g}; a warm-up begins below the full rate: 0..1"
        )
    if cosine and warmup_steps >= steps:
        raise UserError(
            f"schedule.warmup.steps is {warmup_steps}, {length}: the cosine is at 0 before the warm-up ends; "
            f"shorten the warm-up, or remove it (schedule.warmup=null)"
        )
    at = list(at or ())
    if at and factor >= 1:
        raise UserError(f"schedule.decay.factor is {factor:g}, so the learning rate does not fall; use 0.1")
    if at != sorted(set(at)):
        raise UserError(f"schedule.decay.at is {at}; give each step once, in ascending order")
    if at and at[0] < warmup_steps:
        raise UserError(
            f"schedule.decay.at has {at[0]}, inside the warm-up of {warmup_steps} steps "
            f"(schedule.warmup.steps); let the rate fall after it"
        )
    if warmup_steps > steps:
        return f"schedule.warmup.steps is {warmup_steps}, {length}: it ends within the warm-up"
    if late := [one for one in at if one >= steps]:
        return f"schedule.decay.at has {late[0]}, {length}: the learning rate does not fall there"
    return None
