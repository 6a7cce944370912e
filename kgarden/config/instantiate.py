"""From nested settings, as recipes hold them, to arguments that are checked before anything runs."""

import difflib
import inspect

from kgarden.structures import UserError


def fill(function, settings, where, **fixed):
    """Call a function or class with settings whose names are checked against its arguments.

    Args:
        function: what to call.
        settings: dict from a recipe.
        where:    dotted place of the settings in the recipe, for messages.
        fixed:    arguments that the recipe cannot set here.
    Raises:
        UserError: an unknown name (the nearest is named), or one that is fixed.
    """
    _check(settings, [name for name in arguments(function) if name not in fixed], where)
    return function(**settings, **fixed)


def overlaid(defaults, settings, where):
    """Defaults with settings laid over them.

    Args:
        defaults: dict.
        settings: dict from a recipe, or None.
        where:    dotted place of the settings in the recipe, for messages.
    Raises:
        UserError: a name that has no default.
    """
    _check(settings or {}, defaults, where)
    return {**defaults, **(settings or {})}


def _check(settings, known, where):
    """Refuse a name that is not known; the nearest is named."""
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{where}.{name}: no such setting; {hint}")


def arguments(function):
    """Names of the arguments that a function or class takes by name.

    A class that hands further arguments on to a base of kgarden takes those of the base as well, but for the
    ones that it settles itself, which it names in `settled`.
    """
    if not inspect.isclass(function):
        return _named(inspect.signature(function))
    names = []
    for one in function.__mro__:
        if not one.__module__.startswith("kgarden.") or "__init__" not in vars(one):
            break
        signature = inspect.signature(one)
        names += [name for name in _named(signature) if name not in names]
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            break
    settled = getattr(function, "settled", ())
    return [name for name in names or _named(inspect.signature(function)) if name not in settled]


def _named(signature):
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in signature.parameters.values() if p.kind not in skipped]
