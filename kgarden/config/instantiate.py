"""Instantiation: calls builders with settings from a recipe, after a check of their names."""

import contextlib
import difflib
import inspect
from collections.abc import Iterator

from kgarden.config.renamed import RENAMED
from kgarden.errors import UserError

_listeners = []  # lists of `recorded` that are open


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple]]:
    """Yields a list of what is instantiated meanwhile: (where, function or None, {setting: value}, names).

    The values are those that apply, defaults included; `names` are the possible values of `where.name`.
    """
    calls = []
    _listeners.append(calls)
    try:
        yield calls
    finally:
        _listeners.remove(calls)


def _note(where, function, settings, names=()):
    for calls in _listeners:
        calls.append((where, function, dict(settings), tuple(names)))


def instantiate(function, settings: dict, where: str, **fixed):
    """Calls a function or class with settings whose names are checked against its arguments.

    Args:
        function: what to call.
        settings: dict from a recipe.
        where:    dotted key of the settings in the recipe, for messages.
        fixed:    arguments that the recipe cannot set here.
    Raises:
        UserError: an unknown name (the message suggests the nearest), one that is fixed, a number in place of
            a list, or something else in place of a number.
    """
    _check(settings, [name for name in arguments(function) if name not in fixed], where)
    _check_kinds(settings, function, where)
    defaults = {name: value for name, value in _defaults(function).items() if name not in fixed}
    _note(where, function, {**defaults, **settings})
    return function(**settings, **fixed)


def merge_defaults(defaults: dict, settings: dict | None, where: str) -> dict:
    """Returns defaults overridden by settings.

    Args:
        defaults: dict.
        settings: dict from a recipe, or None.
        where:    dotted key of the settings in the recipe, for messages.
    Raises:
        UserError: a name that has no default.
    """
    _check(settings or {}, defaults, where)
    _note(where, None, {**defaults, **(settings or {})})
    return {**defaults, **(settings or {})}


def name_and_settings(
    value: str | dict | None, where: str, known, default: str | None = None, also=None
) -> tuple[str, dict]:
    """Returns the name of a part and its settings, from "fpn" or {"name": "fpn", "channels": 256}.

    Args:
        value:   str, dict or None, from a recipe.
        where:   dotted key of the value in the recipe, for messages.
        known:   existing names.
        default: the name where the value has none.
        also:    function of a name: whether it exists besides; None: no other does.
    Returns:
        (name, dict of the other settings).
    Raises:
        UserError: no name, or one that does not exist.
    """
    settings = {"name": value} if isinstance(value, str) else dict(value or {})
    name = settings.pop("name", default)
    if name not in known and not (also and also(name)):
        raise UserError(f"{where}.name {name!r}: one of {', '.join(known)}")
    _note(where, None, {"name": name}, known)
    return name, settings


def forwards_to(base, fixed=()):
    """Marks a function that passes further keyword arguments on to `base`: recipes can set those as well.

    Args:
        base:  function or class that receives the further arguments.
        fixed: names of arguments of `base` that the function sets itself.
    """

    def mark(function):
        function.base, function.fixed_arguments = base, tuple(fixed)
        return function

    return mark


def take(group, settings):
    """Splits settings into a NamedTuple of some of them and the rest.

    Args:
        group:    NamedTuple class that defines its settings' defaults. A class whose constructor calls
                  `take` lists it in its attribute `takes`, so that `arguments` knows the names.
        settings: dict.
    Returns:
        (instance of `group`, dict of the settings that it does not have).
    """
    own = {name: settings[name] for name in group._fields if name in settings}
    return group(**own), {name: value for name, value in settings.items() if name not in own}


def arguments(function):
    """Returns the names of the keyword arguments of a function or class.

    A class that passes further arguments on to a base class of kgarden, or to the class in its attribute
    `passes_to`, and a function marked by `forwards_to` also take those of the other, except for the ones
    listed in `fixed_arguments`.
    """
    return list(_defaults(function))


def _defaults(function):
    """{name: default} of `arguments`; inspect.Parameter.empty where there is none."""
    fixed = getattr(function, "fixed_arguments", ())
    if not inspect.isclass(function):
        own = _named(inspect.signature(function))
        base = _defaults(function.base) if hasattr(function, "base") else {}
        return own | {name: base[name] for name in base if name not in (*own, *fixed)}
    found = {}
    for one in function.__mro__:
        if not one.__module__.startswith("kgarden.") or "__init__" not in vars(one):
            break
        signature = inspect.signature(one)
        found |= {name: default for name, default in _items(signature, one) if name not in found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            break
    found = found or _named(inspect.signature(function))
    further = _defaults(function.passes_to) if hasattr(function, "passes_to") else {}
    return {name: default for name, default in (found | (further | found)).items() if name not in fixed}


def _named(signature):
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name: p.default for p in signature.parameters.values() if p.kind not in skipped}


def _items(signature, one):
    """(name, default) of a class's own arguments and of the NamedTuples that it takes."""
    yield from _named(signature).items()
    for group in vars(one).get("takes", ()):
        yield from (
            (name, group._field_defaults.get(name, inspect.Parameter.empty)) for name in group._fields
        )


def _check(settings, known, where):
    """Raises UserError for an unknown name and suggests the nearest."""
    for name in settings:
        if name not in known:
            if name in RENAMED:
                raise UserError(f"{where}.{name} was replaced by {RENAMED[name]}")
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{where}.{name}: no such setting; {hint}")


def _check_kinds(settings, function, where):
    """Raises UserError for a number whose default is a list, and for no number where the default is one."""
    defaults, either = _defaults(function), getattr(function, "number_or_list", ())
    for name, value in settings.items():
        default = defaults.get(name)
        if name in either:
            continue
        if isinstance(default, list | tuple) and _is_number(value):
            raise UserError(f"{where}.{name} is {value}: a list, as {list(default)}")
        if _is_number(default) and isinstance(value, str | list | tuple | dict):
            raise UserError(f"{where}.{name} is {value!r}: a number, as {default}")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
