"""Summaries of models, transforms and recipes, read from source files without importing them.

Importing a model imports Keras and TensorFlow, which takes seconds; a docstring is text.
"""

import ast
import pathlib
from typing import Any

from kgarden.config.loading import packaged_recipes

PACKAGE = pathlib.Path(__file__).parents[1]


def summaries(package: str, table: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns `documented` with the first paragraph of each docstring, in one line."""
    found = documented(package, table)
    return {
        name: (" ".join(text.split("\n\n")[0].split()), defaults) for name, (text, defaults) in found.items()
    }


def documented(package: str, table: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns {name: (docstring, {argument: default})} of a table of functions.

    Args:
        package: folder of kgarden whose __init__.py holds the table: "models", "data/transforms".
        table:   name of the dictionary {name: function}: "MODELS".
    """
    tree = _parsed(PACKAGE / package / "__init__.py")
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    [entries] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == table
    ]
    names = {key.value: value.id for key, value in zip(entries.keys, entries.values, strict=True)}
    return {name: _documented(*imports[function]) for name, function in names.items()}


def _documented(module, function):
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    [node] = [one for one in _parsed(path).body if getattr(one, "name", None) == function]
    arguments = node.args
    named = [*arguments.args[len(arguments.args) - len(arguments.defaults) :], *arguments.kwonlyargs]
    defaults = zip(named, [*arguments.defaults, *arguments.kw_defaults], strict=True)
    return ast.get_docstring(node), {argument.arg: _literal(value) for argument, value in defaults}


def _literal(node):
    """The value of an expression of constants; its source where it has names."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def recipe_summaries() -> dict[str, str]:
    """Returns {name: the first sentences of its comment} of the packaged recipes."""
    return {name: _first_comment(path) for name, path in packaged_recipes().items()}


def _first_comment(path):
    """The comment that a recipe begins with, up to the command in it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(" ".join(lines).split())
