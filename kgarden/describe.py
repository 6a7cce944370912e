"""What a detector is made of: for each part its file, output shapes, parameters and multiplications.

And the sizes that papers print, beside those here: PUBLISHED, an entry for each kind of layer.
"""

import collections
import contextlib
import inspect
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from kgarden.heads.conv_head import ConvHead
from kgarden.heads.fc_head import FCHead
from kgarden.structures import IMAGES, SIZE_HW

HOME = pathlib.Path(__file__).parent.parent


def describe(detector, canvas):
    """The parts of a detector, measured by detecting on one blank picture.

    Args:
        detector: with all its variables.
        canvas:   (height, width) px.
    Returns:
        [{"part", "class", "file", "output", "parameters", "trained", "gmacs"}, ...], the whole last;
        `gmacs`: 1e9 multiplications of convolutions and dense layers for one picture.
    """
    parts = detector.parts()
    outputs, macs = {}, collections.Counter()
    with contextlib.ExitStack() as watched:
        for name, part in parts.items():
            watched.enter_context(
                _watching(part, lambda result, args, name=name: outputs.update({name: result}))
            )
            for layer in _kernels(part):
                watched.enter_context(_watching(layer, _counter(macs, name, layer)))
        x = {IMAGES: np.zeros((1, *canvas, 3), "uint8"), SIZE_HW: np.array([canvas], "int32")}
        detector.inference_model()(x)
    rows = []
    for name, part in parts.items():
        inner = getattr(part, "head", part)  # AsProposer wraps the head that says what it does
        rows.append(
            {
                "part": name,
                "class": type(inner).__name__,
                "file": file_of(inner),
                "output": shapes_of(outputs.get(name)),
                **_sizes(part),
                "gmacs": round(macs[name] / 1e9, 3),
            }
        )
    total = round(sum(macs.values()) / 1e9, 3)
    whole = {"part": "whole", "class": type(detector).__name__, "file": file_of(detector), "output": ""}
    return [*rows, {**whole, **_sizes(detector), "gmacs": total}]


class Sizes(NamedTuple):
    """Sizes of one kind of layer in one paper.

    Attributes:
        layer:  its class.
        name:   function of a layer -> what the paper calls it; None: its settings are not the paper's.
        count:  function of a layer -> what the paper counts.
        sizes:  {name: the paper's number}.
        source: which paper, and what is counted.
    """

    layer: type
    name: Callable
    count: Callable
    sizes: dict
    source: str


def published(detector):
    """Sizes that papers print, beside those here; nothing of layers that no paper has.

    Returns:
        [{"what", "here": number, "published": number, "source"}, ...].
    """
    layers = [layer for part in detector.parts().values() for layer in part._flatten_layers()]
    return [
        {
            "what": f"{layer.path.split('/', 1)[-1]}, {entry.name(layer)}",
            "here": entry.count(layer),
            "published": entry.sizes[entry.name(layer)],
            "source": entry.source,
        }
        for layer in layers
        for entry in PUBLISHED
        if type(layer) is entry.layer and entry.name(layer) in entry.sizes
    ]


def _kernels_in_2_20(layer):
    """Weights without biases and norms in units of 2^20, two decimals, halves upwards."""
    count = sum(int(np.prod(v.shape)) for v in layer.weights if v.name == "kernel")
    return float(np.floor(count / 2**20 * 100 + 0.5) / 100)


def _conv_head(head):
    """Blocks with settings of their own are not the paper's."""
    reads = head.raise_.conv1.filters
    if (reads, head.width, head.middle) != (256, 1024, 256) or not isinstance(head.non_local, bool):
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
    Sizes(ConvHead, _conv_head, _kernels_in_2_20, BLOCKS, TABLE_2),
    Sizes(FCHead, _fc_head, _kernels_in_2_20, {"fc-head": 13.25}, TABLE_2),
]


def _sizes(layer):
    def count(variables):
        return sum(int(np.prod(variable.shape)) for variable in variables)

    frozen_norms = {"moving_mean", "moving_variance", "step"}
    weights = [variable for variable in layer.weights if variable.name not in frozen_norms]
    return {"parameters": count(weights), "trained": count(layer.trainable_weights)}


def _kernels(part):
    """Every layer below a part, itself included, that multiplies by a kernel."""
    return [
        layer
        for layer in part._flatten_layers()
        if isinstance(getattr(layer, "kernel", None), keras.Variable)
    ]


def _counter(macs, name, layer):
    def count(result, args):
        # each output of a convolution or dense layer is a sum over a kernel without its last axis
        kernel = int(np.prod(layer.kernel.shape))
        if isinstance(layer, keras.layers.Conv2DTranspose):
            positions = int(np.prod(args[0].shape[:-1]))
        else:
            positions = int(np.prod(result.shape[:-1]))
        macs[name] += positions * kernel

    return count


@contextlib.contextmanager
def _watching(layer, seen):
    """Calls of a layer are told to `seen(result, args)`."""
    call, own = layer.call, vars(layer).get("call")

    def told(*args, **kwargs):
        result = call(*args, **kwargs)
        seen(result, args)
        return result

    # Keras reads the signature of `call` once, when the layer is made: any callable will do now
    object.__setattr__(layer, "call", told)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", own)


def shapes_of(result):
    """Shapes without the batch, finest level first: "100x168x256 50x84x256"; names before those of a dict."""
    if result is None:
        return ""
    if isinstance(result, dict):
        return "  ".join(f"{key} {shapes_of(value)}" for key, value in result.items())
    if isinstance(result, list | tuple):
        return " ".join(filter(None, map(shapes_of, result)))
    return "x".join(str(side) for side in result.shape[1:]) or "1"


def file_of(part):
    """Where a part is written, relative to the repository or to site-packages."""
    path = pathlib.Path(inspect.getfile(type(part)))
    with contextlib.suppress(ValueError):
        return str(path.relative_to(HOME))
    return path.name
