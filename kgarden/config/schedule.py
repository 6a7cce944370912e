"""The section `schedule` of a recipe: optimizer, learning rate and length of the training."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from kgarden.config.fields import AsTuple, Section


class Rule(Section):
    """Factors on learning rate and weight decay of one kind of parameter; None: as the short forms say."""

    lr_factor: PositiveFloat | None = None  # on schedule.base_lr
    decay_factor: NonNegativeFloat | None = None  # on weight_decay


class Rules(Section):
    """Rules by kind of parameter."""

    kernel: Rule | None = None  # and all that is none of the following
    bias: Rule | None = None
    norm_scale: Rule | None = None
    norm_shift: Rule | None = None


class Optimizer(Section):
    """The optimizer, weight decay and gradient clipping."""

    name: Literal["sgd", "adamw"] = "sgd"  # SGD with momentum, or AdamW
    momentum: NonNegativeFloat | None = None  # sgd; None: 0.9
    betas: Annotated[tuple[float, float], AsTuple] | None = None  # adamw; None: 0.9, 0.999
    weight_decay: NonNegativeFloat = 0.0  # sgd: L2 in the gradient; adamw: decoupled
    decay_norms: bool = False  # short form of rules.norm_scale and rules.norm_shift: decay_factor
    decay_biases: bool = True  # ... of rules.bias: decay_factor
    bias_lr_factor: PositiveFloat = 1.0  # ... of rules.bias: lr_factor
    rules: Rules | None = None  # learning rate and decay by kind of parameter, over the short forms
    clip_value: PositiveFloat | None = None  # of every element of the gradient
    clip_norm: PositiveFloat | None = None  # of the norm of all gradients together

    @model_validator(mode="after")
    def _whole(self):
        foreign = "betas" if self.name == "sgd" else "momentum"
        if getattr(self, foreign) is not None:
            raise ValueError(f"{foreign} is not a parameter of {self.name}; remove it")
        return self


class Warmup(Section):
    """Warm-up of the learning rate, linear up to the full rate, or constant."""

    steps: PositiveInt  # length
    factor: NonNegativeFloat  # multiplies the learning rate at step 0
    constant: bool = False  # multiplies it by the factor at every step of the warm-up


class Decay(Section):
    """Decay of the learning rate: multi-step or cosine."""

    name: Literal["steps", "cosine"] = "steps"  # multi-step, or cosine to 0
    at: Annotated[tuple[NonNegativeInt, ...], AsTuple] | None = None  # steps: where the rate falls
    factor: PositiveFloat | None = None  # steps: multiplies the rate at each of them

    @model_validator(mode="after")
    def _whole(self):
        present = self.at is not None, self.factor is not None
        if self.name == "steps" and not all(present):
            raise ValueError("decay of name steps requires at and factor")
        if self.name == "cosine" and any(present):
            raise ValueError("at and factor are not parameters of name: cosine; remove them")
        return self


class Ema(Section):
    """Exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)]  # min(decay, (1 + t) / (10 + t)) after t updates


class Schedule(Section):
    """Optimizer, learning rate and length of the training."""

    optimizer: Optimizer = Optimizer()
    base_lr: PositiveFloat  # learning rate after the warm-up
    warmup: Warmup | None = None
    decay: Decay | None = None  # None: constant
    steps: PositiveInt  # length of the training, in batches
    micro_batches: PositiveInt = 1  # gradient accumulation: micro-batches for one update
    checkpoint_every: PositiveInt | None = None  # steps; also after each evaluation
    ema: Ema | None = None
