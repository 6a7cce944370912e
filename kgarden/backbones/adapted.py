"""Backbones of KerasHub and KerasCV: their networks, cut at the levels C2..C5.

`kerashub:PRESET` and `kerascv:PRESET` name what the library's `from_preset` takes: a preset's name, a handle
such as kaggle://..., or a local directory. The libraries are extras, imported here only and when asked for.
"""

import importlib
import pathlib

import keras
import numpy as np

from kgarden.backbones.libraries import LIBRARIES
from kgarden.errors import UserError
from kgarden.layers.norm import KINDS

LEVELS = (4, 8, 16, 32)  # strides of C2..C5
NORMS = tuple(kind for kind in KINDS if kind != "gn")
SIDE = 128  # px of an image by which strides are told


class AdaptedBackbone(keras.layers.Layer):
    """A functional network with features at several strides as a backbone.

    Args:
        network:   keras.Model of images (B, H, W, 3), H and W open.
        features:  KerasTensors inside it, one or more for each stride; the deepest of a stride counts.
        source:    what it came from, for messages.
        norm:      "frozen_bn": its batch norms use the stored statistics and do not train; "bn", "sync_bn":
                   those outside of frozen stages use the batch's. Norms of other kinds stay as they are.
        freeze_at: 0 nothing, 1 the layers before stride 4, 2 all that C2 depends on, ... 5 all of C5's.
        pixels:    {mean, std, order} of the images that the network expects; None: unknown.
    Call:
        x: (B, H, W, 3), normalised; H and W divisible by 32.
    Returns:
        [C2, C3, C4, C5], strides 4, 8, 16, 32.
    Raises:
        UserError: a stride is missing, or a setting is unknown.
    """

    def __init__(self, network, features, source, *, norm="frozen_bn", freeze_at=0, pixels=None):
        super().__init__(name="backbone")
        if norm not in NORMS:
            raise UserError(f"model.backbone.norm {norm!r} of {source}: one of {', '.join(NORMS)}")
        if freeze_at not in range(6):
            raise UserError(f"freeze_at is {freeze_at}: 0 freezes nothing, 5 the whole backbone")
        self.source, self.pixels, self.freeze_at = source, pixels, freeze_at
        image = network.inputs[0]
        check_input(image, source)
        by_stride = dict(zip(strides_of(image, features), features, strict=True))
        by_stride.pop(None, None)
        if missing := [stride for stride in LEVELS if stride not in by_stride]:
            raise UserError(
                f"model.backbone {source}: no features at stride {', '.join(map(str, missing))}, only at "
                f"{', '.join(map(str, sorted(by_stride)))}; a backbone needs {', '.join(map(str, LEVELS))}"
            )
        levels = [by_stride[stride] for stride in LEVELS]
        self.network = keras.Model(image, levels, name="network")
        self.strides, self.channels = list(LEVELS), [level.shape[-1] for level in levels]
        self._set_norms(norm)
        self._freeze(image, levels)

    def _set_norms(self, kind):
        for layer in self.network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = layer.trainable and kind != "frozen_bn"
                layer.synchronized = kind == "sync_bn"

    def _freeze(self, image, levels):
        if self.freeze_at == 0:
            return
        early = keras.Model(image, levels[max(self.freeze_at - 2, 0)]).layers
        if self.freeze_at == 1:
            strides = strides_of(image, [layer.output for layer in early])
            early = [layer for layer, stride in zip(early, strides, strict=True) if stride in (1, 2)]
        for layer in early:
            layer.trainable = False

    def build(self, input_shape):
        pass  # the network was built by its library

    def call(self, x, training=False):
        return self.network(x, training=training)


def check_input(image, source):
    """Raises UserError unless a network takes colour images of any size."""
    shape = image.shape[1:]
    if shape != (None, None, 3):
        raise UserError(
            f"model.backbone {source}: takes images of {shape}, not of 3 channels and any height and width"
        )


def strides_of(image, tensors):
    """Px of the image for one cell of each tensor; None for one that is no feature map (B, h, w, D)."""
    example = keras.KerasTensor((1, SIDE, SIDE, 3), dtype=image.dtype)
    shapes = [one.shape for one in keras.Model(image, list(tensors)).compute_output_spec(example)]
    return [SIDE // shape[1] if len(shape) == 4 else None for shape in shapes]


def load_preset(
    name: str, *, load_weights: bool = True, norm: str = "frozen_bn", freeze_at: int = 0
) -> AdaptedBackbone:
    """Builds the backbone of a preset, with its weights.

    Args:
        name:            "kerashub:PRESET" or "kerascv:PRESET"; see above.
        load_weights:    False: random ones.
        norm, freeze_at: see AdaptedBackbone.
    Raises:
        UserError: the library is not installed, or the preset cannot be had or used.
    """
    library, _, preset = name.partition(":")
    module = _imported(library, name)
    try:
        network = _network(module, preset, load_weights)
    except Exception as error:  # of the network, of Kaggle's client, of a damaged directory, in many forms
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model.backbone {name}: {module.__name__} cannot load it: {reason}; "
            f"give a preset's name, or a directory that its save_to_preset wrote"
        ) from error
    features = _hub_features(network) if library == "kerashub" else _cv_features(network)
    if not features:
        raise UserError(f"model.backbone {name}: {type(network).__name__} has no pyramid of features")
    pixels = _hub_pixels(module, preset) if library == "kerashub" else _cv_pixels(network)
    return AdaptedBackbone(network, features, name, norm=norm, freeze_at=freeze_at, pixels=pixels)


def _network(module, preset, load_weights):
    # KerasHub's presets store a dtype; KerasCV's take that of the scope.
    dtype = {"dtype": keras.config.dtype_policy().name} if module.__name__ == "keras_hub" else {}
    weights = {} if load_weights else {"load_weights": False}  # KerasCV's True insists on weights
    return module.models.Backbone.from_preset(preset, **weights, **dtype)


def _imported(library, name):
    module, extra = LIBRARIES[library]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"model.backbone {name}: {extra} cannot be imported ({error}); pip install 'kgarden[{extra}]'"
        ) from error


def _hub_features(network):
    return list(getattr(network, "pyramid_outputs", {}).values())


def _cv_features(network):
    names = getattr(network, "pyramid_level_inputs", {}).values()
    return [network.get_layer(name).output for name in names]


def _hub_pixels(module, preset):
    """What the preset's image converter does, x * scale + offset, as mean and std; None: it has none."""
    folder = pathlib.Path(preset)
    if folder.is_dir() and not (folder / "image_converter.json").is_file():
        return None
    converter = module.layers.ImageConverter.from_preset(preset)
    scale = np.ones(3) * (1.0 if converter.scale is None else np.array(converter.scale))
    offset = np.zeros(3) + (0.0 if converter.offset is None else np.array(converter.offset))
    return {"mean": (-offset / scale).tolist(), "std": (1 / scale).tolist(), "order": "rgb"}


def _cv_pixels(network):
    """RGB, 0..255 where the network divides by 255 itself, else 0..1."""
    rescales = any(isinstance(layer, keras.layers.Rescaling) for layer in network.layers)
    return {"mean": [0.0] * 3, "std": [1.0 if rescales else 255.0] * 3, "order": "rgb"}
