"""ResNet and ResNeXt backbones: an image to the feature maps C2..C5.

He et al. 2015, arXiv:1512.03385; grouped blocks: ResNeXt, Xie et al. 2016, arXiv:1611.05431.
Names follow detectron2: stem, res2..res5. Where the stride of a stage sits is an argument, because
weights are tied to it: the first 1x1 of a block (MSRA weights, Caffe) or its 3x3 (torchvision).
"""

from kgarden.backbones.staged import StagedBackbone
from kgarden.errors import UserError
from kgarden.layers.conv import Conv, ConvStack, max_pool_3x3
from kgarden.layers.residual import BasicBlock, Bottleneck, first_gamma

DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def check_deformable(stages, kind="bottleneck"):
    """The numbers of deformable stages, each 2 to 5, of bottlenecks."""
    if isinstance(stages, int) or set(stages) - {2, 3, 4, 5}:
        raise UserError(f"deformable_stages is {stages}: a list of some of 2, 3, 4, 5")
    if stages and kind != "bottleneck":
        raise UserError("deformable_stages: this ResNet has no bottlenecks; use depth 50, 101 or 152")
    return tuple(stages)


def deep_stem(width, filters, norm):
    """Stem of three 3x3 convolutions, the first at stride 2, instead of a 7x7.

    Args:
        width:   channels of the first two.
        filters: channels of the third.
        norm:    see kgarden/layers/norm.py.
    """
    shared = dict(norm=norm, activation="relu")
    return ConvStack(
        [
            Conv(width, 3, 2, **shared, norm_gamma=first_gamma(norm, 0.02), name="conv1"),
            Conv(width, 3, **shared, name="conv2"),
            Conv(filters, 3, **shared, name="conv3"),
        ],
        name="stem",
    )


class ResNet(StagedBackbone):
    """Stem and four stages of residual blocks; see StagedBackbone.

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
        modulated, offset_groups: of those; see kgarden/layers/deformable_conv.py.
    """

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
        if last_stage not in range(2, 6):
            raise UserError(f"last_stage is {last_stage}: one of 2, 3, 4, 5")
        self.kind, self.counts = DEPTHS[depth]
        self.deformable_stages = check_deformable(deformable_stages, self.kind)
        self.deform = {"modulated": modulated, "offset_groups": offset_groups}
        res2_channels = res2_channels or (64 if self.kind == "basic" else 256)
        self.widths = [stem_channels, *(res2_channels * 2**index for index in range(4))]  # stem, C2..C5
        self.norm, self.freeze_at = norm, freeze_at
        self.stride_in_1x1, self.groups, self.width_per_group = stride_in_1x1, groups, width_per_group
        stages = [self._blocks(number) for number in range(2, last_stage + 1)]
        self._assemble(self._stem(), stages, self.widths[1:last_stage], freeze_at)

    def _stem(self):
        gamma = first_gamma(self.norm, 0.02)
        return Conv(self.widths[0], 7, 2, norm=self.norm, norm_gamma=gamma, activation="relu", name="stem")

    def pool(self, x):
        return max_pool_3x3(x)

    def stage(self, number):
        """New blocks of res<number>, 2 to 5, as this ResNet has or would have them, frozen like its own."""
        blocks = self._blocks(number)
        self.freeze_stage(number, blocks)
        return blocks

    def _blocks(self, number):
        return [
            self._block(number, first=block == 0, name=f"res{number}_{block}")
            for block in range(self.counts[number - 2])
        ]

    def _block(self, number, first, name):
        before, filters = self.widths[number - 2], self.widths[number - 1]
        strides = 2 if first and number > 2 else 1
        project = first and (strides > 1 or before != filters)
        if self.kind == "basic":
            return BasicBlock(filters, strides, self.norm, project, name=name)
        return Bottleneck(
            filters,
            self.groups * self.width_per_group * 2 ** (number - 2),
            strides,
            norm=self.norm,
            project=project,
            stride_in_1x1=self.stride_in_1x1,
            groups=self.groups,
            deform=self.deform if number in self.deformable_stages else None,
            **self._further(number),
            name=name,
        )

    def _further(self, number):
        """Further settings of the bottlenecks of res<number>."""
        return {}
