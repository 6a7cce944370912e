"""Backbones by name: image -> C2..C5."""

import keras

from kgarden.backbones.resnet import ResNet
from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError

BACKBONES = {f"resnet{depth}": (ResNet, {"depth": depth}) for depth in (18, 34, 50, 101)}


def make_backbone(settings):
    """A backbone by its name, or by {name: ..., and arguments of its class}; a layer is one already.

    Raises:
        UserError: unknown name or argument.
    """
    if isinstance(settings, keras.layers.Layer):
        return settings
    settings = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = settings.pop("name", None)
    if name not in BACKBONES:
        raise UserError(f"model.backbone: no backbone {name!r}; there are {', '.join(BACKBONES)}")
    layer, fixed = BACKBONES[name]
    return instantiate(layer, settings, "model.backbone", **fixed, name="backbone")
