"""DLA-34: residual blocks whose outputs trees aggregate.

Yu et al. 2018, "Deep layer aggregation", arXiv:1707.06484, Fig. 2 and 3, Eq. 1 to 3. What comes
behind it: for one level at stride 4 the neck `dla_up`, for P3 to P7 a `bifpn` or `fpn` (kgarden/necks).
"""

import keras
from keras import ops

from kgarden.backbones.staged import StagedBackbone
from kgarden.layers.conv import Conv, ConvStack
from kgarden.layers.residual import BasicBlock, first_gamma

CHANNELS = (16, 32, 64, 128, 256, 512)  # strides 1, 2, 4, ... 32
DEPTHS = (1, 2, 2, 1)  # of the trees at strides 4 to 32


class Tree(keras.layers.Layer):
    """Hierarchical aggregation: two blocks, or two trees, and a 1x1 over their outputs and inherited maps.

    Args:
        filters:    output channels.
        depth:      1: of blocks; 2: of trees of blocks; ...
        strides:    of the first block.
        before:     input channels.
        norm:       see kgarden/layers/norm.py.
        level_root: whether the input, pooled, is aggregated as well.
        inherited:  channels of what is handed down by the trees above.
    Call:
        x:        (B, H, W, before).
        children: list of maps that the trees above hand down.
    """

    def __init__(self, filters, depth, strides, before, norm, level_root=False, inherited=0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.depth, self.strides, self.level_root = filters, depth, strides, level_root
        inherited += before if level_root else 0
        self.project = None
        if depth == 1:
            self.tree1 = BasicBlock(filters, strides, norm, project=False, name="tree1")
            self.tree2 = BasicBlock(filters, 1, norm, project=False, name="tree2")
            if before != filters:
                self.project = Conv(filters, 1, norm=norm, name="project")
            gamma = first_gamma(norm, 0.5)
            self.root = Conv(filters, 1, norm=norm, norm_gamma=gamma, activation="relu", name="root")
        else:
            deeper = dict(depth=depth - 1, norm=norm)
            self.tree1 = Tree(filters, strides=strides, before=before, **deeper, name="tree1")
            self.tree2 = Tree(
                filters, strides=1, before=filters, inherited=inherited + filters, **deeper, name="tree2"
            )
            self.root = None
        self.inherited = inherited

    def build(self, input_shape):
        self.tree1.build(input_shape)
        self.tree2.build((None, None, None, self.filters))
        if self.project is not None:
            self.project.build(input_shape)
        if self.root is not None:
            self.root.build((None, None, None, 2 * self.filters + self.inherited))

    def compute_output_shape(self, input_shape):
        return self.tree1.compute_output_shape(input_shape)

    def call(self, x, children=(), training=False):
        bottom = ops.max_pool(x, self.strides, strides=self.strides) if self.strides > 1 else x
        children = [*([bottom] if self.level_root else []), *children]
        if self.root is None:
            first = self.tree1(x, training=training)
            return self.tree2(first, children=[*children, first], training=training)
        kept = bottom if self.project is None else self.project(bottom, training=training)
        first = self.tree1(x, kept=kept, training=training)
        second = self.tree2(first, training=training)
        return self.root(ops.concatenate([second, first, *children], axis=-1), training=training)


class DLA(StagedBackbone):
    """DLA-34; see StagedBackbone.

    Args:
        norm:      "frozen_bn", "bn" or "sync_bn". The published models train it: "bn".
        freeze_at: 0 nothing, 1 all up to stride 2, 2 the tree at stride 4 as well, ...
        widths:    channels at strides 1, 2, 4, ... 32.
    """

    def __init__(self, norm="bn", freeze_at=0, widths=CHANNELS, **kwargs):
        super().__init__(**kwargs)
        first, second, *channels = widths
        inputs = (second, *channels[:-1])
        shared = dict(norm=norm, activation="relu")
        stem = ConvStack(
            [
                Conv(first, 7, **shared, norm_gamma=first_gamma(norm, 0.02), name="base"),
                Conv(first, 3, **shared, name="level0"),
                Conv(second, 3, 2, **shared, name="level1"),
            ],
            name="stem",
        )
        stages = [
            [Tree(filters, depth, 2, before, norm=norm, level_root=level > 2, name=f"level{level}")]
            for level, filters, depth, before in zip(range(2, 6), channels, DEPTHS, inputs, strict=True)
        ]
        self._assemble(stem, stages, channels, freeze_at)
