"""Necks by name: C2..C5 -> pyramid."""

from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.necks.fpn import FPN

NECKS = {"fpn": FPN}


def make_neck(settings):
    """A neck by its name, or by {name: ..., and arguments of its class}.

    Raises:
        UserError: unknown name.
    """
    settings = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = settings.pop("name", "fpn")
    if name not in NECKS:
        raise UserError(f"model.neck: no neck {name!r}; there are {', '.join(NECKS)}")
    return instantiate(NECKS[name], settings, "model.neck", name="neck")
