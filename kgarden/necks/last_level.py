"""Neck without a pyramid: the backbone's last feature map as the only level."""

import keras


class LastLevel(keras.layers.Layer):
    """C2, C3, ... -> the last of them, as it is.

    Args:
        stride:   px for one cell of that level.
        channels: of it.
    """

    def __init__(self, stride, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.strides = [stride]
        self.levels = [stride.bit_length() - 1]

    def build(self, input_shape):
        pass

    def call(self, features):
        return [features[-1]]
