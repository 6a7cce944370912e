"""The command `kgarden list`: recipes, rows, models, backbones, data formats, transforms."""

import json
from typing import Annotated

import typer

from kgarden.cli.options import entry
from kgarden.config.catalogue import recipe_summaries, summaries
from kgarden.config.loading import load_recipe, row_settings
from kgarden.errors import UserError
from kgarden.utils.text import printable

list_app = typer.Typer()


@list_app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="recipes, rows, models, backbones, datasets or transforms.")
    ] = "all",
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Recipe whose rows are listed.")
    ] = None,
) -> None:
    """List recipes and models, or the items of one kind, one line each."""
    listings = {"recipes": _recipes, "models": _models, "backbones": _backbones, "datasets": _datasets}
    listings["transforms"] = _transforms
    if what == "rows":
        if recipe is None:
            raise UserError("list rows needs a recipe: kgarden list rows RECIPE")
        for line in _rows(recipe):
            print(printable(line))
    elif what in listings:
        for line in listings[what]():
            print(line)
    elif what == "all":
        for name in ("recipes", "models"):
            print(f"{name}:")
            for line in listings[name](indent="  "):
                print(line)
    else:
        raise UserError(
            f"list {what}: unknown; use recipes, rows RECIPE, models, backbones, datasets or transforms"
        )


def _recipes(indent=""):
    return [entry(name, text, indent) for name, text in recipe_summaries().items()]


def _rows(path_or_stem):
    from kgarden.backbones import missing_backbone

    recipe = load_recipe(path_or_stem)
    for row_id, row in recipe.rows.items():
        changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in row.set.items())
        reported = " ".join(f"{name} {value}" for name, value in row.reported.items())
        origin = f"  [re-evaluates {row.evaluates}]" if row.evaluates else ""
        source = " ".join(filter(None, (row.recipe, row.row)))
        other = f"  [recipe {source}]" if source else ""
        settings = load_recipe(path_or_stem, row=row_id).plain() if row.recipe else row_settings(recipe, row)
        missing = missing_backbone(settings["model"].get("backbone"))
        refused = f"  [needs {missing}, not available yet]" if missing else ""
        yield f"{row_id:20} {reported:28} {changes or 'no changes'}{origin}{other}{refused}"


def _transforms():
    for name, (text, settings) in summaries("data/transforms", "TRANSFORMS").items():
        defaults = ", ".join(f"{k}: {json.dumps(v)}" for k, v in settings.items() if k != "antialias")
        yield entry(name, text)
        yield entry("", f"{{{defaults}}}")


def _models(indent=""):
    return [entry(name, text, indent) for name, (text, _) in summaries("models", "MODELS").items()]


def _backbones():
    from kgarden.backbones import BACKBONES
    from kgarden.backbones.libraries import LIBRARIES

    presets = [f"{prefix}:PRESET{'':8} with the extra {extra}" for prefix, (_, extra) in LIBRARIES.items()]
    return [*BACKBONES, *presets]


def _datasets():
    return [
        "coco      COCO JSON and a folder of images; masks, crowds",
        "voc       PASCAL VOC XML files, split lists; difficult objects",
        "csv       CSV table with one row for each box, and a folder of images",
        "yolo      data.yaml or a folder of label files, boxes and polygons; Ultralytics' folders",
        "openimages  tables of boxes and image-level labels, class tree; groups",
        "lvis      LVIS 0.5 and 1: COCO form, classes that people looked for, frequencies",
        "objects365  Objects365: COCO form, folders of patches, corrected class names",
        "shapes    built-in synthetic images: textured backgrounds, six shapes",
        "shards    TFRecords with the keys of the TF Object Detection API or the Model Garden, used in place",
    ]
