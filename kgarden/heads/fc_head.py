"""The two fully connected layers between RoI features and the outputs of a box head."""

import keras
from keras import ops

from kgarden.layers.initializers import xavier_fan_in


class FCHead(keras.layers.Layer):
    """Flatten -> [dense -> ReLU] x num_fcs.   Girshick 2015, arXiv:1504.08083.

    Call:
        roi_features: (B, P, S, S, D), flattened row, column, channel.
    Returns:
        (B, P, width).
    """

    def __init__(self, width=1024, num_fcs=2, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.layers = [
            keras.layers.Dense(
                width, activation="relu", kernel_initializer=xavier_fan_in(), name=f"fc{number}"
            )
            for number in range(1, num_fcs + 1)
        ]

    def build(self, input_shape):
        width = input_shape[-3] * input_shape[-2] * input_shape[-1]
        for layer in self.layers:
            layer.build((None, None, width))
            width = self.width

    def call(self, roi_features):
        batch, proposals = ops.shape(roi_features)[:2]
        x = ops.reshape(roi_features, (batch, proposals, -1))
        for layer in self.layers:
            x = layer(x)
        return x
