"""Residual blocks.   He et al. 2015, arXiv:1512.03385, Fig. 5; grouped: Xie et al. 2016, arXiv:1611.05431."""

import keras

from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv
from kgarden.layers.initializers import he_normal


def first_gamma(norm, damped):
    """Initial scale of the last norm of a residual block.

    A frozen norm does not normalise a randomly initialised backbone: pixels of +-128 pass unscaled, and every
    block would double the variance. A checkpoint overwrites this.
    """
    return damped if norm == "frozen_bn" else 1.0


class BasicBlock(keras.layers.Layer):
    """Residual block of two 3x3 convolutions, with the stride in the first.

    Call:
        x:    (B, H, W, D).
        kept: what is added; None: x, through the block's own shortcut if it has one.
    """

    def __init__(self, filters, strides, norm, project, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = Conv(filters, 3, strides, norm=norm, activation="relu", name="conv1")
        self.conv2 = Conv(filters, 3, norm=norm, norm_gamma=first_gamma(norm, 0.2), name="conv2")
        self.shortcut = Conv(filters, 1, strides, norm=norm, name="shortcut") if project else None

    def build(self, input_shape):
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.conv1.compute_output_shape(input_shape)

    def call(self, x, kept=None, training=False):
        if kept is None:
            kept = x if self.shortcut is None else self.shortcut(x, training=training)
        y = self.conv2(self.conv1(x, training=training), training=training)
        return keras.ops.relu(y + kept)


class Bottleneck(keras.layers.Layer):
    """Residual bottleneck block: 1x1, 3x3, 1x1 convolutions.

    Args:
        filters:       output channels.
        width:         channels of the 3x3.
        strides:       of the block.
        stride_in_1x1: put the stride in the first 1x1 instead of the 3x3.
        groups:        of the 3x3.
        deform:        None, or {"modulated", "offset_groups"} of a deformable 3x3; see DeformConv.
        initializer:   of the kernels, a function of kgarden/layers/initializers.py.
        first_width:   channels of the first 1x1; None: those of the 3x3.
        shortcut_kernel: side of the kernel of the projection.
        reduction:     squeeze-and-excitation before the sum, see SqueezeExcite; None: without.
    """

    def __init__(
        self,
        filters,
        width,
        strides,
        norm,
        project,
        stride_in_1x1=False,
        groups=1,
        deform=None,
        initializer=he_normal,
        first_width=None,
        shortcut_kernel=1,
        reduction=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        first, middle = (strides, 1) if stride_in_1x1 else (1, strides)

        def conv(filters, kernel_size, strides, name, kind=Conv, **settings):
            how = dict(norm=norm, kernel_initializer=initializer(), **settings)
            return kind(filters, kernel_size, strides, **how, name=name)

        of_3x3 = {"kind": DeformConv, **deform} if deform else {}
        self.conv1 = conv(first_width or width, 1, first, "conv1", activation="relu")
        self.conv2 = conv(width, 3, middle, "conv2", groups=groups, activation="relu", **of_3x3)
        self.conv3 = conv(filters, 1, 1, "conv3", norm_gamma=first_gamma(norm, 0.2))
        self.excite = SqueezeExcite(filters, reduction, name="excite") if reduction else None
        self.shortcut = conv(filters, shortcut_kernel, strides, "shortcut") if project else None

    def build(self, input_shape):
        shape = input_shape
        for conv in (self.conv1, self.conv2, self.conv3):
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        if self.excite is not None:
            self.excite.build(shape)
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def compute_output_shape(self, input_shape):
        shape = self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))
        return self.conv3.compute_output_shape(shape)

    def call(self, x, training=False, valid=None):
        how = dict(training=training, valid=valid)  # see BatchNorm
        kept = x if self.shortcut is None else self.shortcut(x, **how)
        y = self.conv1(x, **how)
        y = self.conv2(y, **how)
        y = self.conv3(y, **how)
        if self.excite is not None:
            y = self.excite(y)
        return keras.ops.relu(y + kept)


class SqueezeExcite(keras.layers.Layer):
    """Squeeze-and-excitation: each channel is scaled by a gate computed from the means of all channels.

    Hu et al. 2018, arXiv:1709.01507, Eq. 2 to 4.

    Args:
        filters:   channels.
        reduction: the hidden layer has so many times fewer.
    Call:
        x: (B, H, W, filters).
    """

    def __init__(self, filters, reduction, **kwargs):
        super().__init__(**kwargs)
        self.down = Conv(filters // reduction, 1, activation="relu", name="down")
        self.up = Conv(filters, 1, activation="sigmoid", name="up")

    def build(self, input_shape):
        self.down.build(input_shape)
        self.up.build((*input_shape[:-1], self.down.filters))

    def call(self, x):
        return x * self.up(self.down(keras.ops.mean(x, axis=(1, 2), keepdims=True)))
