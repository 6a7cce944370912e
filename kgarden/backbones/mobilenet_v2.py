"""MobileNetV2: inverted residual blocks with linear bottlenecks.

Sandler et al. 2018, arXiv:1801.04381, Table 2; torchvision's layout of weights.
"""

from kgarden.backbones.staged import StagedBackbone
from kgarden.errors import UserError
from kgarden.layers.conv import Conv, ConvStack
from kgarden.layers.residual import first_gamma

# For each stage (C2..C5), rows of Table 2: expansion t, channels c, repeats n, stride of the first block,
# and the side of the depthwise kernels.
STAGES = (
    ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
    ((6, 32, 3, 2, 3),),
    ((6, 64, 4, 2, 3), (6, 96, 3, 1, 3)),
    ((6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
)


class InvertedResidual(ConvStack):
    """1x1 that expands, depthwise convolution, 1x1 that is linear; plus its input where the shapes agree.

    Args:
        before, filters: input and output channels.
        expansion: the depthwise convolution has so many times the input's channels; 1: no first 1x1.
        strides:   of the depthwise convolution.
        norm:      see kgarden/layers/norm.py.
        padding:   see kgarden/layers/conv.py.
        kernel_size: of the depthwise convolution.
    """

    def __init__(self, before, filters, expansion, strides, norm, padding="half", kernel_size=3, **kwargs):
        width, residual = before * expansion, strides == 1 and before == filters
        shared = dict(norm=norm, activation="relu6")
        gamma = first_gamma(norm, 0.2) if residual else 1.0
        convs = [Conv(width, 1, **shared, name="expand")] if expansion > 1 else []
        convs += [
            Conv(width, kernel_size, strides, groups=width, padding=padding, **shared, name="depthwise"),
            Conv(filters, 1, norm=norm, norm_gamma=gamma, name="project"),
        ]
        super().__init__(convs, **kwargs)
        self.residual = residual

    def call(self, x, training=False):
        y = super().call(x, training=training)
        return x + y if self.residual else y


class MobileNetV2(StagedBackbone):
    """MobileNetV2 of width 1; see StagedBackbone.

    Args:
        norm:      "frozen_bn", "bn" or "sync_bn".
        freeze_at: 0 nothing, 1 the stem, 2 the blocks up to C2 as well, ...
        width:     factor of all channels, rounded to multiples of 8.
        padding:   of the strided convolutions: "half", or "same" for weights of TensorFlow and Keras.
        last_conv: C5 is the 1x1 of 1280 channels in front of the classifier, instead of the last block.
    """

    def __init__(self, norm="frozen_bn", freeze_at=0, width=1.0, last_conv=False, padding="half", **kwargs):
        super().__init__(**kwargs)
        last = max(1280, divisible_by_8(1280 * width)) if last_conv else None
        settings = dict(width=width, last_filters=last, norm=norm, padding=padding)
        self.last_conv, self.padding = last_conv, padding
        self._assemble(*inverted_residual_stages(STAGES, **settings), freeze_at)


def inverted_residual_stages(table, width, last_filters, norm, padding):
    """The parts of a network of inverted residual blocks.

    Args:
        table:        rows as in STAGES.
        width:        factor of all channels, rounded to multiples of 8.
        last_filters: of a 1x1 behind the last block, which is C5 then; None: without.
        norm:         see kgarden/layers/norm.py.
        padding:      of the strided convolutions, "half" or "same".
    Returns:
        stem, stages and channels, as `_assemble` takes them.
    Raises:
        UserError: unknown padding.
    """
    if padding not in ("half", "same"):
        raise UserError(f"model.backbone.padding {padding!r}: one of half, same")
    before, stages, channels = divisible_by_8(32 * width), [], []
    gamma = first_gamma(norm, 0.02)
    shared = dict(norm=norm, padding=padding)
    stem = Conv(before, 3, 2, **shared, norm_gamma=gamma, activation="relu6", name="stem")
    for rows in table:
        stages.append([])
        for expansion, filters, repeats, strides, kernel_size in rows:
            filters = divisible_by_8(filters * width)
            of_row = dict(expansion=expansion, kernel_size=kernel_size, **shared)
            for number in range(repeats):
                name = f"block{sum(map(len, stages)) + 1}"
                stride = strides if number == 0 else 1
                stages[-1].append(InvertedResidual(before, filters, strides=stride, **of_row, name=name))
                before = filters
        channels.append(before)
    if last_filters:
        channels[-1] = last_filters
        stages[-1].append(Conv(last_filters, 1, norm=norm, activation="relu6", name="last_conv"))
    return stem, stages, channels


def divisible_by_8(channels):
    """The nearest multiple of 8 that is no more than a tenth smaller, and at least 8."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
