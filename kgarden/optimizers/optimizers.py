"""Optimizers with torch's update rules: SGD, AdamW, and loss scaling for float16.

SGD adds weight decay to the gradient, and its momentum does not include the learning rate (Keras' SGD differs
in both); AdamW divides by sqrt(v / bias correction) + epsilon. In addition to Keras: clipping of the gradient
summed over all replicas, and a learning rate and weight decay for each kind of parameter.
"""

from typing import NamedTuple

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.ops.replicas import num_replicas, sum_over_replicas

GRADIENT_NORM = "gradient_norm"  # name of the variable with the norm of the last step
KINDS = {"bias": "bias", "gamma": "norm_scale", "beta": "norm_shift"}  # by name; all others are kernels


class Rule(NamedTuple):
    """What one kind of parameter is trained with.

    Attributes:
        lr_factor:    multiplies the learning rate.
        decay_factor: multiplies the weight decay.
    """

    lr_factor: float = 1.0
    decay_factor: float = 1.0


def rules_by_kind(decay_norms=False, decay_biases=True, bias_lr_factor=1.0, rules=None):
    """Returns {"kernel", "bias", "norm_scale", "norm_shift": Rule}; see _PerVariable for the arguments."""
    norm = Rule(decay_factor=float(decay_norms))
    found = {
        "kernel": Rule(),
        "bias": Rule(bias_lr_factor, float(decay_biases)),
        "norm_scale": norm,
        "norm_shift": norm,
    }
    for kind, changes in (rules or {}).items():
        if kind not in found or not set(changes) <= set(Rule._fields):
            raise UserError(
                f"optimizer.rules.{kind} {changes}: give {', '.join(Rule._fields)} of {', '.join(found)}"
            )
        found[kind] = found[kind]._replace(**changes)
    return found


class _PerVariable(keras.optimizers.Optimizer):
    """Base class: weight decay and learning rate for each variable, gradient clipping.

    Args:
        learning_rate:   a number or a schedule of the step, which counts from 0.
        weight_decay:    of every trainable variable, times the factor of its kind.
        decay_norms, decay_biases, bias_lr_factor: short forms of rules: whether scales and shifts of
                         normalisation layers decay, whether biases do, factor on the learning rate of biases.
        rules:           {kind: {"lr_factor", "decay_factor"}}, which override the short forms. Kinds are
                         "bias", "norm_scale" and "norm_shift" of normalisation layers, and "kernel" for all
                         else; see Rule.
        clip_value:      every element of the gradient is clipped to [-clip_value, clip_value].
        clip_norm:       the gradient of all variables together is scaled down to this norm.
    """

    def __init__(
        self,
        learning_rate,
        weight_decay=0.0,
        decay_norms=False,
        decay_biases=True,
        bias_lr_factor=1.0,
        rules=None,
        clip_value=None,
        clip_norm=None,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.decay, self.decay_norms, self.decay_biases = weight_decay, decay_norms, decay_biases
        self.bias_lr_factor, self.rules = bias_lr_factor, rules
        self.clip_value, self.clip_norm = clip_value, clip_norm
        self.rule_of = rules_by_kind(decay_norms, decay_biases, bias_lr_factor, rules)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        rules = [self.rule_of[KINDS.get(variable.name, "kernel")] for variable in variables]
        self.decays = [self.decay * rule.decay_factor for rule in rules]
        self.lr_factors = [rule.lr_factor for rule in rules]
        # Norm of the whole batch's gradient in the last step, before clipping.
        self.gradient_norm = self.add_variable(
            (), dtype="float32", aggregation="only_first_replica", name=GRADIENT_NORM
        )

    def _clip_gradients(self, grads):
        """Keras' hook for clipping. With several replicas the sum of gradients is clipped, below."""
        return grads if num_replicas() > 1 else self._clipped(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras' hook for the sum over replicas, on TensorFlow."""
        summed = super()._all_reduce_sum_gradients(grads_and_vars)
        if num_replicas() == 1:
            return summed
        grads, variables = zip(*summed, strict=True)
        return list(zip(self._clipped(grads), variables, strict=True))

    def _clipped(self, grads):
        """Stores the norm of the whole batch's gradient, and clips it if `clip_norm` is set."""
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads if g is not None]
        # One sum of a vector: TensorFlow's graph optimiser may reorder a chain of additions, and an ulp of
        # the norm is an ulp of every clipped gradient.
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        self.gradient_norm.assign(norm)
        if self.clip_norm is None:
            return grads
        scale = ops.minimum(self.clip_norm / ops.maximum(norm, 1e-12), 1.0)
        return [g if g is None else g * ops.cast(scale, g.dtype) for g in grads]

    def _prepared(self, gradient, variable, learning_rate):
        """Returns (gradient clipped by value, learning rate of this variable, its weight decay, its index).

        Keras has summed over the replicas at this point: the gradient is that of the whole batch.
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
        names = ("decay_norms", "decay_biases", "bias_lr_factor", "rules", "clip_value", "clip_norm")
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
    """Loss scaling for float16: a step whose gradient overflows on *any* replica is skipped on all of them.

    Micikevicius et al. 2017, arXiv:1710.03740, section 3.2. Keras checks for overflows before the sum over
    the replicas, and on the first replica only.
    """

    def check_finite(self, grads):
        overflown = 1.0 - ops.cast(super().check_finite(grads), "float32")
        return sum_over_replicas(overflown) == 0.0
