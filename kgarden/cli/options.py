"""Options that several commands share, parsing of `--set`, and the start of TensorFlow."""

import contextlib
import importlib
import logging
import os
import pathlib
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from kgarden.cli.completion import complete_recipe, complete_row, complete_setting
from kgarden.config.loading import parse_value
from kgarden.errors import UserError
from kgarden.utils.quiet import quiet

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Path of a recipe, or name of a packaged one.",
        autocompletion=complete_recipe,
    ),
]
RunArgument = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Run directory.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe; can be repeated.",
        autocompletion=complete_setting,
    ),
]
RowOption = Annotated[
    str | None,
    typer.Option("--row", help="Row of the recipe's tables.", autocompletion=complete_row),
]
JsonOption = Annotated[
    pathlib.Path | None, typer.Option("--json", help="Write the results to this JSON file.")
]
DrawnOption = Annotated[
    str, typer.Option("--labels", help="Text at a drawn box: none, score, or name (with the score).")
]

INDENT = 25  # columns of names in a list
LIBRARIES = ("absl", "tensorflow", "jax", "PIL", "matplotlib", "h5py")  # that log


QUIET = "3"  # TensorFlow's level at which only fatal errors are printed


def silence_tensorflow() -> None:
    """Keeps away what TensorFlow's C++ code prints, unless the user has set TF_CPP_MIN_LOG_LEVEL."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", QUIET)


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, if it is set, names another;
    JAX_ENABLE_COMPILATION_CACHE=false is JAX's own way to do without.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "kgarden" / "jax"))


def start_tensorflow(keep_programs: bool = True) -> None:
    """Prepares the backend: imports TensorFlow without its messages, tells JAX where to keep programs.

    Messages of libraries below an error are kept away later too, unless `--debug` is given. Those of the
    start come if TF_CPP_MIN_LOG_LEVEL asks for them.

    Args:
        keep_programs: see `keep_compiled_programs`; False where the time of compilation is measured.
    """
    if keep_programs:
        keep_compiled_programs()
    silence_tensorflow()
    if "--debug" in sys.argv:
        return
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    if "tensorflow" in sys.modules or os.environ["TF_CPP_MIN_LOG_LEVEL"] != QUIET:
        return  # imported with its messages, if they are asked for
    # on JAX much works without TensorFlow; the rest names what it lacks
    with quiet(), contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("tensorflow")


def settings_of(assignments: list[str] | None) -> dict[str, Any]:
    """Parses ["a.b=c", ...] to {"a.b": value}."""
    settings = {}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}: use KEY=VALUE, for example schedule.steps=20")
        settings[key.strip()] = parse_value(text)
    return settings


def renaming_of(assignments: list[str] | None) -> dict[str, str]:
    """Parses ["old=new", ...] of `--rename` to {"old": "new"}."""
    rename = {}
    for assignment in assignments or []:
        old, equals, new = (part.strip() for part in assignment.partition("="))
        if not (old and equals and new):
            raise UserError(f"--rename {assignment}: use OLD=NEW, for example mug=cup")
        if rename.setdefault(old, new) != new:
            raise UserError(f"--rename: {old} gets two new names, {rename[old]} and {new}; keep one")
    return rename


def say_missing_glyphs(categories: list[dict]) -> None:
    """Prints which classes are drawn as their ids and why, if no font has the glyphs of their names."""
    from kgarden.utils.fonts import missing_glyphs

    if note := missing_glyphs(categories):
        print(note, file=sys.stderr)


def entry(name: str, text: str, indent: str = "") -> str:
    """Returns a name and its description, wrapped to the terminal; elsewhere one line."""
    line = f"{indent}{name:{INDENT - 1}} {text}"
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, INDENT + 30)
    return textwrap.fill(line, width, subsequent_indent=indent + " " * INDENT, break_on_hyphens=False)
