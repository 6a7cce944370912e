"""Mask branches on the whole image: shared basis maps, and semantic segmentation logits.

Tian, Shen, Chen 2020, arXiv:2003.05664, section 3.1, and its release (AdelaiDet), which adds the classes.
"""

import keras
from keras import ops

from kgarden.layers.conv import Conv
from kgarden.layers.initializers import prior_bias, torch_bias, torch_uniform, xavier_fan_in
from kgarden.ops.bilinear import aligned_bilinear


class MaskBranch(keras.layers.Layer):
    """Mask branch: sums the first levels, upsampled to the finest, and convolves to D basis maps.

    Args:
        bases:      D, number of basis maps.
        levels:     number of pyramid levels.
        width, num_convs, norm, norm_groups: of the 3x3 convolutions; see kgarden/layers/norm.py.
    Call:
        pyramid: list of (B, H_l, W_l, C), finest first.
    Returns:
        (B, H_0, W_0, D) float32.
    """

    def __init__(self, bases=8, levels=3, width=128, num_convs=4, norm="bn", norm_groups=None, **kwargs):
        super().__init__(**kwargs)
        self.levels = levels
        block = dict(filters=width, norm=norm, norm_groups=norm_groups)
        self.refine = [_block(**block, name=f"refine{level}") for level in range(levels)]
        self.tower = [_block(**block, name=f"conv{number}") for number in range(num_convs)]
        weights = dict(kernel_initializer=torch_uniform(), bias_initializer=torch_bias(width))
        self.maps = Conv(bases, 1, **weights, name="maps")

    def build(self, pyramid_shapes):
        for conv, shape in zip(self.refine, pyramid_shapes, strict=False):
            conv.build(shape)
        shape = (None, None, None, self.refine[0].filters)
        for conv in [*self.tower, self.maps]:
            conv.build(shape)

    def call(self, pyramid, training=False):
        x, *coarser = [
            conv(level, training=training) for conv, level in zip(self.refine, pyramid, strict=False)
        ]
        for level in coarser:
            x = x + aligned_bilinear(level, x.shape[1] // level.shape[1])
        for conv in self.tower:
            x = conv(x, training=training)
        return ops.cast(self.maps(x), "float32")


class SemanticBranch(keras.layers.Layer):
    """Semantic segmentation logits at the finest level: an auxiliary training task.

    Args:
        num_classes: C.
        width, num_convs, norm, norm_groups: of the 3x3 convolutions.
    Call:
        features: (B, H, W, D).
    Returns:
        (B, H, W, C) float32 logits.
    """

    def __init__(self, num_classes, width=128, num_convs=2, norm="bn", norm_groups=None, **kwargs):
        super().__init__(**kwargs)
        block = dict(filters=width, norm=norm, norm_groups=norm_groups)
        self.tower = [_block(**block, name=f"conv{number}") for number in range(num_convs)]
        bias = prior_bias(0.01)
        weights = dict(kernel_initializer=torch_uniform(), bias_initializer=bias)
        self.classes = Conv(num_classes, 1, **weights, name="classes")

    def build(self, shape):
        for conv in [*self.tower, self.classes]:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)

    def call(self, features, training=False):
        for conv in self.tower:
            features = conv(features, training=training)
        return ops.cast(self.classes(features), "float32")


def _block(filters, norm, norm_groups, name):
    weights = dict(kernel_initializer=xavier_fan_in(), name=name)
    return Conv(filters, 3, norm=norm, norm_groups=norm_groups, activation="relu", **weights)
