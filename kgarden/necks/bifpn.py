"""BiFPN: a feature pyramid whose levels are fused top-down and bottom-up, repeatedly, with learned weights.

Tan, Pang, Le 2019, "EfficientDet", arXiv:1911.09070, section 3, Fig. 2d; in the forms of CenterNet2's models.
"""

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.layers.conv import Conv, max_pool_3x3
from kgarden.layers.initializers import torch_uniform
from kgarden.layers.precision import dtype_policy_scope
from kgarden.layers.upsample import upsample_2x

FUSION_EPSILON = 1e-4  # of the sum of weights
STYLES = ("efficientdet", "fcos")
LEVELS, STYLE = (3, 7), "efficientdet"  # defaults


def node_graph(levels):
    """The nodes of one layer over `levels` levels: [(level, [inputs]), ...].

    Inputs count the levels of the layer's input first, finest first, then the nodes in order. The last
    `levels` nodes are the layer's output, finest first.
    """
    nodes, on_level = [], {}
    before = levels - 1
    for level in range(levels - 2, -1, -1):  # top-down
        nodes.append((level, [level, before]))
        before = on_level[level] = levels + len(nodes) - 1
    for level in range(1, levels):  # bottom-up; the top level has no node of the way down
        own = [level] if level == levels - 1 else [level, on_level[level]]
        nodes.append((level, [*own, before]))
        before = levels + len(nodes) - 1
    return nodes


class FusionNode(keras.layers.Layer):
    """Weighted mean of maps, swish, 3x3 convolution.

    Args:
        channels:  of all maps.
        inputs:    number of maps.
        norm:      behind the convolution; see kgarden/layers/norm.py.
        separable: the convolution is a depthwise one and a 1x1.
    """

    def __init__(self, channels, inputs, norm, separable, **kwargs):
        super().__init__(**kwargs)
        self.inputs, self.channels = inputs, channels
        self.depthwise = None
        if separable:
            self.depthwise = _conv(channels, 3, groups=channels, use_bias=False, name="depthwise")
        self.conv = _conv(channels, 1 if separable else 3, norm=norm, name="conv")

    def build(self, input_shape=None):
        self.weights_of_inputs = self.add_weight(
            shape=(self.inputs,), initializer="ones", autocast=False, name="edge_weights"
        )
        for conv in (self.depthwise, self.conv):
            if conv is not None:
                conv.build((None, None, None, self.channels))

    def fuse(self, maps):
        """The weighted mean; weights below zero count as zero.   list of (B, H, W, D) -> (B, H, W, D)."""
        weights = ops.relu(self.weights_of_inputs)
        shares = ops.cast(weights / (ops.sum(weights) + FUSION_EPSILON), maps[0].dtype)
        return sum(x * shares[number] for number, x in enumerate(maps))

    def call(self, maps, training=False):
        x = ops.silu(self.fuse(maps))
        return self.conv(x if self.depthwise is None else self.depthwise(x), training=training)


