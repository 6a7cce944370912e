"""Output shapes of a detector's parts: traced without computing anything, and shown by Keras' summary."""

import contextlib
from collections.abc import Callable, Iterator

import keras

from kgarden.structures import IMAGES, SIZE_HW


def part_shapes(detector: keras.Model, canvas: tuple[int, int]) -> dict:
    """Traces a detector and returns the output shapes of the layers that it consists of.

    Args:
        detector: a built Detector.
        canvas:   (height, width) px.
    Returns:
        {layer: nested structure of (None, ...), the batch axis first}; layers that are not called as a whole
        are missing.
    """
    shapes = {}
    x = {
        IMAGES: keras.KerasTensor((1, *canvas, 3), "uint8"),
        SIZE_HW: keras.KerasTensor((1, 2), "int32"),
    }
    with contextlib.ExitStack() as hooks:
        for layer in detector.layers:
            hooks.enter_context(
                call_hook(layer, lambda result, args, layer=layer: shapes.update({layer: _shapes(result)}))
            )
        detector.inference_model().compute_output_spec(x)
    return shapes


def _shapes(result):
    return keras.tree.map_structure(lambda tensor: (None, *tensor.shape[1:]), result)


@contextlib.contextmanager
def shown_in_summary(shapes: dict) -> Iterator[None]:
    """Context in which `keras.Model.summary` prints the shapes of `part_shapes`."""
    for layer, shape in shapes.items():
        object.__setattr__(layer, "compute_output_shape", lambda *_, shape=shape, **__: shape)
    try:
        yield
    finally:
        for layer in shapes:
            object.__delattr__(layer, "compute_output_shape")


@contextlib.contextmanager
def call_hook(layer: keras.layers.Layer, hook: Callable) -> Iterator[None]:
    """Context in which `hook(result, args)` runs after every call of a layer."""
    call, own = layer.call, vars(layer).get("call")

    def hooked(*args, **kwargs):
        result = call(*args, **kwargs)
        hook(result, args)
        return result

    # Keras reads the signature of `call` once, when the layer is created: any callable will do now
    object.__setattr__(layer, "call", hooked)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", own)
