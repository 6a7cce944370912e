"""Documented arguments exist: every name under `Args:` is an argument of the function or class."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "kgarden").rglob("*.py"), *(ROOT / "tfrecords").rglob("*.py")])


def documented(docstring):
    """Names of the entries of the section `Args:`."""
    section = re.search(
        r"^\s*Args:\n(.*?)(?=^\s*(?:Call|Returns|Raises|Attributes|Yields):|\Z)", docstring, re.M | re.S
    )
    if section is None:
        return []
    lines = [line for line in section.group(1).splitlines() if line.strip()]
    depth = min(len(line) - len(line.lstrip()) for line in lines)
    entries = [line.strip() for line in lines if len(line) - len(line.lstrip()) == depth]
    names = [name.strip() for entry in entries if ":" in entry for name in entry.split(":")[0].split(",")]
    return [name for name in names if name.isidentifier()]


def arguments(node):
    """(names of the arguments, whether there are further ones) of a function or of a class's `__init__`."""
    if isinstance(node, ast.ClassDef):
        inits = [one for one in node.body if getattr(one, "name", "") == "__init__"]
        if not inits:  # a NamedTuple, a dataclass, or what its base takes
            fields = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
            return fields, not fields
        node = inits[0]
    found = node.args
    names = [one.arg for one in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    names += [one.arg for one in (found.vararg, found.kwarg) if one]
    return names, found.kwarg is not None


def test_documented_arguments_are_arguments():
    faults, seen = [], 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            names, has_more = arguments(node)
            for name in documented(ast.get_docstring(node) or ""):
                seen += 1
                if name not in names and not has_more:
                    faults.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has no argument {name!r}"
                    )
    assert seen > 800, seen
    assert not faults, "\n".join(faults)
