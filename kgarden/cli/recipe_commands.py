"""The commands on recipe files: copy, keys, validate, diff; and completion of command lines."""

import pathlib
import sys
from typing import Annotated

import typer

from kgarden.cli.completion import complete_key, complete_recipe
from kgarden.cli.options import RowOption, SetOption, entry, settings_of, start_tensorflow
from kgarden.config.differences import differences
from kgarden.config.keys import Key, chosen, section_keys, transform_keys
from kgarden.config.loading import load_recipe, packaged_recipe
from kgarden.errors import UserError
from kgarden.utils.files import create_file, write_text
from kgarden.utils.text import printable

recipe_app = typer.Typer(help="Copy, check and compare recipes; look up their keys.", no_args_is_help=True)


@recipe_app.command()
def copy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Packaged recipe.", autocompletion=complete_recipe)
    ],
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="New file.")],
) -> None:
    """Copy a packaged recipe to a file of your own, comments included."""
    source = packaged_recipe(name)
    create_file(file, source.read_bytes())
    print(f"copied to {file}; kgarden train {file} trains it")


@recipe_app.command()
def keys(
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="[PREFIX]",
            help="Only these: schedule, data.train, model.proposer, augment.mosaic.",
            autocompletion=complete_key,
        ),
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="Model whose settings are listed; `kgarden list models` lists them.")
    ] = None,
    set_: SetOption = None,
    markdown: Annotated[
        pathlib.Path | None, typer.Option(help="Write the whole reference to this Markdown file.")
    ] = None,
) -> None:
    """List the keys of recipes, each with type, default and meaning."""
    if markdown is not None:
        if prefix or model or set_:
            raise UserError("--markdown writes the whole reference; leave PREFIX, --model and --set out")
        start_tensorflow()
        from kgarden.commands.key_reference import reference

        write_text(markdown, reference())
        print(f"saved to {markdown}")
        return
    of_models = prefix.startswith("model.") and prefix not in ("model.name", "model.num_classes")
    found = [*section_keys(), *transform_keys()]
    if model is None and of_models:
        found = _of_all_models()
    elif model is not None:
        found = _of_model(model, settings_of(set_))
    elif set_:
        raise UserError("--set chooses parts of a model; give --model too")
    if not (lines := chosen(found, prefix)):
        where = f" of {model}" if model else ""
        raise UserError(f"no key{where} begins with {prefix!r}; `kgarden recipe keys` lists them")
    for one in lines:
        _print_key(one)


def _of_model(model, settings):
    start_tensorflow()
    from kgarden.commands.model_keys import model_keys

    foreign = [key for key in settings if not key.startswith("model.")]
    if foreign:
        raise UserError(f"--set {foreign[0]}: only keys of model choose its parts")
    return model_keys(model, settings)


def _of_all_models():
    start_tensorflow()
    from kgarden.commands.key_reference import merged_keys

    return merged_keys()


def _print_key(one: Key):
    default = {"required": "required", "": ""}.get(one.default, f"default {one.default}")
    print(printable(f"{one.key}  [{', '.join(filter(None, (one.kind, default)))}]"))
    if one.meaning:
        print(entry("", printable(one.meaning), indent="    ").replace(" " * 25, "", 1))


@recipe_app.command()
def validate(
    recipe: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Recipe file, run or name.", autocompletion=complete_recipe),
    ],
    row: RowOption = None,
    set_: SetOption = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes of the data.")] = None,
) -> None:
    """Check a recipe as far as it can be without data; a line for each fault, and exit code 2."""
    start_tensorflow()
    from kgarden.commands.validate import faults_of, remarks_on

    settings = settings_of(set_)
    if found := faults_of(recipe, settings, row, classes):
        for fault in found:
            print(f"kgarden: {printable(fault)}", file=sys.stderr)
        raise typer.Exit(2)
    for remark in remarks_on(load_recipe(recipe, settings, row)):
        print(printable(remark), file=sys.stderr)
    print(f"{recipe}{f', row {row}' if row else ''}: valid")


@recipe_app.command()
def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="NAME, FILE or RUN, or NAME:ROW.", autocompletion=complete_recipe),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.", autocompletion=complete_recipe)],
) -> None:
    """Compare the settings of two recipes, runs or rows, a line for each key that differs."""
    lines = differences(_recipe_of(a), _recipe_of(b))
    for key, of_a, of_b in lines:
        print(printable(f"{key}: {of_a} -> {of_b}"))
    if not lines:
        print("no difference")


def _recipe_of(text):
    """The recipe of "NAME", or of "NAME:ROW"; a file with a colon in its name is itself."""
    stem, colon, row = text.rpartition(":")
    if colon and stem and not pathlib.Path(text).exists():
        return load_recipe(stem, row=row)
    return load_recipe(text)
