"""Two pyramids for two tasks: the backbone's first stages are shared, the later ones and the neck are not.

Song, Liu, Wang 2020, arXiv:2003.07540, Fig. 3 and Table 1.
"""

import keras
from keras import ops

from kgarden.errors import UserError


class TwinNeck(keras.layers.Layer):
    """Two necks, the second on C2..C5 of which the last are computed anew, by stages of its own.

    Args:
        first, second: necks of one form.
        stages:        lists of blocks: the second's own, the last of the backbone; see `stages_above`.
    Call:
        features: [C2, ..., C5].
    Returns:
        list of (B, H_l, W_l, 2 D): the first's channels, then the second's.
    Attributes:
        channels: D, of one of them; a proposer reads the first ones.
    """

    def __init__(self, first, second, stages=(), **kwargs):
        super().__init__(**kwargs)
        self.first, self.second, self.stages = first, second, list(stages)
        self.channels, self.strides, self.levels = first.channels, first.strides, first.levels
        self.divisor = first.divisor

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(input_shape)
        shape = input_shape[self._shared() - 1]
        for block in (block for stage in self.stages for block in stage):
            block.build(shape)
            shape = block.compute_output_shape(shape)

    def call(self, features, training=False):
        own = features[: self._shared()]
        for stage in self.stages:
            x = own[-1]
            for block in stage:
                x = block(x, training=training)
            own = [*own, x]
        pyramids = self.first(features, training=training), self.second(own, training=training)
        return [ops.concatenate(pair, axis=-1) for pair in zip(*pyramids, strict=True)]

    def _shared(self):
        """How many of C2..C5 both necks read."""
        return 4 - len(self.stages)


def stages_above(backbone, stride):
    """New stages of a backbone, those above the map of a stride.

    Args:
        backbone: of four stages.
        stride:   8, 16 or 32, of C3, C4 or C5; of C5 there are none.
    Returns:
        list of lists of blocks.
    """
    numbers = [number for number in (4, 5) if 2**number > stride]
    if numbers and not hasattr(backbone, "stage"):
        raise UserError(f"model.configuration d_s{stride}: needs a ResNet, whose stages can be built twice")
    return [backbone.stage(number) for number in numbers]
