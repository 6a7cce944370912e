"""Backbones by name; a backbone turns an image into the feature maps C2..C5."""

import keras

from kgarden.backbones.resnet import ResNet
from kgarden.config.instantiate import instantiate, name_and_settings

BACKBONES = {f"resnet{depth}": (ResNet, {"depth": depth}) for depth in (18, 34, 50, 101, 152)}


def make_backbone(settings):
    """Builds a backbone from its name or {name: ..., and arguments of its class}; returns a layer as it is.

    Raises:
        UserError: unknown name or argument.
    """
    if isinstance(settings, keras.layers.Layer):
        return settings
    name, settings = name_and_settings(settings, "model.backbone", BACKBONES)
    layer, fixed = BACKBONES[name]
    return instantiate(layer, settings, "model.backbone", **fixed, name="backbone")
