"""Normalisation layers by name: frozen, plain and synchronised batch norm, group norm.

The epsilon is 1e-5, as in mmdetection, detectron2, AdelaiDet and cvpods; EfficientNet-Lite sets its own. The
frozen batch norm of maskrcnn-benchmark has none: whoever brings its weights here subtracts 1e-5 from the
stored variances. Keras' default of 1e-3 would exceed the tolerance of the reference numbers.
"""

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.ops.normalization import normalize_batch

EPSILON = 1e-5
KINDS = ("frozen_bn", "bn", "sync_bn", "gn")


def make_norm(kind, groups=None, gamma=1.0, name="norm"):
    """Builds a normalisation layer from its name in recipes, or None for no normalisation.

    Args:
        kind:   "frozen_bn", "bn", "sync_bn", "gn" or None.
        groups: number of groups of "gn"; see GroupNorm.
        gamma:  initial scale of a batch norm.
        name:   the layer's name.
    Raises:
        UserError: unknown kind.
    """
    if kind is None:
        return None
    if kind == "gn":
        return GroupNorm(groups, name=name)
    if kind not in KINDS:
        raise UserError(f"unknown norm {kind!r}: one of {', '.join(KINDS)}")
    return BatchNorm(frozen=kind == "frozen_bn", synchronized=kind == "sync_bn", gamma=gamma, name=name)


class BatchNorm(keras.layers.Layer):
    """Batch normalisation whose inference form, a scale and a shift, can be folded into a convolution.

    Args:
        frozen:       always use the stored statistics; scale and shift are not trained.
        synchronized: statistics over all replicas.
        gamma:        initial scale.
        momentum:     weight of the old running statistics (1 - momentum in PyTorch's convention).
    Call:
        x:     (B, H, W, D).
        valid: (B,) bool, False on padding, which is left out of the batch statistics; None: no padding.
    """

    def __init__(self, frozen=False, synchronized=False, gamma=1.0, momentum=0.9, epsilon=EPSILON, **kwargs):
        super().__init__(**kwargs)
        self.frozen = frozen
        self.synchronized = synchronized
        self.first_gamma = keras.initializers.Constant(gamma)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        shape = (input_shape[-1],)
        trains = not self.frozen
        self.gamma = self.add_weight(
            shape=shape, initializer=self.first_gamma, trainable=trains, autocast=False, name="gamma"
        )
        self.beta = self.add_weight(
            shape=shape, initializer="zeros", trainable=trains, autocast=False, name="beta"
        )
        stored = dict(shape=shape, trainable=False, autocast=False, aggregation="mean")
        self.moving_mean = self.add_weight(initializer="zeros", name="moving_mean", **stored)
        self.moving_variance = self.add_weight(initializer="ones", name="moving_variance", **stored)

    def uses_batch(self, training):
        """Whether a call uses batch statistics (True) or the stored ones."""
        return bool(training) and self.trainable and not self.frozen

    def affine(self):
        """The stored statistics as y = x * scale + shift.   (D,), (D,) float32."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale

    def call(self, x, training=False, valid=None):
        if not self.uses_batch(training):
            scale, shift = self.affine()
            return x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype)
        settings = dict(epsilon=self.epsilon, synchronized=self.synchronized, valid=valid)
        y, mean, variance = normalize_batch(x, self.gamma, self.beta, **settings)
        for stored, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            stored.assign(stored * self.momentum + ops.stop_gradient(batch) * (1.0 - self.momentum))
        return y


class GroupNorm(keras.layers.Layer):
    """Group normalisation, Wu and He 2018, arXiv:1803.08494, statistics in float32.

    Two passes over the features (Keras' layer needs five): moments per channel, reduced to groups,
    then one scale and shift.

    Args:
        groups: None: 32, or 25 if the width is not a multiple of 32 (the rule of detectron2's norm
                factory, which CenterNet2's 50-channel test heads need).
    """

    def __init__(self, groups=None, epsilon=EPSILON, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        width = input_shape[-1]
        self.groups = self.groups or (32 if width % 32 == 0 else 25)
        if width % self.groups:
            raise UserError(f"group norm: {width} channels are not divisible by {self.groups} groups")
        self.gamma = self.add_weight(shape=(width,), initializer="ones", autocast=False, name="gamma")
        self.beta = self.add_weight(shape=(width,), initializer="zeros", autocast=False, name="beta")

    def call(self, x):
        mean, variance = ops.moments(ops.cast(x, "float32"), axes=(1, 2))  # (B, D)
        grouped = (-1, self.groups, x.shape[-1] // self.groups)
        channel_mean = ops.reshape(mean, grouped)
        group_mean = ops.mean(channel_mean, axis=-1, keepdims=True)
        spread = ops.reshape(variance, grouped) + ops.square(channel_mean - group_mean)
        group_variance = ops.mean(spread, axis=-1, keepdims=True)

        ones = ops.ones_like(channel_mean)
        inverse = ops.reshape(ops.rsqrt(group_variance + self.epsilon) * ones, ops.shape(mean))
        scale = inverse * self.gamma
        shift = self.beta - ops.reshape(group_mean * ones, ops.shape(mean)) * scale
        scale, shift = (ops.reshape(ops.cast(v, x.dtype), (-1, 1, 1, x.shape[-1])) for v in (scale, shift))
        return x * scale + shift
