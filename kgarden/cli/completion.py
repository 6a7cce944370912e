"""Shell completion: scripts for the shells, and what recipes, rows and keys there are."""

from typing import Annotated, Literal

import typer

from kgarden.config.keys import section_keys, transform_keys
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.errors import UserError

PROGRAM, VARIABLE = "kgarden", "_KGARDEN_COMPLETE"

completion_app = typer.Typer()


@completion_app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell that reads the script.")],
) -> None:
    """Print a script of completions for a shell: `source <(kgarden completion bash)` in ~/.bashrc."""
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))


def register_shells() -> None:
    """Teaches typer's command line to answer the scripts' questions; without its options to install them."""
    from typer.completion import completion_init

    completion_init()


def complete_recipe(incomplete: str) -> list[str]:
    """Returns the names of packaged recipes that begin so; the shell adds files where there are none."""
    return [name for name in packaged_recipes() if name.startswith(incomplete)]


def complete_row(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the rows of the recipe on the command line that begin so."""
    try:
        # `--row` without its value has ended the parsing of the line
        recipe = ctx.params.get("recipe") or next(iter(ctx.args), "")
        rows = load_recipe(recipe).rows
    except UserError:
        return []
    return [name for name in rows if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Returns the keys of sections and transforms that begin so."""
    keys = [one.key for one in (*section_keys(), *transform_keys())]
    return [key for key in keys if key.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Returns `KEY=` for the keys that begin so."""
    return [] if "=" in incomplete else [f"{key}=" for key in complete_key(incomplete)]
