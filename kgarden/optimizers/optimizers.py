"""Learning rates and optimizers as the reference frameworks do them.

Schedules follow detectron2, update rules follow torch: SGD's weight decay is part of the gradient and its
momentum does not hold the learning rate (Keras' SGD differs in both); AdamW divides by sqrt(v / bias
correction) + epsilon. What Keras lacks and detectors use: clipping of what all replicas together computed,
no weight decay on norms, another learning rate for biases.
"""

import math

import keras
from keras import ops

from kgarden.ops.replicas import num_replicas, sum_over_replicas

NORM_WEIGHTS = {"gamma", "beta"}  # the names that Keras' normalisation layers give
BIASES = {"bias"}


@keras.saving.register_keras_serializable("kgarden")
class Steps(keras.optimizers.schedules.LearningRateSchedule):
    """base_lr times `factor` for every step of `at` that has been reached; no `at`: constant."""

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
    """base_lr * (1 + cos(pi * step / steps)) / 2, as a squared sine: float32 tells it from 0 at the end."""

    def __init__(self, base_lr, steps):
        self.base_lr, self.steps = base_lr, steps

    def __call__(self, step):
        left = ops.maximum(ops.cast(self.steps - step, "float32"), 0.0)
        return self.base_lr * ops.square(ops.sin(left * (math.pi / 2 / self.steps)))

    def get_config(self):
        return {"base_lr": self.base_lr, "steps": self.steps}


