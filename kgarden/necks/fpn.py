"""Feature pyramid network (FPN): C2..C5 to the levels P2..P7.

Lin et al. 2016, arXiv:1612.03144; the extra levels P6 and P7: Lin et al. 2017, arXiv:1708.02002,
with P6 taken from P5 as in FCOS and CenterNet2, or from C5 as in RetinaNet.
"""

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import by_name
from kgarden.layers.upsample import upsample_2x

TOPS = ("p6p7_of_p5", "p6p7_of_c5", "subsample")


class FPN(keras.layers.Layer):
    """Laterals 1x1, nearest top-down sums, outputs 3x3; no activation, and no norm unless asked for.

    Args:
        channels:      width of every level.
        levels:        [first, last], 2..7: [3, 7] for CenterNet2, [2, 6] for Faster R-CNN.
        top:           what lies above P5: "p6p7_of_p5" and "p6p7_of_c5" are stride-2 3x3 convolutions,
                       "subsample" takes every other cell of P5 (P6 only).
        relu_before_p7: P7 = conv(relu(P6)), as detectron2 and FCOS have it.
        norm:          of laterals and outputs, see kgarden/layers/norm.py; torchvision's "_v2" have "bn".
        initializer:   "c2_xavier" (detectron2, torchvision, maskrcnn-benchmark) or "xavier" (mmdetection);
                       see kgarden/layers/initializers.py.
    Call:
        features: [C2, C3, C4, C5]; heights and widths halve exactly from one to the next.
    Returns:
        list of (B, H_l, W_l, channels), finest first.
    """

    divisor = 32  # sides of the network input must be divisible by it: C5 halves five times

    def __init__(
        self,
        channels=256,
        levels=(3, 7),
        top="p6p7_of_p5",
        relu_before_p7=True,
        norm=None,
        initializer="c2_xavier",
        **kwargs,
    ):
        super().__init__(**kwargs)
        first, last = levels
        if not (2 <= first <= 5 <= last <= 7):
            raise UserError(f"FPN levels {list(levels)}: first must be 2..5 and last 5..7")
        if top not in TOPS:
            raise UserError(f"FPN top {top!r}: one of {', '.join(TOPS)}")
        if top == "subsample" and last == 7:
            raise UserError("FPN top 'subsample' makes P6 only: end the levels at 6")
        self.channels = channels
        self.levels = list(range(first, last + 1))
        self.strides = [2**level for level in self.levels]
        self.top = top
        self.relu_before_p7 = relu_before_p7
        self.initializer = initializer
        self.laterals = [self._conv(1, f"lateral{level}", norm=norm) for level in range(first, 6)]
        self.outputs = [self._conv(3, f"output{level}", norm=norm) for level in range(first, 6)]
        convolved = [] if top == "subsample" else range(6, last + 1)
        self.extras = [self._conv(3, f"p{level}", strides=2) for level in convolved]

    def _conv(self, kernel_size, name, strides=1, norm=None):
        initializer = by_name(self.initializer, "model.neck.initializer")
        return Conv(self.channels, kernel_size, strides, norm=norm, kernel_initializer=initializer, name=name)

    def build(self, input_shape):
        if len(input_shape) < 4:
            raise UserError(f"FPN reads C2..C5; the backbone ends at C{len(input_shape) + 1}")
        pyramid_shape = (None, None, None, self.channels)
        for lateral, shape in zip(self.laterals, input_shape[self.levels[0] - 2 :], strict=True):
            lateral.build(shape)
        for output in self.outputs:
            output.build(pyramid_shape)
        for extra in self.extras:
            from_c5 = self.top == "p6p7_of_c5" and extra is self.extras[0]
            extra.build(input_shape[-1] if from_c5 else pyramid_shape)

    def call(self, features, training=False):
        used = features[self.levels[0] - 2 :]
        merged = [
            lateral(feature, training=training) for lateral, feature in zip(self.laterals, used, strict=True)
        ]
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + upsample_2x(merged[finer + 1])
        pyramid = [
            output(level, training=training) for output, level in zip(self.outputs, merged, strict=True)
        ]

        if self.top == "subsample" and self.levels[-1] == 6:
            return [*pyramid, pyramid[-1][:, ::2, ::2, :]]
        x = used[-1] if self.top == "p6p7_of_c5" else pyramid[-1]
        for number, extra in enumerate(self.extras):
            x = extra(ops.relu(x) if number and self.relu_before_p7 else x)
            pyramid.append(x)
        return pyramid
