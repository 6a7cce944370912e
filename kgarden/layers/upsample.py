"""Up-sampling of feature maps: nearest neighbours, and transposed convolution of single channels."""

import keras
import numpy as np
from keras import ops


def upsample_2x(x):
    """Nearest-neighbour, each cell repeated 2x2.   (B, H, W, D) -> (B, 2H, 2W, D)."""
    batch, (height, width, channels) = ops.shape(x)[0], x.shape[1:]
    x = ops.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return ops.reshape(x, (batch, 2 * height, 2 * width, channels))


class DepthwiseUpsample(keras.layers.Layer):
    """Transposed convolution of each channel by itself, which begins as bilinear up-sampling.

    Kernel 2f, stride f, padding f / 2, as in Long et al. 2015, arXiv:1411.4038, section 3.3, and in DLA: an
    output cell sees the 2x2 input cells around it.

    Args:
        factor: f, even.
    Call:
        x: (B, H, W, D).
    Returns:
        (B, f H, f W, D).
    """

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        side, depth = 2 * self.factor, input_shape[-1]
        line = 1 - np.abs((np.arange(side) + 0.5) / self.factor - 1)
        bilinear = np.broadcast_to((line[:, None] * line)[:, :, None, None], (side, side, 1, depth))
        self.kernel = self.add_weight(
            shape=bilinear.shape, initializer=lambda shape, dtype: ops.array(bilinear, dtype), name="kernel"
        )

    def compute_output_shape(self, input_shape):
        sides = (side and side * self.factor for side in input_shape[1:3])
        return (input_shape[0], *sides, input_shape[-1])

    def call(self, x):
        f, (height, width, depth) = self.factor, x.shape[1:]
        # The f x f output cells over an input cell see the 3x3 around it: the kernel's rows and columns, with
        # zeros on both sides, are the three neighbours' in turn, last neighbour first.
        kernel = ops.pad(self.kernel, ((f // 2, f // 2), (f // 2, f // 2), (0, 0), (0, 0)))
        kernel = ops.reshape(kernel, (3, f, 3, f, depth))[::-1, :, ::-1]
        kernel = ops.reshape(ops.transpose(kernel, (0, 2, 4, 1, 3)), (3, 3, depth, f * f))
        y = ops.reshape(ops.depthwise_conv(x, kernel, padding="same"), (-1, height, width, depth, f, f))
        return ops.reshape(ops.transpose(y, (0, 1, 4, 2, 5, 3)), (-1, height * f, width * f, depth))
