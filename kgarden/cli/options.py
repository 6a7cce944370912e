"""What the commands share: options, `--set`, and the start of TensorFlow."""

import contextlib
import importlib
import os
import pathlib
import sys
from typing import Annotated

import typer

from kgarden.config.loading import parse_value
from kgarden.errors import UserError
from kgarden.utils.quiet import quiet

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="path of a recipe, or the name of one")]
RunArgument = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="run directory")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set a key of the recipe; may be repeated"),
]
RowOption = Annotated[str | None, typer.Option("--row", help="a row of the recipe's tables")]
JsonOption = Annotated[pathlib.Path | None, typer.Option("--json", help="write the numbers to this file")]


def start_tensorflow():
    """Import TensorFlow without the page of hints that its libraries print before they can be told not to."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules or "--debug" in sys.argv:
        return
    # on JAX much works without TensorFlow; the rest names what it lacks
    with quiet(), contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("tensorflow")


def settings_of(assignments):
    """["a.b=c", ...] -> {"a.b": value}."""
    settings = {}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}: write it as KEY=VALUE, for example schedule.steps=20")
        settings[key.strip()] = parse_value(text)
    return settings
