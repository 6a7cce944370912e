"""Data sets that a recipe names: converts raw data if need be and opens it.

Raw data (`format`) is converted once into a cache directory, under a name made of everything it depends
on; shards (`glob`) are taken as they are, and of those that others wrote the cache holds the index, the
categories and the ground truth.
"""

import dataclasses
import hashlib
import json
import pathlib
import warnings

import numpy as np

from kgarden.errors import UserError
from tfrecords.adopt import adopt
from tfrecords.converters.formats import FORMATS
from tfrecords.index import Index, index_of, open_index, shards_of
from tfrecords.schema import DataError
from tfrecords.write import read_manifest

CACHE = pathlib.Path("~/.cache/kgarden/data")  # of data sets that belong to no run
PATHS = {"images", "annotations", "root", "split", "classes"}  # arguments that may name files


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images on disk.

    index:       where they lie.
    categories:  [{"id", "name"}, ...] in label order.
    annotations: paths of annotations.json, the ground truth in COCO form.
    weight:      how often one of its images is drawn, relative to images of other data sets.
    """

    index: Index
    categories: list
    annotations: list
    weight: float = 1.0


def dataset_of(source, cache, *, workers=None, progress=None):
    """Open what a recipe names, after converting it if need be.

    Args:
        source:   {"glob": str, "labels": str}, or {"format": str} with the arguments of the converter of that
                  name, see `tfrecords.converters`; and "weight". None counts as not given.
        cache:    directory for converted data.
        workers:  see `tfrecords.write.write`.
        progress: function of (images done, images in all), called while converting.
    Returns:
        Dataset
    Raises:
        UserError: no such files, or they cannot be used.
    """
    source = {key: value for key, value in dict(source).items() if value is not None}
    weight = source.pop("weight", 1.0)
    try:
        if "glob" in source:
            found = open_dataset(source["glob"], cache, source.get("labels"))
        else:
            found = _converted(source, pathlib.Path(cache), workers, progress)
            _tell(found.annotations[0].parent)
        return dataclasses.replace(found, weight=weight)
    except DataError as error:
        raise UserError(str(error)) from error


def open_dataset(pattern, cache=None, labels=None):
    """Shards: ours with what lies beside them, others with what one pass over them finds.

    Args:
        pattern: a directory, a glob, or several of them with commas between.
        cache:   directory for what is found; None: of this user.
        labels:  file with the classes of shards that others wrote; None: by their records.
    Raises:
        DataError: no such files, or they cannot be used.
    """
    files = shards_of(pattern)
    folders = list(dict.fromkeys(file.parent for file in files))
    ours = [folder for folder in folders if (folder / "manifest.json").is_file()]
    if not ours:
        folder = adopt(files, cache or CACHE.expanduser(), labels)
        _tell(folder)
        categories = read_manifest(folder)["categories"]
        return Dataset(index_of(folder), categories, [folder / "annotations.json"])
    if labels:
        raise DataError(f"{ours[0]}: its manifest.json says what the classes are: leave labels out")
    categories = [read_manifest(folder)["categories"] for folder in folders]
    _check_equal(categories, folders)
    return Dataset(open_index(pattern), categories[0], [folder / "annotations.json" for folder in folders])


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
    build = FORMATS[arguments.pop("format")]
    folder = cache / f"{source['format']}-{_digest(source)}"
    if not (folder / "manifest.json").is_file():
        build(folder, workers=workers, progress=progress, **arguments)
    return open_dataset(folder)


def _tell(folder):
    """A recipe's data may have faults as well as a command's: not unseen."""
    found = read_manifest(folder)
    boxes = sum(found["dropped"].values())
    if boxes or found["faulty_pictures"]:
        warnings.warn(
            f"left out: {found['faulty_pictures']} of {found['images_total']} images, {boxes} of "
            f"{found['boxes_total']} boxes: {folder / 'manifest.json'} says which and why",
            stacklevel=3,
        )


def _digest(source):
    """Changes with the settings and with the files that are named."""
    facts = dict(source)
    for key in PATHS & facts.keys():
        path = pathlib.Path(facts[key])
        facts[key] = [str(path.resolve()), _state(path)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _state(path):
    """Of a file, or of the annotations in a folder: sizes and times."""
    inside = [*path.rglob("*.xml"), *path.glob("ImageSets/Main/*.txt")] if path.is_dir() else []
    files = [path] if path.is_file() else sorted(inside)
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
