"""Fully connected RoI head, with optional convolutions in front."""

import math

import keras
from keras import ops

from kgarden.layers.conv import Conv
from kgarden.layers.initializers import by_name, msra_fan_out


class FCHead(keras.layers.Layer):
    """[3x3 conv -> norm -> ReLU] x num_convs -> flatten -> [dense -> ReLU] x num_fcs.

    Girshick 2015, arXiv:1504.08083.

    Args:
        width, num_fcs: of the dense layers.
        num_convs:      convolutions with D channels; Mask R-CNN's "4conv1fc" has 4.
        norm:           of the convolutions, see kgarden/layers/norm.py; None: they have a bias instead.
        initializer:    of the dense layers: "c2_xavier" (detectron2, maskrcnn-benchmark) or "xavier"
                        (mmdetection); see kgarden/layers/initializers.py.
        last_relu:      whether a ReLU follows the last dense layer too.
    Call:
        roi_features: (B, P, S, S, D), flattened in this order.
        valid:        (B, P) bool, False on padding, which the statistics of a batch norm leave out; None: all
                      are real.
    Returns:
        (B, P, width).
    """

    def __init__(
        self,
        width=1024,
        num_fcs=2,
        num_convs=0,
        initializer="c2_xavier",
        norm=None,
        last_relu=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.num_convs, self.norm = num_convs, norm
        self.layers = [
            keras.layers.Dense(
                width,
                activation="relu" if number < num_fcs or last_relu else None,
                kernel_initializer=by_name(initializer, "model.roi_head.initializer"),
                name=f"fc{number}",
            )
            for number in range(1, num_fcs + 1)
        ]

    def build(self, input_shape):
        depth = input_shape[-1]
        self.convs = [
            Conv(
                depth,
                3,
                norm=self.norm,
                activation="relu",
                kernel_initializer=msra_fan_out(),
                name=f"conv{n}",
            )
            for n in range(1, self.num_convs + 1)
        ]
        for conv in self.convs:
            conv.build((None, *input_shape[-3:]))
        width = input_shape[-3] * input_shape[-2] * input_shape[-1]
        for layer in self.layers:
            layer.build((None, None, width))
            width = self.width

    def call(self, roi_features, training=False, valid=None):
        x = self._convolved(roi_features, training=training, valid=valid)
        x = ops.reshape(x, (*ops.shape(x)[:2], math.prod(roi_features.shape[-3:])))
        for layer in self.layers:
            x = layer(x)
        return x

    def cells(self, roi_features):
        """Contribution of each cell to the first dense layer: their sum plus the bias is its pre-activation.

        Wu et al. 2020, arXiv:1904.06493, section 3.4.   (B, P, S, S, D) -> (B * P, S, S, width).
        """
        x = self._convolved(roi_features)
        x = ops.reshape(x, (-1, *roi_features.shape[-3:]))
        return ops.einsum("rijd,ijdw->rijw", x, self.weights_of_cells(roi_features.shape[-3:]))

    def weights_of_cells(self, shape):
        """The first dense kernel per cell.   (S, S, D) of the RoI features -> (S, S, D, width)."""
        return ops.reshape(self.layers[0].kernel, (*shape, self.width))

    def _convolved(self, roi_features, training=False, valid=None):
        if not self.convs:
            return roi_features
        valid = None if valid is None else ops.reshape(valid, (-1,))
        x = ops.reshape(roi_features, (-1, *roi_features.shape[-3:]))
        for conv in self.convs:
            x = conv(x, training=training, valid=valid)
        return ops.reshape(x, (*ops.shape(roi_features)[:2], *roi_features.shape[-3:]))
