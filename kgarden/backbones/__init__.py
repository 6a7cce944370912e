"""Backbones by name; a backbone turns an image into the feature maps C2..C5.

Keras and the layers are imported when one is built, so that names are listed without.
"""

import importlib

from kgarden.backbones.libraries import is_adapted
from kgarden.config.instantiate import instantiate, name_and_settings

BACKBONES = {  # name: (module below this one:class, its settings)
    **{f"resnet{depth}": ("resnet:ResNet", {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    **{
        f"resnext{depth}_{groups}x{width}d": (
            "resnet:ResNet",
            {"depth": depth, "groups": groups, "width_per_group": width},
        )
        for depth, groups, width in ((50, 32, 4), (101, 32, 4), (101, 64, 4), (101, 32, 8))
    },
    **{
        f"seresnext{depth}_32x4d": ("senet:SEResNet", {"depth": depth, "groups": 32, "width_per_group": 4})
        for depth in (50, 101)
    },
    "senet154": ("senet:SENet154", {}),
    **{f"res2net{depth}": ("res2net:Res2Net", {"depth": depth}) for depth in (50, 101)},
    "mobilenet_v2": ("mobilenet_v2:MobileNetV2", {}),
    "efficientnet_lite0": ("efficientnet_lite:EfficientNetLite0", {}),
    "dla34": ("dla:DLA", {}),
}


def make_backbone(settings):
    """Builds a backbone from its name or {name: ..., and arguments of its class}; returns a layer as it is.

    A name of BACKBONES, or a preset of another library; see kgarden/backbones/adapted.py.

    Raises:
        UserError: unknown name or argument.
    """
    import keras

    if isinstance(settings, keras.layers.Layer):
        return settings
    name, settings = name_and_settings(settings, "model.backbone", BACKBONES, also=is_adapted)
    if is_adapted(name):
        from kgarden.backbones.adapted import load_preset

        return instantiate(load_preset, settings, "model.backbone", name=name)
    where, fixed = BACKBONES[name]
    module, layer = where.split(":")
    layer = getattr(importlib.import_module(f"kgarden.backbones.{module}"), layer)
    return instantiate(layer, settings, "model.backbone", **fixed, name="backbone")


def missing_backbone(settings: str | dict | None) -> str | None:
    """Returns the name of a backbone that does not exist, of rows that cannot be built; else None."""
    name = settings.get("name") if isinstance(settings, dict) else settings
    return None if name is None or name in BACKBONES or is_adapted(name) else name
