"""ResNet and ResNeXt backbones: an image to the feature maps C2..C5.

He et al. 2015, arXiv:1512.03385; grouped blocks: ResNeXt, Xie et al. 2016, arXiv:1611.05431.
Names follow detectron2: stem, res2..res5. Where the stride of a stage sits is an argument, because
weights are tied to it: the first 1x1 of a block (MSRA weights, Caffe) or its 3x3 (torchvision).
"""

import keras

from kgarden.errors import UserError
from kgarden.layers.conv import Conv, max_pool_3x3
from kgarden.layers.remat import recomputed
from kgarden.layers.residual import BasicBlock, Bottleneck, first_gamma

DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

# Blocks that are computed again together: a whole stage, but in ResNet-101 and 152. A bottleneck's output is
# twice as large as what lies inside it, so that single blocks would save little; C2..C5 are kept in any case.
REMAT_BLOCKS = 6


def check_deformable(stages, kind="bottleneck"):
    """The numbers of deformable stages, each 2 to 5, of bottlenecks."""
    if set(stages) - {2, 3, 4, 5}:
        raise UserError(f"deformable_stages is {list(stages)}: some of 2, 3, 4, 5")
    if stages and kind != "bottleneck":
        raise UserError("deformable_stages: this ResNet has no bottlenecks; use depth 50, 101 or 152")
    return tuple(stages)


class ResNet(keras.layers.Layer):
    """Stem and four stages of residual blocks.

    Args:
        depth:           18, 34, 50, 101 or 152.
        norm:            "frozen_bn", "bn", "sync_bn" or "gn".
        freeze_at:       0 nothing, 1 the stem, 2 stem and res2, ... : no gradients, stored statistics.
        stride_in_1x1:   bottlenecks only: where the stride of a stage sits.
        groups, width_per_group: ResNeXt: 32 and 8, say; their product is the width of the 3x3 in res2.
        stem_channels, res2_channels: 64 and 64 (basic) or 256 (bottleneck) in the papers.
        last_stage:      4 leaves res5 out, for a second stage that has it.
        deformable_stages: numbers of the stages, 2 to 5, whose 3x3 convolutions are deformable: [3, 4, 5] in
                         Dai et al. 2017, arXiv:1703.06211, [4, 5] in most ResNeXt; bottlenecks only.
        modulated, offset_groups: of those; see kgarden.layers.deformable_conv.py.
    Call:
        x: (B, H, W, 3), normalised; H and W divisible by 32.
    Returns:
        [C2, C3, C4, C5], strides 4, 8, 16, 32; up to the last stage.
    Attributes:
        remat: whether features between C2..C5 are computed again on the way back instead of being kept.
    """

    remat = False

    def __init__(
        self,
        depth=50,
        norm="frozen_bn",
        freeze_at=0,
        stride_in_1x1=False,
        groups=1,
        width_per_group=64,
        stem_channels=64,
        res2_channels=None,
        last_stage=5,
        deformable_stages=(),
        modulated=True,
        offset_groups=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if depth not in DEPTHS:
            raise UserError(f"ResNet has no depth {depth}: one of {', '.join(map(str, DEPTHS))}")
        if freeze_at not in range(6):
            raise UserError(f"freeze_at is {freeze_at}: 0 freezes nothing, 5 the whole backbone")
        if last_stage not in range(2, 6):
            raise UserError(f"last_stage is {last_stage}: one of 2, 3, 4, 5")
        self.kind, self.counts = DEPTHS[depth]
        self.deformable_stages = check_deformable(deformable_stages, self.kind)
        self.deform = {"modulated": modulated, "offset_groups": offset_groups}
        res2_channels = res2_channels or (64 if self.kind == "basic" else 256)
        self.widths = [stem_channels, *(res2_channels * 2**index for index in range(4))]  # stem, C2..C5
        self.strides = [4, 8, 16, 32][: last_stage - 1]
        self.channels = self.widths[1:last_stage]
        self.norm, self.freeze_at = norm, freeze_at
        self.stride_in_1x1, self.groups, self.width_per_group = stride_in_1x1, groups, width_per_group
        gamma = first_gamma(norm, 0.02)
        self.stem = Conv(stem_channels, 7, 2, norm=norm, norm_gamma=gamma, activation="relu", name="stem")
        if freeze_at > 0:
            self.stem.trainable = False
        self.stages = [self.stage(number) for number in range(2, last_stage + 1)]

    def stage(self, number):
        """New blocks of res<number>, 2 to 5, as this ResNet has or would have them, frozen like its own."""
        blocks = [
            self._block(number, first=block == 0, name=f"res{number}_{block}")
            for block in range(self.counts[number - 2])
        ]
        for block in blocks if number <= self.freeze_at else ():
            block.trainable = False
        return blocks

    def _block(self, number, first, name):
        before, filters = self.widths[number - 2], self.widths[number - 1]
        strides = 2 if first and number > 2 else 1
        project = first and (strides > 1 or before != filters)
        if self.kind == "basic":
            return BasicBlock(filters, strides, self.norm, project, name=name)
        width = self.groups * self.width_per_group * 2 ** (number - 2)
        return Bottleneck(
            filters,
            width,
            strides,
            norm=self.norm,
            project=project,
            stride_in_1x1=self.stride_in_1x1,
            groups=self.groups,
            deform=self.deform if number in self.deformable_stages else None,
            name=name,
        )

    def build(self, input_shape):
        self.stem.build(input_shape)
        shape = (input_shape[0], None, None, self.stem.filters)
        for stage in self.stages:
            for block in stage:
                block.build(shape)
                shape = block.compute_output_shape(shape)

    def call(self, x, training=False):
        x = max_pool_3x3(self.stem(x, training=training))
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
