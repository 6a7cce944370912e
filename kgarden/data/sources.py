"""What a recipe names as data -> a data set on disk, opened.

Raw data (`format`) is converted once into a cache directory, under a name made of everything it depends
on; shards (`glob`) are taken as they are.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from kgarden.schema import UserError
from tfrecords import coco, shapes
from tfrecords.index import Index, open_index
from tfrecords.schema import DataError
from tfrecords.write import read_manifest


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Pictures on disk.

    index:       where they lie.
    categories:  [{"id", "name"}, ...] in label order.
    annotations: paths of annotations.json, the ground truth in COCO form.
    weight:      how often one of its pictures is drawn, relative to pictures of other data sets.
    """

    index: Index
    categories: list
    annotations: list
    weight: float = 1.0


def dataset_of(source, cache, *, workers=None, progress=None):
    """Open what a recipe names, after converting it if need be.

    Args:
        source:   {"glob": str}, {"format": "coco", "images": str, "annotations": str} or {"format": "shapes",
                  "count": int, "seed": int, "size_hw": (h, w)}, and "weight". None counts as not given.
        cache:    directory for converted data.
        workers:  see `tfrecords.write.write`.
        progress: function of (pictures done, pictures in all), called while converting.
    Returns:
        Dataset
    Raises:
        UserError: no such files, or they cannot be used.
    """
    source = {key: value for key, value in dict(source).items() if value is not None}
    weight = source.pop("weight", 1.0)
    try:
        if "glob" in source:
            return dataclasses.replace(open_dataset(source["glob"]), weight=weight)
        return dataclasses.replace(_converted(source, pathlib.Path(cache), workers, progress), weight=weight)
    except DataError as error:
        raise UserError(str(error)) from error


def open_dataset(pattern):
    """Shards with their manifests beside them.

    Args:
        pattern: a directory, a glob, or several of them with commas between.
    """
    index = open_index(pattern)
    folders = list(dict.fromkeys(pathlib.Path(file).parent for file in index.files))
    categories = [read_manifest(folder)["categories"] for folder in folders]
    _check_equal(categories, folders)
    return Dataset(index, categories[0], [folder / "annotations.json" for folder in folders])


def joined(datasets):
    """Several data sets as one, rows of the first one first; they must have the same categories."""
    _check_equal([d.categories for d in datasets], [d.index.files[0] for d in datasets])
    shard_before = np.cumsum([0] + [len(d.index.files) for d in datasets])
    columns = {
        field.name: np.concatenate([getattr(d.index, field.name) for d in datasets])
        for field in dataclasses.fields(Index)
        if field.name not in ("files", "shard")
    }
    shard = [d.index.shard + before for d, before in zip(datasets, shard_before, strict=False)]
    files = tuple(file for d in datasets for file in d.index.files)
    index = Index(files, shard=np.concatenate(shard), **columns)
    return Dataset(index, datasets[0].categories, [path for d in datasets for path in d.annotations])


def _check_equal(categories, places):
    for other, place in zip(categories, places, strict=True):
        if other != categories[0]:
            raise DataError(
                f"{place}: its categories differ from those of {places[0]}: "
                "data sets that are used together need the same list"
            )


def _converted(source, cache, workers, progress):
    arguments = dict(source)
    build = {"coco": coco.build, "shapes": shapes.build}[arguments.pop("format")]
    folder = cache / f"{source['format']}-{_digest(source)}"
    if not (folder / "manifest.json").is_file():
        try:
            build(folder, workers=workers, progress=progress, **arguments)
        except OSError:
            if not (folder / "manifest.json").is_file():  # another process was faster
                raise
    return open_dataset(folder)


def _digest(source):
    """Changes with the settings and with the annotation file."""
    facts = dict(source)
    path = pathlib.Path(source.get("annotations", ""))
    if path.is_file():
        facts["state"] = [path.stat().st_size, path.stat().st_mtime_ns]
    for key in ("images", "annotations"):
        if key in facts:
            facts[key] = str(pathlib.Path(facts[key]).resolve())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
