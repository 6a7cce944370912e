"""StagedBackbone: the base class of backbones with a stem and stages of blocks, one feature map for each."""

import keras

from kgarden.errors import UserError
from kgarden.layers.remat import recomputed

# Blocks that are computed again together: a whole stage, but in deep ones. A bottleneck's output is twice as
# large as what lies inside it, so that single blocks would save little; C2..C5 are kept in any case.
REMAT_BLOCKS = 6


class StagedBackbone(keras.layers.Layer):
    """Stem, and stages of blocks whose outputs are C2, C3, ...

    A subclass calls `_assemble` in its constructor. Stem and blocks are layers with `build`,
    `compute_output_shape` and `call(x, training)`.

    Call:
        x: (B, H, W, 3), normalised; H and W divisible by 32.
    Returns:
        [C2, C3, ...], strides 4, 8, ...
    Attributes:
        remat:    whether features between C2, C3, ... are computed again on the way back, not kept.
        strides:  px for one cell of each feature map.
        channels: of each feature map.
    """

    remat = False

    def _assemble(self, stem, stages, channels, freeze_at):
        """Take the parts and freeze the first of them.

        Args:
            stem:      layer.
            stages:    list of lists of blocks.
            channels:  of each stage's output.
            freeze_at: 0 nothing, 1 the stem, 2 the first stage as well, ...
        """
        if freeze_at not in range(6):
            raise UserError(f"freeze_at is {freeze_at}: 0 freezes nothing, 5 the whole backbone")
        self.stem, self.stages, self.freeze_at = stem, stages, freeze_at
        self.channels = list(channels)
        self.strides = [4 * 2**index for index in range(len(stages))]
        if freeze_at > 0:
            stem.trainable = False
        for number, stage in enumerate(stages, start=2):
            self.freeze_stage(number, stage)

    def freeze_stage(self, number, blocks):
        """Freeze the blocks of stage `number`, counted from 2, if `freeze_at` asks for it."""
        for block in blocks if number <= self.freeze_at else ():
            block.trainable = False

    def pool(self, x):
        """What lies between stem and first stage."""
        return x

    def build(self, input_shape):
        self.stem.build(input_shape)
        shape = (input_shape[0], None, None, self.stem.compute_output_shape(input_shape)[-1])
        for stage in self.stages:
            for block in stage:
                block.build(shape)
                shape = block.compute_output_shape(shape)

    def call(self, x, training=False):
        x = self.pool(self.stem(x, training=training))
        features = []
        for stage in self.stages:
            x = self._through(stage, x, training)
            features.append(x)
        return features

    def _through(self, stage, x, training):
        if self.remat:
            for first in range(0, len(stage), REMAT_BLOCKS):
                x = recomputed(stage[first : first + REMAT_BLOCKS], x, training)
            return x
        for block in stage:
            x = block(x, training=training)
        return x
