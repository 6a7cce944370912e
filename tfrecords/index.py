"""Where every record lies, and what must be known of its picture before it is read.

The index makes shards readable in any order: a pipeline that knows it can shuffle the whole data set and
start again at any step. Our own shards carry it as index.json; for others, one pass over the files finds it.
"""

import dataclasses
import glob as globbing
import json
import pathlib

import numpy as np

from tfrecords.pictures import decode
from tfrecords.schema import DataError, parse

COLUMNS = {
    "shard": "int32",
    "offset": "int64",
    "image_id": "int64",
    "height": "int32",
    "width": "int32",
    "objects": "int32",
}


@dataclasses.dataclass(frozen=True)
class Index:
    """One row per record, in the order of the shards.

    files:    paths of the shards.
    shard:    (N,) row of `files`.
    offset:   (N,) bytes, where the record begins.
    image_id: (N,)
    height, width: (N,) px of the picture.
    objects:  (N,) boxes that are not crowds.
    """

    files: tuple
    shard: np.ndarray
    offset: np.ndarray
    image_id: np.ndarray
    height: np.ndarray
    width: np.ndarray
    objects: np.ndarray

    def __len__(self):
        return len(self.shard)

    def take(self, rows):
        """The index with these rows alone."""
        return dataclasses.replace(self, **{key: getattr(self, key)[rows] for key in COLUMNS})


def shards_of(pattern):
    """The files of a data set: a directory, a glob, or several of them with commas between."""
    files = []
    for one in str(pattern).split(","):
        path = pathlib.Path(one)
        found = path.glob("*.tfrecord*") if path.is_dir() else map(pathlib.Path, globbing.glob(one))
        files += sorted(f for f in found if f.is_file())
    if not files:
        raise DataError(f"{pattern}: no shards there; `kgarden data build` makes them")
    return files


def open_index(pattern):
    """The index of some shards, from their index.json files or else by reading them once.

    Args:
        pattern: what `shards_of` takes.
    """
    files = shards_of(pattern)
    known = {folder: _load(folder) for folder in {f.parent for f in files}}
    if all(f.name in (known[f.parent] or {}) for f in files):
        parts = [known[f.parent][f.name] for f in files]
        columns = [{key: part[key] for key in COLUMNS if key != "shard"} for part in parts]
    else:
        columns = [_scan(f) for f in files]
    shard = [np.full(len(part["offset"]), number) for number, part in enumerate(columns)]
    joined = {
        key: np.concatenate([part[key] for part in columns]).astype(dtype)
        for key, dtype in COLUMNS.items()
        if key != "shard"
    }
    return Index(tuple(map(str, files)), shard=np.concatenate(shard).astype("int32"), **joined)


def _load(folder):
    path = folder / "index.json"
    return json.loads(path.read_text()) if path.is_file() else None


def record_bytes(serialized):
    """What one record takes in a TFRecord file: length, its checksum, the data, their checksum."""
    return 8 + 4 + len(serialized) + 4


def _scan(file):
    import tensorflow as tf

    if file.read_bytes()[:2] == b"\x1f\x8b":
        raise DataError(f"{file}: a compressed shard cannot be read in any order: unpack it with gunzip")
    columns = {key: [] for key in COLUMNS if key != "shard"}
    offset = 0
    try:
        for serialized in tf.data.TFRecordDataset(str(file)):
            example = parse(serialized)
            height, width = int(example["height"]), int(example["width"])
            if height < 1 or width < 1:
                height, width, _ = decode(example["encoded"]).shape
            row = {
                "offset": offset,
                "image_id": int(example["image_id"]),
                "height": height,
                "width": width,
                "objects": int((~example["crowd"].numpy()).sum()),
            }
            for key, value in row.items():
                columns[key].append(value)
            offset += record_bytes(serialized.numpy())
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise DataError(f"{file}: the record at byte {offset} cannot be read: {error.message}") from None
    return {key: np.asarray(values, COLUMNS[key]) for key, values in columns.items()}
