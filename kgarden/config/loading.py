"""Loading of recipes: YAML, overrides and rows -> a validated, frozen Recipe.

    recipe = load_recipe("recipes/centernet2.yaml", overrides={"schedule.steps": 20}, row="table6.p128")

An unknown key, a wrong type or a contradiction is a one-line UserError that names the key, the line of the
file and the nearest key. kgarden/config/recipe.py lists the keys.
"""

import copy
import difflib
import functools
import glob as globbing
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kgarden.config.dotted_keys import merge, set_key
from kgarden.config.recipe import PATH_KEYS, Recipe, Row
from kgarden.config.words import words_of, written_keys
from kgarden.errors import UserError
from kgarden.utils.arguments import check_overrides, path_of, shown
from tfrecords import bounded_yaml
from tfrecords.bounded_yaml import BoundedLoader


class _Loader(BoundedLoader):
    """YAML 1.1 reads 1e-4 as a string and `off` as false; this loader reads a number and a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":bool"))]
    for first, resolvers in BoundedLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|false|False)$"), list("tTfF"))


def parse_value(text: str) -> Any:
    """Parses the value of `--set key=text` as YAML."""
    try:
        return bounded_yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = bounded_yaml.reason_of(error)
        raise UserError(
            f"the value {text[:80]!r} is not valid YAML ({reason}); quote it in the shell"
        ) from error


def recipe_folders() -> list[pathlib.Path]:
    """Returns the folders of packaged recipes: inside the installed package, beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [folder for folder in (package / "_recipes", package.parent / "recipes") if folder.is_dir()]


def packaged_recipes() -> dict[str, pathlib.Path]:
    """Returns {name: path} of the packaged recipes."""
    return {
        path.stem: path for folder in reversed(recipe_folders()) for path in sorted(folder.glob("*.yaml"))
    }


def find_recipe(path_or_stem: str | os.PathLike) -> pathlib.Path:
    """Returns the file of a recipe, from a path, a run directory or the name of a packaged recipe."""
    path = path_of(path_or_stem, "recipe")
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if str(path_or_stem) in packaged:
        return packaged[str(path_or_stem)]
    raise UserError(
        f"no recipe {str(path_or_stem)!r}: no such file, run directory or packaged recipe"
        f"{_nearest(str(path_or_stem), packaged)}; `kgarden list recipes` lists them"
    )


def packaged_recipe(name: str) -> pathlib.Path:
    """Returns the file of a packaged recipe.

    Raises:
        UserError: there is none of this name.
    """
    packaged = packaged_recipes()
    if name not in packaged:
        raise UserError(f"no packaged recipe {name!r}{_nearest(name, packaged)}")
    return packaged[name]


def load_recipe(
    path_or_stem: str | os.PathLike, overrides: dict[str, Any] | None = None, row: str | None = None
) -> Recipe:
    """Loads and validates a recipe.

    Args:
        path_or_stem: path of a YAML file, a run directory, or the name of a packaged recipe.
        overrides:    {"schedule.steps": 20, ...}, applied last.
        row:          id of one of the recipe's rows, whose `set` is applied before the overrides.
    Returns:
        Recipe, frozen.
    Raises:
        UserError: no such recipe or row, or an invalid key or value.
    """
    check_overrides(overrides)
    if not isinstance(row, str | None):
        raise UserError(f"row: the id of a row is needed, not {shown(row)}")
    return _load(find_recipe(path_or_stem), overrides, row)


