"""Differences between two recipes, key by key."""

import json
from typing import Any

from kgarden.config.recipe import Recipe

ABSENT = "(not set)"


def differences(a: Recipe, b: Recipe) -> list[tuple[str, str, str]]:
    """Returns [(dotted key, value in a, value in b), ...] of the keys that differ, rows left out.

    Values are JSON, those of an absent key "(not set)": a setting of a model has then the model's default.
    """
    of_a, of_b = _leaves(a), _leaves(b)
    keys = list(dict.fromkeys([*of_a, *of_b]))
    return [
        (key, of_a.get(key, ABSENT), of_b.get(key, ABSENT)) for key in keys if of_a.get(key) != of_b.get(key)
    ]


def _leaves(recipe: Recipe) -> dict[str, str]:
    tree = {key: value for key, value in recipe.plain().items() if key != "rows"}
    return dict(_flat(tree, ""))


def _flat(value: Any, key: str):
    """Yields (dotted key, JSON); lists of mappings by number, other lists as they are."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{number}")
    else:
        yield key, json.dumps(value, ensure_ascii=False)
