"""Keys of models: what their builders and parts accept, noted while one is constructed without weights."""

import inspect
import pathlib
import re

from kgarden.config.instantiate import instantiate, recorded
from kgarden.config.keys import Key, arguments_in, as_json, kind_of_value
from kgarden.config.loading import nested
from kgarden.models import builder_of

PARTS = {  # of the templates, whose parts have no defaults
    "one_stage": {"dense_head": {"name": "fcos"}},
    "two_stage": {"proposer": {"head": {"name": "rpn"}}, "roi_head": {"name": "faster"}},
}
NOT_OF_RECIPES = {"num_classes", "seed", "name"}
ELSEWHERE = re.compile(r"as (?:in|of) kgarden/([\w/]+)\.py")


def model_keys(name: str, settings: dict | None = None) -> list[Key]:
    """Returns the keys of a model and of its parts, with the defaults that it gives them.

    Args:
        name:     a key of MODELS.
        settings: {"model.roi_head.name": "tsd", ...}; None: the defaults.
    Raises:
        UserError: no such model or setting.
    """
    builder = builder_of(name)
    chosen = nested({"model": PARTS.get(name, {})}, settings or {})["model"]
    with recorded() as calls:
        instantiate(builder, chosen, "model", num_classes=80, seed=0)
    keys = {}
    for where, function, values, names in calls:
        meanings = _meanings(function)
        for setting, value in values.items():
            key = f"{where}.{setting}"
            if setting in NOT_OF_RECIPES and not names:
                continue
            kind, meaning = kind_of_value(value), meanings.get(setting, "")
            if names:
                kind, meaning = "text", f"one of {', '.join(names)}"
            keys[key] = Key(key, kind, as_json(value), meaning or getattr(keys.get(key), "meaning", ""))
    first = Key("model.name", "text", as_json(name), builder.__doc__.splitlines()[0])
    return [first, *(_without_default(one, keys) for one in sorted(keys.values()))]


def _without_default(one, keys):
    """A key with keys below it is a section: its default is theirs."""
    is_section = any(other.startswith(one.key + ".") for other in keys)
    return one._replace(kind="section", default="") if is_section else one


def _meanings(function):
    """{argument: text} of the docstrings of a function or class and of what it passes arguments to."""
    found = {}
    for one in _related(function):
        for text in (one.__doc__, getattr(vars(one).get("__init__"), "__doc__", None)):
            found = {name: _resolved(name, text) for name, text in arguments_in(text).items()} | found
    return found


def _related(function):
    """A function or class of kgarden, its base classes, the NamedTuples that it takes, and what it calls."""
    if not getattr(function, "__module__", "").startswith("kgarden."):
        return
    yield function
    others = [getattr(function, "base", None), getattr(function, "passes_to", None)]
    others += [*inspect.getmro(function)[1:]] if inspect.isclass(function) else []
    others += vars(function).get("takes", ())
    for one in others:
        yield from _related(one)


def _resolved(name, text):
    """The text of the file that an entry refers to with "as in kgarden/models/fcos.py"."""
    if not (match := ELSEWHERE.search(text)):
        return text
    path = pathlib.Path(__file__).parents[1] / f"{match[1]}.py"
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    entry = re.search(
        rf"^ +(?:\w+, )*{name}(?:, \w+)*: +(?!as (?:in|of) )(\S.*(?:\n {{17,}}\S.*)*)", source, re.M
    )
    return " ".join(entry[1].split()) if entry else text