def as_recipe(
    recipe: Recipe | str | os.PathLike, overrides: dict[str, Any] | None = None, row: str | None = None
) -> Recipe:
    """Returns a recipe with overrides, from a Recipe or from what `load_recipe` takes.

    Args:
        recipe:         Recipe, path of a YAML file, run directory, or name of a packaged recipe.
        overrides, row: as in `load_recipe`.
    Raises:
        UserError: as `load_recipe`; or `row` with a Recipe, which was loaded with or without one.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides, row)
    check_overrides(overrides)
    if row is not None:
        raise UserError("row: give it to load_recipe; a Recipe holds its row already")
    if not overrides:
        return recipe
    tree = json.loads(json.dumps(recipe.plain()))
    for dotted, value in overrides.items():
        set_key(tree, dotted, value)
    return _validate(tree, recipe.name, {})


def recipe_from(tree: dict, where: str) -> Recipe:
    """Returns the recipe of a nested dictionary, as `Recipe.plain` gives it.

    Args:
        tree:  of JSON types.
        where: what holds it, for messages.
    Raises:
        UserError: an invalid key or value.
    """
    return _validate(json.loads(json.dumps(tree)), where, {})


def _load(path, overrides, row, visited=()):
    """`load_recipe`; `visited` are the (path, row) that led here."""
    tree, lines = _read(path)
    if row is not None:
        entry = _row_of(tree, row, path)
        overrides = {**(entry.get("set") or {}), **(overrides or {})}
        if entry.get("recipe"):
            here = (path.resolve(), row)
            if here in visited:
                raise UserError(f"{path}: rows.{row} refers to itself, through its `recipe`")
            other = path.parent / entry["recipe"]
            other = find_recipe(other if other.is_file() else entry["recipe"])
            return _load(other, overrides, entry.get("row"), (*visited, here))
    for dotted, value in (overrides or {}).items():
        set_key(tree, dotted, value)
        lines = {keys: line for keys, line in lines.items() if ".".join(map(str, keys)) != dotted}
    recipe = _validate(_resolve_paths(tree, path.parent), path, lines)
    _check_rows(recipe, path, lines)
    return recipe


def _row_of(tree, row, path):
    """The entry of a row, as the file has it."""
    rows = tree.get("rows") or {}
    if not isinstance(rows, dict) or row not in rows:
        raise UserError(f"{path}: no row {row!r}{_nearest(row, rows if isinstance(rows, dict) else ())}")
    entry = rows[row] or {}
    kinds = {"set": dict, "recipe": str, "row": str}
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(k) or kind(), kind) for k, kind in kinds.items()
    ):
        raise UserError(f"{path}: rows.{row}: a row is a mapping; its `set` is one of dotted keys")
    return entry


def row_settings(recipe: Recipe, row: Row) -> dict[str, Any]:
    """Returns all settings of a row of this recipe, as nested dictionaries that are not validated."""
    tree = json.loads(json.dumps({key: value for key, value in recipe.plain().items() if key != "rows"}))
    for dotted, value in row.set.items():
        set_key(tree, dotted, value)
    return tree


def nested(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested dictionaries with overrides by dotted keys."""
    tree = copy.deepcopy(tree)
    for dotted, value in overrides.items():
        set_key(tree, dotted, value)
    return tree


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """Returns the recipes that are trained in turn: the recipe itself, or one for each of its stages."""
    if not recipe.stages:
        return [recipe]
    base = {key: value for key, value in recipe.plain().items() if key not in ("stages", "rows")}
    recipes = []
    for number, stage in enumerate(recipe.stages):
        tree = json.loads(json.dumps(base))
        merge(tree, stage)
        recipes.append(_validate(tree, f"{recipe.name}, stages[{number}]", {}))
    return recipes


def _read(path):
    """Returns (tree, {path of keys: line}) of a YAML file; a duplicate key is an error."""
    try:
        tree, lines, duplicates = _parse(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        line = bounded_yaml.line_of(error)
        where = f"{path}:{line}" if line else f"{path}"
        raise UserError(f"{where}: not valid YAML: {bounded_yaml.reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe must be a mapping of sections")
    for keys, line in duplicates:
        raise UserError(
            f"{path}:{line}: duplicate key {'.'.join(keys)} (first in line {lines[keys]}); remove one"
        )
    return copy.deepcopy(tree), lines


@functools.lru_cache(maxsize=32)
def _parse(text):
    """Returns (tree, {path of keys: line}, [(path of a duplicate key, line), ...]) of a YAML text.

    Results are kept: parsing takes longer than everything after it, and all rows share one file.
    """
    node, lines, duplicates = yaml.compose(bounded_yaml.bounded(text), _Loader), {}, []
    _note_lines(node, (), lines, duplicates)
    return (None if node is None else _Loader("").construct_document(node)), lines, duplicates


def _note_lines(node, keys, lines, duplicates):
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*keys, key.value), key.start_mark.line + 1
            if here in lines:
                duplicates.append((here, line))
                continue
            lines[here] = line
            _note_lines(value, here, lines, duplicates)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*keys, str(index))] = value.start_mark.line + 1
            _note_lines(value, (*keys, str(index)), lines, duplicates)


