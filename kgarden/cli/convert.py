"""The command on weights of other projects: convert."""

import pathlib
from typing import Annotated

import typer

from kgarden.cli.options import RecipeArgument, RowOption, SetOption, settings_of, start_tensorflow
from kgarden.config.loading import load_recipe

convert_app = typer.Typer()


@convert_app.command()
def convert(
    recipe: RecipeArgument,
    from_: Annotated[
        pathlib.Path,
        typer.Option("--from", help="Weights: .weights.h5, or another project's .pth, .pkl, .safetensors."),
    ],
    to: Annotated[pathlib.Path, typer.Option(help="New file: .weights.h5, .pth or .safetensors.")],
    names: Annotated[
        str | None,
        typer.Option(help="Project whose names are written to .pth or .safetensors, such as detectron2."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, if the recipe has none.")] = None,
    set_: SetOption = None,
    row: RowOption = None,
) -> None:
    """Convert weights of other projects to those of a recipe's model, or back."""
    start_tensorflow()
    from kgarden.exporters.weights import convert_weights

    chosen = load_recipe(recipe, settings_of(set_), row)
    convert_weights(chosen, from_, to, num_classes=classes, names=names)
    print(f"saved to {to}")
