"""DLA's up-sampling by iterative deep aggregation: C2..C5 to one level at stride 4.

Yu et al. 2018, arXiv:1707.06484, Fig. 4; with deformable convolutions as in Zhou et al. 2019, "Objects as
points", arXiv:1904.07850, section 5, and in CenterNet2's models at stride 4.
"""

import keras

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.deformable_conv import DeformConv
from kgarden.layers.initializers import he_uniform
from kgarden.layers.precision import dtype_policy_scope
from kgarden.layers.upsample import DepthwiseUpsample


class IterativeAggregation(keras.layers.Layer):
    """Brings maps to the size of the first, one after the other: node(up(project(map)) + the one before).

    Args:
        filters:    of every output.
        factors:    up-sampling of each map but the first.
        norm:       see kgarden/layers/norm.py.
        deformable: 3x3 deformable convolutions (v2), or plain 1x1.
    Call:
        maps: [(B, H, W, D), ...], finest first.
    Returns:
        [(B, H, W, filters), ...], one for each map but the first.
    """

    def __init__(self, filters, factors, norm, deformable, **kwargs):
        super().__init__(**kwargs)

        def conv(name):
            settings = dict(norm=norm, activation="relu", name=name)
            if deformable:
                return DeformConv(filters, 3, use_bias=True, kernel_initializer=he_uniform(), **settings)
            return Conv(filters, 1, **settings)

        numbers = range(1, len(factors) + 1)
        self.projections = [conv(f"project{number}") for number in numbers]
        self.ups = [
            DepthwiseUpsample(factor, name=f"up{number}")
            for number, factor in zip(numbers, factors, strict=True)
        ]
        self.nodes = [conv(f"node{number}") for number in numbers]
        self.filters = filters

    def build(self, input_shape):
        inner = (None, None, None, self.filters)
        for shape, project in zip(input_shape[1:], self.projections, strict=True):
            project.build(shape)
        for layer in (*self.ups, *self.nodes):
            layer.build(inner)

    def call(self, maps, training=False):
        before, *others = maps
        found = []
        for x, project, up, node in zip(others, self.projections, self.ups, self.nodes, strict=True):
            before = node(up(project(x, training=training)) + before, training=training)
            found.append(before)
        return found


class DLAUp(keras.layers.Layer):
    """Every map of a backbone aggregated into one level at stride 4, of as many channels as C2.

    Args:
        channels:         of C2.
        norm, deformable: see IterativeAggregation.
    Call:
        features: [C2, C3, C4, C5]; heights and widths halve exactly from one to the next.
    Returns:
        [(B, H / 4, W / 4, channels)].
    """

    divisor = 32
    strides, levels = [4], [2]

    def __init__(self, channels=64, norm="bn", deformable=True, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.settings = dict(norm=norm, deformable=deformable)

    def build(self, input_shape):
        widths = [shape[-1] for shape in input_shape]
        if len(widths) != 4 or widths[0] != self.channels:
            raise UserError(
                f"model.neck.channels is {self.channels}: `dla_up` reads C2..C5 and must be as wide as C2 "
                f"of the backbone, {widths[0]}"
            )

        with dtype_policy_scope(self.dtype_policy.name):
            self._build_stages(widths)

    def _build_stages(self, widths):
        """C5 joins C4, then both join C3, then all join C2; then the results at strides 4, 8 and 16 join."""

        def aggregation(filters, factors, inputs, name):
            layer = IterativeAggregation(filters, factors, **self.settings, name=name)
            layer.build([(None, None, None, width) for width in inputs])
            return layer

        self.stages = []
        for number, level in enumerate((2, 1, 0)):
            filters, joined = widths[level], 3 - level
            inputs = [filters, *[widths[level + 1]] * joined]
            self.stages.append(aggregation(filters, [2] * joined, inputs=inputs, name=f"join{number}"))
        self.last = aggregation(self.channels, [2, 4], inputs=widths[:3], name="last")

    def call(self, features, training=False):
        *finer, last = features
        joined, results = [last], []
        for stage, feature in zip(self.stages, reversed(finer), strict=True):
            joined = [feature, *stage([feature, *joined], training=training)]
            results.insert(0, joined[-1])
        return self.last(results, training=training)[-1:]
