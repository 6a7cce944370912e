"""Data sources of a recipe: converts raw data where needed and opens the data set.

Raw data (`format`) is converted once into a cache directory named by a digest of everything it depends on.
Shards (`glob`) are read in place; for shards of other tools the cache holds the index, the categories and the
ground truth.
"""

import dataclasses
import hashlib
import json
import pathlib
import warnings

import numpy as np

from kgarden.errors import UserError
from tfrecords.adopt import adopt
from tfrecords.converters import yolo
from tfrecords.converters.formats import FORMATS
from tfrecords.index import Index, index_of, open_index, shards_of
from tfrecords.labels import difference
from tfrecords.schema import DataError
from tfrecords.write import read_manifest

CACHE = pathlib.Path("~/.cache/kgarden/data")  # of data sets outside of a run
PATHS = {  # arguments that may be paths
    *("images", "annotations", "root", "split", "classes"),
    *("descriptions", "image_labels", "hierarchy"),
}
ANNOTATIONS = {".xml", ".txt"}  # endings of annotations and lists in a folder


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    index:       position of every record.
    categories:  [{"id", "name"}, ...] in label order.
    annotations: paths of annotations.json, the ground truth in COCO form.
    weight:      sampling frequency of its images, relative to images of other data sets.
    """

    index: Index
    categories: list
    annotations: list
    weight: float = 1.0


def dataset_of(source, cache, *, workers=None, progress=None):
    """Open a data source of a recipe, after converting it if needed.

    Args:
        source:   {"glob": str, "labels": str}, or {"format": str} with the arguments of the converter of that
                  name, see `tfrecords.converters`; and "weight". None means absent.
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
            dataset = open_dataset(source["glob"], cache, source.get("labels"))
        else:
            dataset = _converted(source, pathlib.Path(cache), workers, progress)
            _warn_of_faults(dataset.annotations[0].parent)
        return dataclasses.replace(dataset, weight=weight)
    except DataError as error:
        raise UserError(str(error)) from error


def open_dataset(pattern, cache=None, labels=None):
    """Open shards: our own with their index and ground truth, those of other tools through `adopt`.

    Args:
        pattern: a directory, a glob, or a comma-separated list of them.
        cache:   cache directory; None: that of the user.
        labels:  file with the classes of shards of other tools; None: from their records.
    Raises:
        DataError: no such files, or they cannot be used.
    """
    files = shards_of(pattern)
    folders = list(dict.fromkeys(file.parent for file in files))
    ours = [folder for folder in folders if (folder / "manifest.json").is_file()]
    if not ours:
        folder = adopt(files, cache or CACHE.expanduser(), labels)
        _warn_of_faults(folder)
        categories = read_manifest(folder)["categories"]
        return Dataset(index_of(folder), categories, [folder / "annotations.json"])
    if labels:
        raise DataError(f"{ours[0]}: manifest.json already lists the classes: remove labels")
    categories = [read_manifest(folder)["categories"] for folder in folders]
    _check_equal(categories, folders)
    if pathlib.Path(pattern).is_dir():
        _warn_of_other_shards(files, folders[0])
    return Dataset(open_index(pattern), categories[0], [folder / "annotations.json" for folder in folders])


def joined(datasets):
    """Concatenate data sets with equal categories."""
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


def _check_equal(categories, sources):
    for other, source in zip(categories, sources, strict=True):
        if how := difference(categories[0], other, names=(sources[0], source)):
            raise DataError(
                f"{source}: its categories differ from those of {sources[0]}: {how}; build them with one "
                f"list (--classes)"
            )


def converted_folder(source, cache):
    """The folder of a raw source, once it is converted.

    Args:
        source: as in `dataset_of`, without its weight.
        cache:  pathlib.Path, directory for converted data.
    """
    return cache / f"{source['format']}-{_digest(source)}"


def _converted(source, cache, workers, progress):
    arguments = dict(source)
    build = FORMATS[arguments.pop("format")]
    folder = converted_folder(source, cache)
    if not (folder / "manifest.json").is_file():
        build(folder, workers=workers, progress=progress, **arguments)
    return open_dataset(folder)


def _warn_of_faults(folder):
    """Warn of images and boxes that the conversion left out."""
    manifest = read_manifest(folder)
    boxes = sum(manifest["dropped"].values())
    if boxes or manifest["faulty_pictures"]:
        warnings.warn(
            f"left out: {manifest['faulty_pictures']} of {manifest['images_total']} images, {boxes} of "
            f"{manifest['boxes_total']} boxes: {folder / 'manifest.json'} says which and why"
            + "".join(f" (first: {one['where']}: {one['reason']})" for one in manifest["faults"][:1]),
            stacklevel=3,
        )


def _warn_of_other_shards(files, folder):
    """Warn if a data set's directory lacks a shard that its manifest lists, or holds another one."""
    listed = {pathlib.Path(shard["file"]).name for shard in read_manifest(folder)["shards"]}
    found = {file.name for file in files}
    for names, how in (
        (listed - found, "missing"),
        (found - listed, "not listed there"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            warnings.warn(
                f"{folder}: by its manifest.json the shard {min(names)} is {how}{more}; "
                f"`kgarden data check` lists what is wrong",
                stacklevel=3,
            )


def _digest(source):
    """Digest of the settings and of the state of the files that they name."""
    facts = dict(source)
    if source["format"] == "yolo":  # data.yaml names folders and lists of its own
        read = yolo.inputs(**{key: value for key, value in source.items() if key != "format"})
        facts["inputs"] = [[image, label and _state(pathlib.Path(label))] for image, label in read]
    for key in PATHS & facts.keys():
        path = pathlib.Path(facts[key])
        facts[key] = [str(path.resolve()), _state(path)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _state(path):
    """Sizes and modification times of a file, or of the annotations in a folder."""
    inside = path.rglob("*") if path.is_dir() else []
    files = (
        [path] if path.is_file() else sorted(file for file in inside if file.suffix.lower() in ANNOTATIONS)
    )
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
