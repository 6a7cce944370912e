"""Model summary: source file, output shapes, parameters and multiplications of every part of a detector.

`published` compares layer sizes with those that papers print (kgarden/models/published.py).
"""

import collections
import contextlib
import inspect
import pathlib

import keras
import numpy as np

from kgarden.models.base.part_shapes import call_hook
from kgarden.models.published import PUBLISHED
from kgarden.structures import IMAGES, SIZE_HW

HOME = pathlib.Path(__file__).parents[2]


def describe(detector: keras.Model, canvas: tuple[int, int]) -> list[dict]:
    """Summarises the parts of a detector by running it on one blank image.

    Args:
        detector: a built Detector.
        canvas:   (height, width) px.
    Returns:
        [{"part", "class", "file", "output", "parameters", "trained", "gmacs"}, ...], the whole last;
        `gmacs`: 1e9 multiply-accumulate operations of convolutions and dense layers for one image.
    """
    parts = detector.parts()
    outputs, macs = {}, collections.Counter()
    with contextlib.ExitStack() as hooks:
        for name, part in parts.items():
            hooks.enter_context(
                call_hook(part, lambda result, args, name=name: outputs.update({name: result}))
            )
            for layer in _kernel_layers(part):
                hooks.enter_context(call_hook(layer, _mac_counter(macs, name, layer)))
        x = {IMAGES: np.zeros((1, *canvas, 3), "uint8"), SIZE_HW: np.array([canvas], "int32")}
        detector.inference_model()(x)
    rows = []
    for name, part in parts.items():
        inner = getattr(part, "head", part)  # AsProposer wraps a dense head
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


def published(detector: keras.Model) -> list[dict]:
    """Compares layer sizes with those that papers print; layers without a published size are left out.

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


def _sizes(layer):
    def count(variables):
        return sum(int(np.prod(variable.shape)) for variable in variables)

    frozen_norms = {"moving_mean", "moving_variance", "step"}
    weights = [variable for variable in layer.weights if variable.name not in frozen_norms]
    return {"parameters": count(weights), "trained": count(layer.trainable_weights)}


def _kernel_layers(part):
    """The layers with a kernel among a part and its sublayers."""
    return [
        layer
        for layer in part._flatten_layers()
        if isinstance(getattr(layer, "kernel", None), keras.Variable)
    ]


def _mac_counter(macs, name, layer):
    def count(result, args):
        # each output of a convolution or dense layer is a sum over a kernel without its last axis
        kernel = int(np.prod(layer.kernel.shape))
        if isinstance(layer, keras.layers.Conv2DTranspose):
            positions = int(np.prod(args[0].shape[:-1]))
        else:
            positions = int(np.prod(result.shape[:-1]))
        macs[name] += positions * kernel

    return count


def shapes_of(result) -> str:
    """Formats shapes without the batch axis, finest level first: "100x168x256 50x84x256"; dicts by key."""
    if result is None:
        return ""
    if isinstance(result, dict):
        return "  ".join(f"{key} {shapes_of(value)}" for key, value in result.items())
    if isinstance(result, list | tuple):
        return " ".join(filter(None, map(shapes_of, result)))
    return "x".join(str(side) for side in result.shape[1:]) or "1"


def file_of(part: keras.layers.Layer) -> str:
    """Returns the source file of a part, relative to the repository or to site-packages."""
    path = pathlib.Path(inspect.getfile(type(part)))
    with contextlib.suppress(ValueError):
        return str(path.relative_to(HOME))
    return path.name
