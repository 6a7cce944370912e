"""Checks of a recipe's data that need no conversion: its files exist, its classes agree.

A conversion can take an hour; what is wrong before it is said before it.
"""

import functools
import pathlib

from kgarden.data.identity import check_classes, source_names
from kgarden.data.sources import converted_folder
from kgarden.errors import UserError
from tfrecords.converters import coco, lvis, objects365, openimages, shapes, yolo
from tfrecords.index import shards_of
from tfrecords.labels import read_labels
from tfrecords.schema import DataError
from tfrecords.write import read_manifest

PATH_KEYS = (
    *("images", "annotations", "root", "classes", "labels"),
    *("descriptions", "image_labels", "hierarchy", "name_fixes"),
)
JSON_CLASSES = {  # files that take time to read
    "coco": coco.categories_of,
    "lvis": lvis.categories_of,
    "objects365": objects365.categories_of,
}
NAMED = 5  # classes that a message names
RAW = "{format: coco, images: …, annotations: …}"


def check_before(
    recipe, cache: pathlib.Path, splits: tuple[str, ...] = ("train", "val")
) -> list[dict] | None:
    """Checks the files and the classes of a recipe's data without converting anything.

    Args:
        recipe: of `load_recipe`.
        cache:  folder of converted data.
        splits: which of train and val are required.
    Returns:
        [{"id", "name"}, ...] in label order; None if only a conversion can tell.
    Raises:
        UserError: a file is missing, or the classes of two sources or the recipe's `num_classes` contradict.
    """
    sources = [
        (
            {key: value for key, value in source.model_dump(exclude={"weight"}).items() if value is not None},
            name,
        )
        for split in splits
        for source, name in zip(getattr(recipe.data, split), source_names(recipe, split), strict=True)
    ]
    for source, name in sources:
        _check_files(source, name.split(" ")[0])
    first = None
    for source, name in sources:
        try:
            categories = _classes_of(source, cache)
        except DataError as error:
            raise UserError(str(error)) from error
        if categories is not None:
            first = first or (categories, name)
            check_classes(*first, categories, name)
    if first is None:
        return None
    check_number(recipe, first[0])
    return first[0]


def check_number(recipe, categories: list[dict]) -> None:
    """Raises UserError if the recipe's `model.num_classes` is not the number of classes of its data."""
    expected = recipe.model.num_classes
    if expected and expected != len(categories):
        names = ", ".join(category["name"] for category in categories[:NAMED])
        more = ", …" if len(categories) > NAMED else ""
        raise UserError(
            f"model.num_classes is {expected}, the data has {len(categories)} classes ({names}{more}); "
            f"remove it"
        )


def _check_files(source, key):
    missing = [
        f"{key}.{name}: no such file or folder: {source[name]}"
        for name in PATH_KEYS
        if name in source and not pathlib.Path(source[name]).exists()
    ]
    if missing:
        raise UserError(
            f"{'; '.join(missing)} (relative paths begin at the recipe's folder, or at the working directory)"
        )
    if "glob" in source:
        try:
            shards_of(source["glob"])
        except DataError as error:
            advice = "" if "{format:" in str(error) else f", or name raw data: {RAW}"
            raise UserError(f"{key}: {error}{advice}") from error


def _classes_of(source, cache):
    """Classes of a source as a conversion would give them; None if only a conversion can tell."""
    if "glob" in source:
        folder = shards_of(source["glob"])[0].parent
    else:
        folder = converted_folder(source, cache)
    if (folder / "manifest.json").is_file():
        return read_manifest(folder)["categories"]
    form = source.get("format")
    if form == "shapes":
        return shapes.categories_of(source.get("num_classes"), source.get("zipf"))
    if form in JSON_CLASSES:
        keys = ("annotations", "name_fixes", "classes")
        files = tuple((key, source[key]) for key in keys if key in source)
        rename = tuple(sorted(source.get("rename", {}).items()))
        return _json_classes(form, files, tuple(_state(file) for _, file in files), rename)
    if form == "yolo":
        return yolo.categories_of(**{key: value for key, value in source.items() if key != "format"})
    if form == "openimages":
        keys = ("descriptions", "hierarchy", "classes", "rename")
        return openimages.categories_of(**{key: source[key] for key in keys if key in source})
    return read_labels(source["classes"]) if form in ("csv", "voc") and "classes" in source else None


def _state(path):
    state = pathlib.Path(path).stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _json_classes(form, files, state, rename):
    """Kept in memory as long as the files are the same: `state` is part of the key alone."""
    return JSON_CLASSES[form](**dict(files), rename=dict(rename))
