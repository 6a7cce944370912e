"""Necks by name; a neck turns C2..C5 of a backbone into a feature pyramid."""

from kgarden.config.instantiate import instantiate, name_and_settings
from kgarden.necks.fpn import FPN

NECKS = {"fpn": FPN}


def make_neck(settings):
    """Builds a neck from its name, or from {name: ..., and arguments of its class}; an FPN by default.

    Raises:
        UserError: unknown name.
    """
    name, settings = name_and_settings(settings, "model.neck", NECKS, default="fpn")
    return instantiate(NECKS[name], settings, "model.neck", name="neck")
