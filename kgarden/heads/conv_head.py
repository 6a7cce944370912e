"""Convolutional RoI head of Double-Head R-CNN: residual and non-local blocks, then average pooling.

Wu et al. 2020, arXiv:1904.06493, section 3.1 and Fig. 5.
"""

import keras
from keras import ops

from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import torch_uniform
from kgarden.layers.non_local import NonLocal
from kgarden.layers.remat import recomputed
from kgarden.layers.residual import Bottleneck

NON_LOCAL = {  # the authors' block
    "mode": "dot_product",
    "groups": 4,
    "post_relu": True,
    "out_bias": True,
    "initializer": "torch",
}


class ChannelRaise(keras.layers.Layer):
    """Block (a): relu(3x3, 1x1 + 1x1 shortcut), from D to more channels.   Fig. 5 (a)."""

    def __init__(self, filters, norm="bn", **kwargs):
        super().__init__(**kwargs)
        self.filters, self.norm = filters, norm

    def build(self, input_shape):
        depth = input_shape[-1]
        self.conv1 = self._conv(depth, 3, activation="relu", name="conv1")
        self.conv2 = self._conv(self.filters, 1, name="conv2")
        self.shortcut = self._conv(self.filters, 1, name="shortcut")
        for conv in (self.conv1, self.conv2, self.shortcut):
            conv.build(input_shape)

    def _conv(self, filters, kernel_size, **settings):
        return Conv(filters, kernel_size, norm=self.norm, kernel_initializer=torch_uniform(), **settings)

    def call(self, x, training=False, valid=None):
        how = dict(training=training, valid=valid)
        y = self.conv2(self.conv1(x, **how), **how)
        return ops.relu(y + self.shortcut(x, **how))


class ConvHead(keras.layers.Layer):
    """Convolutional RoI head: K blocks, then global average pooling.   Section 3.1, Table 2.

    Kernels start as in the release, with PyTorch's default: `torch_uniform`.

    Args:
        blocks:    K: block (a), then bottlenecks; with `non_local` every second one is a non-local block.
        non_local: settings of NonLocal, merged over the authors' block; True: that block; False: none.
        width:     channels of the blocks.
        middle:    channels of a bottleneck's 3x3.
        norm:      see kgarden/layers/norm.py; "bn" over all RoIs of a replica, as the authors trained it.
    Call:
        roi_features: (B, P, S, S, D).
        valid:        (B, P) bool, False on padding, which the statistics of a batch norm leave out; None: all
                      are real.
    Returns:
        (B, P, width).
    Attributes:
        remat: whether features inside a block are computed again on the way back instead of being kept.
    """

    remat = False

    def __init__(self, blocks=5, non_local=True, width=1024, middle=256, norm="bn", **kwargs):
        super().__init__(**kwargs)
        if blocks < 1 or (non_local and blocks % 2 == 0):
            raise UserError(f"conv_head.blocks {blocks}: 1 or more; with non_local blocks an odd number")
        self.count, self.non_local = blocks, non_local
        self.width, self.middle = width, middle
        self.raise_ = ChannelRaise(width, norm, name="up")
        self.blocks = []
        for number in range(1, blocks):
            if non_local and number % 2:
                overrides = non_local if isinstance(non_local, dict) else {}
                settings = {"width": width // 2, "norm": norm, **NON_LOCAL, **overrides}
                block = instantiate(
                    NonLocal, settings, "model.roi_head.conv_head.non_local", name=f"block{number}"
                )
            else:
                how = dict(project=False, initializer=torch_uniform)
                block = Bottleneck(width, middle, 1, norm, **how, name=f"block{number}")
            self.blocks.append(block)

    def build(self, input_shape):
        self.raise_.build((None, *input_shape[-3:]))
        for block in self.blocks:
            block.build((None, *input_shape[-3:-1], self.width))

    def cells(self, roi_features, training=False, valid=None):
        """Features before pooling.   (B * P, S, S, width)."""
        how = dict(training=training, valid=None if valid is None else ops.reshape(valid, (-1,)))
        x = ops.reshape(roi_features, (-1, *roi_features.shape[-3:]))
        for block in (self.raise_, *self.blocks):
            x = recomputed([block], x, **how) if self.remat else block(x, **how)
        return x

    def call(self, roi_features, training=False, valid=None):
        pooled = ops.mean(self.cells(roi_features, training=training, valid=valid), axis=(1, 2))
        return ops.reshape(pooled, (*ops.shape(roi_features)[:2], self.width))
