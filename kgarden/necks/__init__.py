"""Necks by name; a neck turns C2..C5 of a backbone into a feature pyramid."""

from kgarden.config.instantiate import instantiate, name_and_settings
from kgarden.necks.bifpn import BiFPN
from kgarden.necks.dla_up import DLAUp
from kgarden.necks.fpn import FPN

NECKS = {"fpn": FPN, "bifpn": BiFPN, "dla_up": DLAUp}


def make_neck(settings):
    """Builds a neck from its name, or from {name: ..., and arguments of its class}; an FPN by default.

    Raises:
        UserError: unknown name.
    """
    name, settings = _name_and_settings(settings)
    return instantiate(NECKS[name], settings, "model.neck", name="neck")


def divisor_of(settings):
    """What the sides of canvases must be divisible by for a neck with these settings.

    Raises:
        UserError: unknown name.
    """
    name, settings = _name_and_settings(settings)
    neck = NECKS[name]
    return neck.divisor_of(**settings) if hasattr(neck, "divisor_of") else neck.divisor


def _name_and_settings(settings):
    return name_and_settings(settings, "model.neck", NECKS, default="fpn")