@keras.saving.register_keras_serializable("kgarden")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from factor * schedule(0) to the value that the schedule has when the warm-up ends."""

    def __init__(self, schedule, steps, factor):
        self.schedule, self.steps, self.factor = schedule, steps, factor

    def __call__(self, step):
        share = ops.cast(step, "float32") / self.steps
        first, last = self.schedule(0) * self.factor, self.schedule(self.steps)
        return ops.where(step < self.steps, first * (1 - share) + last * share, self.schedule(step))

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.steps,
            "factor": self.factor,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


class _PerVariable(keras.optimizers.Optimizer):
    """What both optimizers share: weight decay and learning rate for each variable, clipping.

    Args:
        learning_rate:   a number or a schedule of the step, which counts from 0.
        weight_decay:    of every trained variable but those excluded here.
        decay_norms:     whether scales and shifts of normalisation layers decay.
        decay_biases:    whether biases decay.
        bias_lr_factor:  learning rate of biases over that of the rest.
        clip_value:      every element of the gradient is cut to [-clip_value, clip_value].
        clip_norm:       the gradient of all variables together is scaled down to this norm.
    """

    def __init__(
        self,
        learning_rate,
        weight_decay=0.0,
        decay_norms=False,
        decay_biases=True,
        bias_lr_factor=1.0,
        clip_value=None,
        clip_norm=None,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.decay, self.decay_norms, self.decay_biases = weight_decay, decay_norms, decay_biases
        self.bias_lr_factor, self.clip_value, self.clip_norm = bias_lr_factor, clip_value, clip_norm

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.decays = [self._decay_of(variable) for variable in variables]
        self.lr_factors = [self.bias_lr_factor if variable.name in BIASES else 1.0 for variable in variables]
        # Of the whole batch's gradient in the last step, before clipping.
        self.gradient_norm = self.add_variable(
            (), dtype="float32", aggregation="only_first_replica", name="gradient_norm"
        )

    def _decay_of(self, variable):
        if variable.name in NORM_WEIGHTS and not self.decay_norms:
            return 0.0
        if variable.name in BIASES and not self.decay_biases:
            return 0.0
        return self.decay

    def _clip_gradients(self, grads):
        """Keras' hook for clipping. Of several replicas each holds a summand here: they clip the sum."""
        return grads if num_replicas() > 1 else self._clipped(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras' hook for the sum over replicas, on TensorFlow."""
        summed = super()._all_reduce_sum_gradients(grads_and_vars)
        if num_replicas() == 1:
            return summed
        grads, variables = zip(*summed, strict=True)
        return list(zip(self._clipped(grads), variables, strict=True))

    def _clipped(self, grads):
        """The whole batch's gradient; its norm is kept, and limited if it has to be."""
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads if g is not None]
        norm = ops.sqrt(sum(squares))
        self.gradient_norm.assign(norm)
        if self.clip_norm is None:
            return grads
        scale = ops.minimum(self.clip_norm / ops.maximum(norm, 1e-12), 1.0)
        return [g if g is None else g * ops.cast(scale, g.dtype) for g in grads]

    def _prepared(self, gradient, variable, learning_rate):
        """(gradient cut by value, learning rate of this variable, its weight decay, its index).

        Here, after Keras has summed over the replicas, the gradient is that of the whole batch.
        """
        index = self._get_variable_index(variable)
        gradient = ops.cast(gradient, variable.dtype)
        if self.clip_value is not None:
            gradient = ops.clip(gradient, -self.clip_value, self.clip_value)
        rate = ops.cast(learning_rate, variable.dtype) * self.lr_factors[index]
        return gradient, rate, self.decays[index], index

    def get_config(self):
        rate = self._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.saving.serialize_keras_object(rate)
        else:
            rate = float(ops.convert_to_numpy(rate))
        names = ("decay_norms", "decay_biases", "bias_lr_factor", "clip_value", "clip_norm")
        return {
            "learning_rate": rate,
            "weight_decay": self.decay,
            "name": self.name,
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.saving.deserialize_keras_object(rate)
        return cls(**{**config, "learning_rate": rate})


@keras.saving.register_keras_serializable("kgarden")
class SGD(_PerVariable):
    """torch.optim.SGD:   g <- g + decay * w;   m <- momentum * m + g;   w <- w - lr * m."""

    def __init__(self, learning_rate=0.01, momentum=0.9, name="sgd", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.momenta = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        gradient, rate, decay, index = self._prepared(gradient, variable, learning_rate)
        if decay:
            gradient = gradient + decay * variable
        momentum = self.momenta[index]
        self.assign(momentum, self.momentum * momentum + gradient)
        self.assign_sub(variable, rate * momentum)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


@keras.saving.register_keras_serializable("kgarden")
class AdamW(_PerVariable):
    """torch.optim.AdamW:   w <- w * (1 - lr * decay);   w <- w - lr * m' / (sqrt(v') + epsilon)."""

    def __init__(
        self, learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01, name="adamw", **kwargs
    ):
        super().__init__(learning_rate, weight_decay, name=name, **kwargs)
        self.betas, self.epsilon = tuple(betas), epsilon

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.means = [self.add_variable_from_reference(v, name="mean") for v in variables]
            self.squares = [self.add_variable_from_reference(v, name="square") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        gradient, rate, decay, index = self._prepared(gradient, variable, learning_rate)
        (beta1, beta2), mean, square = self.betas, self.means[index], self.squares[index]
        time = ops.cast(self.iterations + 1, variable.dtype)
        self.assign(mean, beta1 * mean + (1 - beta1) * gradient)
        self.assign(square, beta2 * square + (1 - beta2) * ops.square(gradient))
        unbiased = mean / (1 - ops.power(ops.cast(beta1, variable.dtype), time))
        spread = ops.sqrt(square / (1 - ops.power(ops.cast(beta2, variable.dtype), time)))
        self.assign(variable, variable * (1 - rate * decay) - rate * unbiased / (spread + self.epsilon))

    def get_config(self):
        return {**super().get_config(), "betas": self.betas, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("kgarden")
class LossScaled(keras.optimizers.LossScaleOptimizer):
    """Loss scaling for float16: a step whose gradient overflows on *any* replica is left out on all of them.

    Micikevicius et al. 2017, arXiv:1710.03740, section 3.2. Keras looks for overflows before it sums over the
    replicas, and on the first of them alone.
    """

    def check_finite(self, grads):
        overflown = 1.0 - ops.cast(super().check_finite(grads), "float32")
        return sum_over_replicas(overflown) == 0.0


def learning_rate(base_lr, steps, at=None, factor=None, cosine=False, warmup=None):
    """The learning rate as a function of the step, which counts from 0.

    Args:
        base_lr:    before any decay.
        steps:      length of the training.
        at, factor: steps at which the rate is multiplied by the factor.
        cosine:     half a cosine over all steps instead.
        warmup:     (steps, factor) of a linear warm-up, or None.
    """
    schedule = Cosine(base_lr, steps) if cosine else Steps(base_lr, at or (), factor or 1.0)
    return Warmup(schedule, *warmup) if warmup else schedule
