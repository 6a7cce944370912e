"""Convolution with the references' padding, followed by normalisation and activation."""

import keras
from keras import ops

from kgarden.layers.norm import BatchNorm, make_norm

# With fewer channels and a batch of one, the gradient of a strided 1x1 convolution writes out of bounds on
# CPUs (TensorFlow 2.21 with oneDNN).
NARROW = 16


class Conv(keras.layers.Layer):
    """Conv -> norm -> activation, padded by half the kernel on both sides.

    Keras' "same" pads a stride-2 convolution on one side only, which shifts the image by half a cell
    relative to every reference but those trained with TensorFlow. A batch norm with stored statistics is
    folded into the kernel: one pass over the features instead of three.

    Args:
        filters, kernel_size, strides, groups: as in keras.layers.Conv2D; square kernels.
        padding:     "half" of the kernel on both sides, or "same" as in Keras.
        norm:        a name of kgarden.layers.norm, or None.
        norm_groups: groups of "gn".
        norm_gamma:  initial scale of a batch norm.
        activation:  a name of keras.activations, or None.
        use_bias:    None: only without a norm.
    Call:
        x:     (B, H, W, D).
        valid: (B,) bool, see BatchNorm.
    """

    def __init__(
        self,
        filters,
        kernel_size=1,
        strides=1,
        groups=1,
        padding="half",
        norm=None,
        norm_groups=None,
        norm_gamma=1.0,
        activation=None,
        use_bias=None,
        kernel_initializer="he_normal",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.padding = padding
        self.norm = make_norm(norm, norm_groups, norm_gamma)
        self.activation = keras.activations.get(activation)
        self.use_bias = norm is None if use_bias is None else use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1] // self.groups, self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer=self.bias_initializer, name="bias")
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.filters))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:1], *(self._out(side) for side in input_shape[1:3]), self.filters)

    def _out(self, side):
        return (
            None
            if side is None
            else (side + 2 * (self.kernel_size // 2) - self.kernel_size) // self.strides + 1
        )

    def call(self, x, training=False, valid=None):
        if isinstance(self.norm, BatchNorm) and not self.norm.uses_batch(training):
            return self.activation(self._convolve_folded(x))
        y = self._convolve(x, self.kernel)
        if self.bias is not None:
            y = y + self.bias
        if isinstance(self.norm, BatchNorm):
            y = self.norm(y, training=training, valid=valid)
        elif self.norm is not None:
            y = self.norm(y)
        return self.activation(y)

    def _convolve_folded(self, x):
        scale, shift = self.norm.affine()
        if self.bias is not None:
            shift = shift + ops.cast(self.bias, scale.dtype) * scale
        y = self._convolve(x, self.kernel * ops.cast(scale, self.compute_dtype))
        return y + ops.cast(shift, self.compute_dtype)

    def _convolve(self, x, kernel):
        convolve = ops.conv
        if self.groups > 1 and self.groups == x.shape[-1] == self.filters:
            kernel, convolve = ops.transpose(kernel, (0, 1, 3, 2)), ops.depthwise_conv
        half = self.kernel_size // 2
        if self.strides == 1 or self.padding == "same":
            return convolve(x, kernel, strides=self.strides, padding="same")
        if half:
            x = ops.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        elif x.shape[-1] < NARROW:
            return convolve(x[:, :: self.strides, :: self.strides], kernel, padding="valid")
        return convolve(x, kernel, strides=self.strides, padding="valid")


class ConvStack(keras.layers.Layer):
    """Layers such as Conv, one after the other.

    Args:
        convs: list of layers with `build`, `compute_output_shape` and `call(x, training)`.
    Call:
        x: (B, H, W, D).
    """

    def __init__(self, convs, **kwargs):
        super().__init__(**kwargs)
        self.convs = convs

    def build(self, input_shape):
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        for conv in self.convs:
            input_shape = conv.compute_output_shape(input_shape)
        return input_shape

    def call(self, x, training=False):
        for conv in self.convs:
            x = conv(x, training=training)
        return x


def max_pool_3x3(x):
    """3x3 max pooling, stride 2, padded with -inf by one on both sides."""
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-float("inf"))
    return ops.max_pool(x, 3, strides=2, padding="valid")