def _resolve_paths(value, folder, key=None):
    """Resolves relative paths against the recipe's folder, then the working directory."""
    if isinstance(value, dict):
        return {k: v if k in ("rows", "rename") else _resolve_paths(v, folder, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve_paths(v, folder, key) for v in value]
    is_path = key in PATH_KEYS | {"train", "val"} and isinstance(value, str)
    is_path = is_path or (key == "split" and isinstance(value, str) and value.endswith(".txt"))
    if is_path and not pathlib.Path(value).is_absolute():
        for base in (folder.resolve(), pathlib.Path.cwd()):
            if globbing.glob(str(base / value)):
                return str(base / value)
    return value


def _validate(tree, path, lines):
    try:
        return Recipe.model_validate(_tuples(tree))
    except ValidationError as error:
        first, *others = _messages(error, tree, path, lines=lines)
        more = f" (and {len(others)} more)" if others else ""
        raise _Invalid(first + more, [first, *others]) from None


class _Invalid(UserError):
    """The first of several faults of a recipe, and all of them."""

    def __init__(self, message, faults):
        super().__init__(message)
        self.faults = faults


def _messages(error, tree, path, *, lines):
    """The faults of a recipe, one for each key."""
    # a mistyped key is also a missing one: report the typo first
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found = {}
    for problem in problems:
        keys = written_keys(tree, problem["loc"])
        found.setdefault(keys, _message(problem, keys, path, lines=lines))
    return list(found.values())


def faults_in(
    path_or_stem: str | os.PathLike, overrides: dict[str, Any] | None = None, row: str | None = None
) -> list[str]:
    """Returns every fault for which `load_recipe` refuses a recipe, a line each; [] if it does not."""
    try:
        load_recipe(path_or_stem, overrides, row)
    except UserError as error:
        return getattr(error, "faults", [str(error)])
    return []


def _tuples(tree):
    """Converts lists outside of `model` to tuples: strict validation does not accept lists as tuples."""
    return {
        key: _deep_tuple(value) if key in ("data", "schedule", "stages", "freeze", "init") else value
        for key, value in tree.items()
    }


def _deep_tuple(value):
    if isinstance(value, dict):
        return {key: _deep_tuple(v) if isinstance(v, dict | list) else v for key, v in value.items()}
    if isinstance(value, list):
        return tuple(_deep_tuple(v) if isinstance(v, dict | list) else v for v in value)
    return value


def _message(problem, keys, path, *, lines):
    written = keys
    while written and written not in lines:  # a missing key has the line of its section
        written = written[:-1]
    where = f"{path}:{lines[written]}" if written else f"{path}"
    key = ".".join(keys) or "the recipe"
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_nearest(keys[-1], _keys_beside(keys))}"
    if kind == "missing":
        return f"{where}: {key} is missing"
    if kind == "value_error":
        return f"{where}: {key}: {problem['ctx']['error']}"
    return f"{where}: {key} {words_of(problem, keys)}"


def _keys_beside(keys):
    """Returns the keys of the section that holds this key."""
    section = Recipe
    for part in keys[:-1]:
        field = section.model_fields.get(part) if section else None
        if field is not None:
            section = _section_in(field.annotation)
        elif not part.isdigit():
            section = None
    return list(section.model_fields) if section else []


def _section_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if section := _section_in(inner):
            return section
    return None


def _nearest(word, known):
    """Returns the end of a message that suggests the nearest known word, or lists them all."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f", use one of {', '.join(known)}" if known else ""


_good_rows = set()  # digests of recipes whose rows are valid: the same ones are loaded again and again


def _check_rows(recipe, path, lines):
    known = hashlib.sha256(json.dumps(recipe.plain()).encode()).digest()
    if known in _good_rows:
        return
    for row_id, row in recipe.rows.items():
        line = lines.get(("rows", row_id))
        where = f"{path}:{line}" if line else f"{path}"
        if row.evaluates is not None and row.evaluates not in recipe.rows:
            raise UserError(
                f"{where}: rows.{row_id}: no row {row.evaluates!r} to evaluate"
                f"{_nearest(row.evaluates, recipe.rows)}"
            )
        if row.recipe is None:
            _validate(row_settings(recipe, row), f"{where}: rows.{row_id}", {})
    _good_rows.add(known)
