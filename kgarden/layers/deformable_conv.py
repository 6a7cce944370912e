"""Deformable convolution: a convolution that predicts where each of its taps looks.

Dai et al. 2017, arXiv:1703.06211 (v1, offsets alone); Zhu et al. 2018, arXiv:1811.11168 (v2, and masks).
"""

from keras import ops

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.ops.deform_conv import deformed_taps


def deform_conv(x, kernel, offsets, masks=None, *, strides=1, dilation=1):
    """Convolution with moved, and weighted, taps; zero outside of x.

    Args:
        x:       (B, H, W, D).
        kernel:  (k, k, D / groups, F).
        offsets, masks, strides, dilation: see `deformed_taps`.
    Returns:
        (B, H', W', F).
    """
    size, _, depth, filters = kernel.shape
    settings = dict(kernel_size=size, strides=strides, dilation=dilation)
    taps = deformed_taps(x, offsets, masks, **settings)
    rows, columns, count, channels = taps.shape[1:]
    groups = channels // depth
    if groups == 1:
        seen = ops.reshape(taps, (-1, rows, columns, count * channels))
        return ops.matmul(seen, ops.reshape(kernel, (count * channels, filters)))
    seen = ops.reshape(taps, (-1, rows, columns, count, groups, depth))
    kernel = ops.reshape(kernel, (count, depth, groups, filters // groups))
    return ops.reshape(ops.einsum("bhwtgd,tdgf->bhwgf", seen, kernel), (-1, rows, columns, filters))


class DeformConv(Conv):
    """Deformable convolution -> norm -> activation; offsets and masks from a plain convolution of the input.

    Offsets begin at zero, and masks at one half.

    Args:
        filters, kernel_size, strides, and further settings: of Conv.
        modulated:          v2: a mask for every tap, the sigmoid of what the offset convolution says.
        offset_groups:      parts of the channels with offsets of their own ("deformable groups").
        offset_bias:        whether the offset convolution has a bias.
        offset_initializer: of its kernel.
    Raises:
        UserError: when it is built on channels that `offset_groups` does not divide.
    Call:
        as Conv. Offsets are float32 under mixed precision.
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        modulated=True,
        offset_groups=1,
        offset_bias=True,
        offset_initializer="zeros",
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, **kwargs)
        self.offset_groups = offset_groups
        self.offsets = 2 * offset_groups * kernel_size**2
        self.offset = Conv(
            self.offsets + (offset_groups * kernel_size**2 if modulated else 0),
            kernel_size,
            strides,
            use_bias=offset_bias,
            kernel_initializer=offset_initializer,
            dtype="float32",
            name="offset",
        )

    def build(self, input_shape):
        if input_shape[-1] % self.offset_groups:
            raise UserError(
                f"offset_groups is {self.offset_groups}: {input_shape[-1]} channels of a deformable "
                "convolution are not divisible by it"
            )
        super().build(input_shape)
        self.offset.build(input_shape)

    def _convolve(self, x, kernel):
        found = self.offset(x)
        offsets, logits = found[..., : self.offsets], found[..., self.offsets :]
        masks = ops.sigmoid(logits) if logits.shape[-1] else None
        return deform_conv(x, kernel, offsets, masks, strides=self.strides)
