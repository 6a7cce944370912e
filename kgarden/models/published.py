"""Published layer sizes: the numbers that papers print for kinds of layers, to compare ours with."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from kgarden.heads.conv_head import ConvHead
from kgarden.heads.fc_head import FCHead


class PublishedSizes(NamedTuple):
    """Sizes of one kind of layer in one paper.

    Attributes:
        layer:  class of the layer.
        name:   function of a layer -> the paper's name of it; None: its settings are not the paper's.
        count:  function of a layer -> the number that the paper counts.
        sizes:  {name: the paper's number}.
        source: which paper, and what is counted.
    """

    layer: type
    name: Callable[[keras.layers.Layer], str | None]
    count: Callable[[keras.layers.Layer], float]
    sizes: dict[str, float]
    source: str


def _kernels_in_2_20(layer):
    """Weights without biases and norms in units of 2^20, two decimals, halves rounded up."""
    count = sum(int(np.prod(v.shape)) for v in layer.weights if v.name == "kernel")
    return float(np.floor(count / 2**20 * 100 + 0.5) / 100)


def _conv_head(head):
    """None for widths other than the paper's, or for a non-local block with settings of its own."""
    inputs = head.raise_.conv1.filters
    if (inputs, head.width, head.middle) != (256, 1024, 256) or not isinstance(head.non_local, bool):
        return None
    return f"K = {head.count}{', non-local' if head.non_local else ''}"


def _fc_head(head):
    shapes = [tuple(layer.kernel.shape) for layer in head.layers]
    return "fc-head" if shapes == [(7 * 7 * 256, 1024), (1024, 1024)] and not head.num_convs else None


TABLE_2 = "Wu et al. 2020, arXiv:1904.06493, Table 2: kernels, in units of 2^20"
RESIDUAL = (1.06, 2.13, 3.19, 4.25, 5.31, 6.38, 7.44)
NON_LOCAL = {3: 4.13, 5: 7.19, 7: 10.25}
BLOCKS = {f"K = {k}": size for k, size in enumerate(RESIDUAL, start=1)}
BLOCKS |= {f"K = {k}, non-local": size for k, size in NON_LOCAL.items()}
PUBLISHED = [
    PublishedSizes(ConvHead, _conv_head, _kernels_in_2_20, sizes=BLOCKS, source=TABLE_2),
    PublishedSizes(FCHead, _fc_head, _kernels_in_2_20, sizes={"fc-head": 13.25}, source=TABLE_2),
]
