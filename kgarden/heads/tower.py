"""Tower: a stack of 3x3 convolutions, applied to every pyramid level with the same weights."""

import keras

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv
from kgarden.layers.initializers import he_uniform, normal


class Tower(keras.layers.Layer):
    """[3x3 conv -> norm -> ReLU] x num_convs.

    Args:
        norm, norm_groups: see kgarden/layers/norm.py.
        use_bias: of the convolutions, also before a norm; None: only where there is no norm.
        deformable: the last convolution is a modulated deformable one; its offsets begin at small random
            numbers, as in the releases of CenterNet2 and ATSS.
    Call:
        x: (B, H, W, D) one level.
    Returns:
        (B, H, W, width); x itself where num_convs is 0.
    """

    def __init__(
        self, num_convs=4, width=256, norm="gn", norm_groups=None, use_bias=True, deformable=False, **kwargs
    ):
        super().__init__(**kwargs)
        shared = dict(norm=norm, norm_groups=norm_groups, activation="relu", use_bias=use_bias)
        if deformable and not num_convs:
            raise UserError("a tower without convolutions has none to be deformable: raise num_convs")
        plain = num_convs - bool(deformable)
        self.convs = [
            Conv(width, 3, **shared, kernel_initializer=normal(0.01), name=f"conv{number}")
            for number in range(plain)
        ]
        if deformable:
            weights = dict(kernel_initializer=he_uniform(), offset_initializer=normal(0.01))
            self.convs.append(DeformConv(width, 3, **shared, **weights, name=f"conv{plain}"))

    def build(self, input_shape):
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)

    def call(self, x, training=False):
        for conv in self.convs:
            x = conv(x, training=training)
        return x