class BiFPNLayer(keras.layers.Layer):
    """One pass down and up.

    Args:
        channels, norm, separable: see FusionNode.
        style: see BiFPN.
    Call:
        maps: [(B, H, W, D), ...], finest first; D may differ from `channels`.
    Returns:
        [(B, H, W, channels), ...] of the same sizes.
    """

    def __init__(self, channels, levels, norm, separable, style, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.levels, self.norm, self.style = channels, levels, norm, style
        self.graph = node_graph(levels)
        self.nodes = [
            FusionNode(channels, len(inputs), norm=norm, separable=separable, name=f"node{number}")
            for number, (_, inputs) in enumerate(self.graph, start=levels)
        ]

    def build(self, input_shape):
        """Nodes, and convolutions of inputs that are not as wide as the pyramid.

        Each edge has its own in EfficientDet's style; in that of FCOS, those from one input to one level
        share.
        """
        self.convs, self.by_edge = [], {}
        for node, (level, inputs) in enumerate(self.graph, start=self.levels):
            for source in (one for one in inputs if one < self.levels):
                if input_shape[source][-1] == self.channels:
                    continue
                name = f"edge{source}_{node}" if self.style == "efficientdet" else f"lateral{source}_{level}"
                conv = next((conv for conv in self.convs if conv.name == name), None)
                if conv is None:
                    with dtype_policy_scope(self.dtype_policy.name):
                        biased = self.style == "fcos"
                        conv = _conv(self.channels, 1, norm=self.norm, use_bias=biased, name=name)
                    conv.build(input_shape[source])
                    self.convs.append(conv)
                self.by_edge[source, node] = self.convs.index(conv)
        for node in self.nodes:
            node.build()

    def call(self, maps, training=False):
        found, projected = list(maps), {}
        for number, node in enumerate(self.nodes, start=len(maps)):
            found.append(node(self.seen_by(number, found, projected, training), training=training))
        return found[-len(maps) :]

    def seen_by(self, number, found, projected, training=False):
        """What a node fuses: its inputs as wide as the pyramid and as large as its level.

        Args:
            number:    of the node, as in `node_graph`.
            found:     maps of all levels and of the nodes before it.
            projected: dict, filled: {number of a 1x1 convolution: its output}.
        """
        level, inputs = self.graph[number - self.levels]
        seen = []
        for source in inputs:
            x, index = found[source], self.by_edge.get((source, number))
            if index is not None:
                if index not in projected:
                    projected[index] = self.convs[index](x, training=training)
                x = projected[index]
            seen.append(self._resized(x, found[level].shape[1:3]))
        return seen

    def _resized(self, x, size):
        """At the size of the same, the next finer or the next coarser level."""
        height, width = size
        if x.shape[1] > height:
            return _halved(x, self.style)
        return x if x.shape[1] == height else upsample_2x(x)[:, :height, :width]


class BiFPN(keras.layers.Layer):
    """Levels from C3..C5 and, above them, from max pooling; then layers of BiFPN.

    Args:
        channels:  width of every level.
        repeats:   number of layers.
        levels:    [first, last]: [3, 7] or [3, 5], say; first 2..4, last 5..7.
        norm:      see kgarden/layers/norm.py.
        style:     "efficientdet": maps shrink by 2x2 max pooling, every edge has its own 1x1 convolution;
                   canvases must be divisible by 128. "fcos" (Tian et al. 2020, arXiv:2006.09214): by 3x3 max
                   pooling, 1x1 convolutions have a bias and are shared, levels may have odd sizes.
        separable: depthwise separable convolutions behind the fusion, as EfficientDet has them; CenterNet2's
                   models have full ones.
    Call:
        features: [C2, C3, C4, C5]; heights and widths halve exactly from one to the next.
    Returns:
        list of (B, H_l, W_l, channels), finest first.
    """

    def __init__(
        self,
        channels=160,
        repeats=3,
        levels=LEVELS,
        norm="gn",
        style=STYLE,
        separable=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        first, last = levels
        if not (2 <= first <= 4 and 5 <= last <= 7):
            raise UserError(f"BiFPN levels {list(levels)}: first must be 2..4 and last 5..7")
        if style not in STYLES:
            raise UserError(f"model.neck.style {style!r}: one of {', '.join(STYLES)}")
        if repeats < 1:
            raise UserError(f"model.neck.repeats is {repeats}: at least 1")
        self.channels, self.style, self.separable = channels, style, separable
        self.levels = list(range(first, last + 1))
        self.strides = [2**level for level in self.levels]
        self.divisor = self.divisor_of(levels=levels, style=style)
        self.p6 = _conv(channels, 1, norm=norm, name="p6") if last > 5 else None
        settings = dict(norm=norm, separable=separable, style=style)
        self.cells = [
            BiFPNLayer(channels, len(self.levels), **settings, name=f"cell{number}")
            for number in range(repeats)
        ]

    @staticmethod
    def divisor_of(levels=LEVELS, style=STYLE, **_):
        """What canvases must be divisible by: 2x2 pooling needs even sizes up to the last level."""
        return 2 ** levels[-1] if style == "efficientdet" else 32

    def build(self, input_shape):
        if len(input_shape) < 4:
            raise UserError(f"BiFPN reads C2..C5; the backbone ends at C{len(input_shape) + 1}")
        shapes = list(input_shape[self.levels[0] - 2 :])
        if self.p6 is not None:
            if shapes[-1][-1] == self.channels:
                self.p6 = None
            else:
                self.p6.build(shapes[-1])
        pyramid = (None, None, None, self.channels)
        shapes += [pyramid] * (self.levels[-1] - 5)
        for cell in self.cells:
            cell.build(shapes)
            shapes = [pyramid] * len(self.levels)

    def call(self, features, training=False):
        maps = list(features[self.levels[0] - 2 :])
        top = maps[-1]
        if self.p6 is not None:
            top = self.p6(top, training=training)
        for _ in range(self.levels[-1] - 5):
            top = _halved(top, self.style)
            maps.append(top)
        for cell in self.cells:
            maps = cell(maps, training=training)
        return maps


def _halved(x, style):
    return ops.max_pool(x, 2, strides=2) if style == "efficientdet" else max_pool_3x3(x)


def _conv(filters, kernel_size, **settings):
    return Conv(filters, kernel_size, kernel_initializer=torch_uniform(), **settings)
