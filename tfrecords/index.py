"""Index of a data set: file, byte offset, size and number of objects of every record.

The index gives random access to shards: a pipeline can shuffle the whole data set and resume at any step.
Our own shards carry it as index.json; for others, one pass over the files builds it.
"""

import dataclasses
import glob as globbing
import json
import pathlib

import numpy as np

from tfrecords.raw_data import recognise
from tfrecords.scan import Unusable, scan
from tfrecords.schema import DataError
from tfrecords.values import as_int

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
    offset:   (N,) byte offset of the record.
    image_id: (N,)
    height, width: (N,) px of the image.
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
        """The index restricted to these rows."""
        return dataclasses.replace(self, **{key: getattr(self, key)[rows] for key in COLUMNS})


def shards_of(pattern):
    """The shards of a data set: a directory, a glob, or a comma-separated list of them.

    Raises:
        DataError: a part of the list has none; for raw data the message says how it is converted.
    """
    files = []
    for part in _parts(str(pattern)):
        found, raw = _shards(part), recognise(part)
        if raw and (not found or pathlib.Path(part).is_file()):
            raise DataError(f"{part}: no shards found; {raw.advice()}")
        if not found:
            raise DataError(f"{part}: no shards found; `kgarden data build` makes them")
        files += found
    return files


def _parts(pattern):
    """The parts of a comma-separated list; a comma in the name of something that exists separates nothing."""
    words = pattern.split(",")
    while words:
        ends = [n for n in range(len(words), 1, -1) if _shards(",".join(words[:n]).strip())]
        count = ends[0] if ends else 1
        part, words = ",".join(words[:count]).strip(), words[count:]
        if part or not words:
            yield part


def _shards(part):
    path = pathlib.Path(part)
    if part and path.is_dir():
        matches = list(path.glob("*.tfrecord*")) or path.glob("*.record*")
    else:
        matches = map(pathlib.Path, globbing.glob(part))
    return sorted(file for file in matches if file.is_file())


def open_index(pattern):
    """Load the index of shards from their index.json files, or build it by reading them once.

    Args:
        pattern: what `shards_of` takes.
    """
    files = shards_of(pattern)
    known = {folder: _load(folder) for folder in {f.parent for f in files}}
    if all(f.name in (known[f.parent] or {}) for f in files):
        parts = [known[f.parent][f.name] for f in files]
        columns = [{key: part[key] for key in COLUMNS if key != "shard"} for part in parts]
    else:
        columns = _read(files)
    return _joined(files, columns)


def index_of(folder):
    """Load the index of a folder written by `adopt.adopt`, which names its shards by path."""
    columns = _load(folder)
    if not columns:
        raise DataError(f"{folder}: no index.json: delete this folder, and it is made again")
    return _joined(columns.keys(), list(columns.values()))


def _joined(files, columns):
    shard = [np.full(len(part["offset"]), number) for number, part in enumerate(columns)]
    whole = {
        key: np.concatenate([part[key] for part in columns]).astype(dtype)
        for key, dtype in COLUMNS.items()
        if key != "shard"
    }
    return Index(tuple(map(str, files)), shard=np.concatenate(shard).astype("int32"), **whole)


def _load(folder):
    """{shard: {column: list}} of a folder's index.json; None if it has none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "index.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        damaged = not isinstance(content, dict) or not all(map(_is_column_set, content.values()))
    except (OSError, ValueError, RecursionError):
        damaged = True
    if damaged:
        raise DataError(f"{path}: damaged: delete it, and the shards are read instead")
    return content


def _is_column_set(columns):
    """Whether these are the columns of a shard: lists of integers, of one length."""
    if not isinstance(columns, dict):
        return False
    lists = [columns.get(key) for key in COLUMNS if key != "shard"]
    return all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists) and all(
        np.asarray(one or [0]).dtype.kind == "i" for one in lists
    )


def record_bytes(serialized):
    """Size of one record in a TFRecord file: length, its checksum, the data, their checksum."""
    return 8 + 4 + len(serialized) + 4


def numbered(source_ids):
    """Source ids -> integer image ids.

    Decimal ids of int64 are kept. If one is none, or two are equal, all images are numbered from 1.
    """
    numbers = [as_int(one) if one.isascii() and one.isdecimal() else None for one in source_ids]
    plain = None not in numbers and len(set(numbers)) == len(numbers)
    return numbers if plain else list(range(1, len(numbers) + 1))


def _read(files):
    """The columns of each file, from its records."""
    columns, source_ids = [], []
    for file in files:
        rows = [_usable(file, row) for row in scan(file)]
        source_ids += [row.source_id for row in rows]
        columns.append(
            {
                "offset": [row.offset for row in rows],
                "height": [row.height for row in rows],
                "width": [row.width for row in rows],
                "objects": [int((row.usable & ~_filled(row.crowd, len(row.boxes))).sum()) for row in rows],
            }
        )
    ids = iter(numbered(source_ids))
    return [{**part, "image_id": [next(ids) for _ in part["offset"]]} for part in columns]


def _usable(file, row):
    if isinstance(row, Unusable):
        raise DataError(f"{file}: the record at byte {row.offset} cannot be used: {row.reason}")
    return row


def _filled(marks, count):
    return np.array([*marks, *[0] * (count - len(marks))], bool)
