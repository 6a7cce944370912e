"""Reference of the recipe's keys: each with its type, default and meaning, from the schema and docstrings.

The meaning of a section's key is the comment beside it in its class; that of a setting of a
model or transform is its entry under `Args` of the docstring of what it is an argument of.
"""

import inspect
import io
import json
import re
import tokenize
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from kgarden.config import recipe
from kgarden.config.catalogue import documented
from kgarden.config.fields import Section

REQUIRED = "required"
WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any", type(None): "null"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
REPEATED = {"val": "train"}  # keys of a section of which another describes the parts


class Key(NamedTuple):
    """A key of a recipe.

    Args:
        key:     dotted; a part in capitals stands for any number or name.
        kind:    type in words.
        default: as JSON; "required" without one, empty for a section.
        meaning: a sentence or less.
    """

    key: str
    kind: str
    default: str
    meaning: str


def section_keys() -> list[Key]:
    """Returns the keys of all sections but the settings of models and transforms."""
    return list(_keys_of(recipe.Recipe, ""))


def _keys_of(section, prefix) -> Iterator[Key]:
    comments = _comments_of(section)
    for name, field in section.model_fields.items():
        annotation, key = section.__annotations__[name], prefix + name
        part, each = _section_in(annotation)
        meaning = comments.get(name) or (_first_line(part) if part else "")
        if part and field.default is not PydanticUndefined and field.default is not None:
            default = ""
        else:
            default = REQUIRED if field.default is PydanticUndefined else as_json(field.default)
        yield Key(key, kind_of(annotation), default, meaning)
        if part and name not in REPEATED:
            yield from _keys_of(part, f"{key}{each}.")


def _section_in(annotation):
    """(the section that a type holds, what stands between its key and the section's keys), or (None, "")."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, ""
    each = {tuple: ".N", dict: ".ID"}.get(get_origin(annotation), "")
    for inner in get_args(annotation):
        part, further = _section_in(inner)
        if part:
            return part, each + further
    return None, ""


def _first_line(section):
    return section.__doc__.splitlines()[0]


def kind_of(annotation: Any) -> str:
    """Returns a type in words: "integer > 0 or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [bound for one in inner[1:] for bound in _bounds_of(one)]
        return " ".join([kind_of(inner[0]), " and ".join(bounds)]).strip()
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(kind_of, inner))
    if origin is tuple:
        return f"list of {kind_of(inner[0])}" if inner[-1] is ... else f"[{', '.join(map(kind_of, inner))}]"
    if origin is dict:
        return f"mapping to {kind_of(inner[1])}"
    return WORDS.get(annotation, "section")


def _bounds_of(constraint):
    parts = getattr(constraint, "metadata", [constraint])  # of pydantic's Field, or one of annotated_types
    return [
        f"{sign} {getattr(one, name)}" for one in parts for name, sign in BOUNDS.items() if hasattr(one, name)
    ]


def as_json(value: Any) -> str:
    """Returns a default as a recipe would have it; "required" for a parameter without one."""
    if value is inspect.Parameter.empty:
        return REQUIRED
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value):
    return (
        value.model_dump(mode="json")
        if isinstance(value, Section)
        else getattr(value, "__name__", str(value))
    )


def _comments_of(section):
    """{field: comment} of a class: behind the field, or in the lines above it."""
    found, above, name = {}, [], None
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(section)).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if token.line.strip().startswith("#"):
                above.append(text)
            elif name:
                found[name] = text
        elif token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string if re.match(r"\w+\s*:", token.line[4:]) else None
            if name and above:
                found[name] = " ".join(above)
            above = []
    return found


def transform_keys() -> list[Key]:
    """Returns `augment.NAME.SETTING` of every transform."""
    keys = []
    for name, (text, defaults) in documented("data/transforms", "TRANSFORMS").items():
        keys.append(Key(f"augment.{name}", "section", "", text.splitlines()[0]))
        meanings = arguments_in(text)
        for setting, default in defaults.items():
            if setting != "antialias":  # that of data
                key = f"augment.{name}.{setting}"
                keys.append(Key(key, kind_of_value(default), as_json(default), meanings.get(setting, "")))
    return keys


def kind_of_value(value: Any) -> str:
    """Returns the type of a default in words; empty where it does not tell."""
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, dict):
        return "mapping"
    return WORDS.get(type(value), "") if value is not None else ""


def arguments_in(docstring: str | None) -> dict[str, str]:
    """Returns {name: text} of the entries under `Args:` or `Attributes:` of a docstring."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    headings = [n for n, line in enumerate(lines) if line in ("Args:", "Attributes:")]
    found, names = {}, []
    for line in lines[headings[0] + 1 :] if headings else []:
        if line and not line.startswith(" "):
            break
        if match := re.match(r" {4}(\w+(?:, \w+)*):\s*(.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def chosen(keys: list[Key], prefix: str) -> list[Key]:
    """Returns the keys that a prefix names: itself and all below it, or all that begin with it."""
    below = [one for one in keys if one.key == prefix or one.key.startswith(prefix.rstrip(".") + ".")]
    return below or [one for one in keys if one.key.startswith(prefix)]
