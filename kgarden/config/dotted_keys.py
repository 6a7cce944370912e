"""Dotted keys of recipes: `schedule.steps` in nested dictionaries and lists."""

import contextlib
from typing import Any

from kgarden.errors import UserError


def set_key(tree: dict, dotted: str, value: Any) -> None:
    """Sets a dotted key of a nested dictionary; raises UserError if it leads through another value."""
    *folders, last = str(dotted).split(".")
    for depth, folder in enumerate(folders):
        # lists are indexed by number; any other value that is not a mapping is replaced by one
        if isinstance(tree, list):
            tree = _element(tree, folder, dotted)
            continue
        if not isinstance(tree, dict):
            raise UserError(f"--set {dotted}: {tree!r} has no element {folder!r}")
        if not isinstance(tree.get(folder), dict | list):
            if isinstance(tree.get(folder), str) and depth and folders[0] == "model":
                tree[folder] = {"name": tree[folder]}  # backbone: resnet18 is short for {name: resnet18}
            else:
                tree[folder] = {}
        tree = tree[folder]
    if isinstance(tree, list):
        _element(tree, last, dotted)
        tree[int(last)] = value
    elif isinstance(tree, dict):
        tree[last] = value
    else:
        raise UserError(f"--set {dotted}: {tree!r} has no element {last!r}")


def _element(tree, index, dotted):
    with contextlib.suppress(ValueError, IndexError):
        return tree[int(index)]
    raise UserError(f"--set {dotted}: no element {index!r} in a list of {len(tree)}")


def merge(tree: dict, changes: dict) -> None:
    """Merges nested changes, whose keys may be dotted, into a nested dictionary."""
    for key, value in changes.items():
        if "." in key:
            set_key(tree, key, value)
        elif isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value
