"""Backbones by name; a backbone turns an image into the feature maps C2..C5."""

import keras

from kgarden.backbones.adapted import is_adapted, load_preset
from kgarden.backbones.dla import DLA
from kgarden.backbones.mobilenet_v2 import MobileNetV2
from kgarden.backbones.res2net import Res2Net
from kgarden.backbones.resnet import ResNet
from kgarden.backbones.senet import SENet154, SEResNet
from kgarden.config.instantiate import instantiate, name_and_settings

BACKBONES = {
    **{f"resnet{depth}": (ResNet, {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    **{
        f"resnext{depth}_{groups}x{width}d": (
            ResNet,
            {"depth": depth, "groups": groups, "width_per_group": width},
        )
        for depth, groups, width in ((50, 32, 4), (101, 32, 4), (101, 64, 4), (101, 32, 8))
    },
    **{
        f"seresnext{depth}_32x4d": (SEResNet, {"depth": depth, "groups": 32, "width_per_group": 4})
        for depth in (50, 101)
    },
    "senet154": (SENet154, {}),
    **{f"res2net{depth}": (Res2Net, {"depth": depth}) for depth in (50, 101)},
    "mobilenet_v2": (MobileNetV2, {}),
    "dla34": (DLA, {}),
}


def make_backbone(settings):
    """Builds a backbone from its name or {name: ..., and arguments of its class}; returns a layer as it is.

    A name of BACKBONES, or a preset of another library; see kgarden/backbones/adapted.py.

    Raises:
        UserError: unknown name or argument.
    """
    if isinstance(settings, keras.layers.Layer):
        return settings
    name, settings = name_and_settings(settings, "model.backbone", BACKBONES, also=is_adapted)
    if is_adapted(name):
        return instantiate(load_preset, settings, "model.backbone", name=name)
    layer, fixed = BACKBONES[name]
    return instantiate(layer, settings, "model.backbone", **fixed, name="backbone")
