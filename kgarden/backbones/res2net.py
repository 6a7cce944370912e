"""Res2Net v1b: residual blocks whose 3x3 convolutions form a hierarchy of splits.

Gao et al. 2019, arXiv:1904.01169, Eq. 1. "v1b" of the authors: a stem of three 3x3 convolutions, and average
pooling in front of the 1x1 of a shortcut, as in ResNet-D.
"""

import keras
from keras import ops

from kgarden.backbones.resnet import ResNet, deep_stem
from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv
from kgarden.layers.residual import first_gamma


class Bottle2neck(keras.layers.Layer):
    """Residual block: 1x1, then splits through 3x3 convolutions one after the other, 1x1.

    Each split is convolved together with what came out of the one before; the last stays as it is. In the
    first block of a stage the splits do not see each other, and the last one is averaged over 3x3 cells where
    the others are convolved at a stride.

    Args:
        filters:       output channels.
        width:         channels of a split.
        strides:       of the block.
        norm:          see kgarden/layers/norm.py.
        project:       whether it is the first block of a stage.
        scales:        number of splits.
        stride_in_1x1: put the stride in the first 1x1 instead of the 3x3.
        deform:        None, or settings of deformable 3x3; see DeformConv.
        pool_at_stride_1: average the last split of the first block of a stage in any case.
    """

    def __init__(
        self,
        filters,
        width,
        strides,
        norm,
        project,
        scales,
        stride_in_1x1=False,
        deform=None,
        pool_at_stride_1=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        first, self.strides = (strides, 1) if stride_in_1x1 else (1, strides)
        self.project, self.shortcut_strides = project, strides
        self.pools_last = project and (self.strides > 1 or pool_at_stride_1)
        shared = dict(norm=norm, activation="relu")
        self.conv1 = Conv(width * scales, 1, first, **shared, name="conv1")
        conv = Conv
        if deform is not None:
            conv, shared = DeformConv, {**shared, **deform, "offset_bias": False}
        self.splits = [conv(width, 3, self.strides, **shared, name=f"split{n}") for n in range(scales - 1)]
        self.conv3 = Conv(filters, 1, norm=norm, norm_gamma=first_gamma(norm, 0.2), name="conv3")
        self.shortcut = Conv(filters, 1, norm=norm, name="shortcut") if project else None

    def build(self, input_shape):
        self.conv1.build(input_shape)
        for conv in self.splits:
            conv.build((None, None, None, conv.filters))
        self.conv3.build((None, None, None, self.conv1.filters))
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def compute_output_shape(self, input_shape):
        shape = self.splits[0].compute_output_shape(self.conv1.compute_output_shape(input_shape))
        return self.conv3.compute_output_shape(shape)

    def call(self, x, training=False):
        *splits, last = ops.split(self.conv1(x, training=training), len(self.splits) + 1, axis=-1)
        found = []
        for conv, split in zip(self.splits, splits, strict=True):
            seen = split if self.project or not found else split + found[-1]
            found.append(conv(seen, training=training))
        y = ops.concatenate([*found, self._last(last)], axis=-1)
        return ops.relu(self.conv3(y, training=training) + self._kept(x, training))

    def _last(self, x):
        if not self.pools_last:
            return x
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros count
        return ops.average_pool(x, 3, strides=self.strides, padding="valid")

    def _kept(self, x, training):
        if self.shortcut is None:
            return x
        if self.shortcut_strides > 1:  # the padding at the far ends does not count
            x = ops.average_pool(x, self.shortcut_strides, strides=self.shortcut_strides, padding="same")
        return self.shortcut(x, training=training)


class Res2Net(ResNet):
    """Res2Net v1b.

    Args:
        depth:         50 or 101.
        width_per_split, scales: 26 and 4 ("26w 4s"); width of a split in res2, number of splits.
        pool_at_stride_1: average the last split of the first block of res2 too, as the authors and timm do,
                       but neither mmdetection nor CenterNet2's release: it must fit the weights.
        kwargs:        of ResNet; the first two convolutions of the stem have `stem_channels` / 2 channels.
    """

    fixed_arguments = ("groups", "width_per_group")

    def __init__(self, depth=50, width_per_split=26, scales=4, pool_at_stride_1=False, **kwargs):
        self.width_per_split, self.scales = width_per_split, scales
        self.pool_at_stride_1 = pool_at_stride_1
        super().__init__(depth=depth, **kwargs)

    def _stem(self):
        return deep_stem(self.widths[0] // 2, self.widths[0], self.norm)

    def _block(self, number, first, name):
        return Bottle2neck(
            self.widths[number - 1],
            self.width_per_split * 2 ** (number - 2),
            2 if first and number > 2 else 1,
            norm=self.norm,
            project=first,
            scales=self.scales,
            stride_in_1x1=self.stride_in_1x1,
            pool_at_stride_1=self.pool_at_stride_1,
            deform=self.deform if number in self.deformable_stages else None,
            name=name,
        )
