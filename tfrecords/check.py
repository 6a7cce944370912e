"""Consistency check of a data set: reads every record, decodes every image, compares every file.

The check does not stop at a fault: it counts faults by kind, records where each was found, and continues.
Shards may be of any origin; the files that only our own data sets have (manifest.json, index.json,
annotations.json) are compared where they exist.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import tempfile

import numpy as np

from tfrecords.data_statistics import facts_of_manifest, facts_of_rows
from tfrecords.images import decode, decode_mask
from tfrecords.index import shards_of
from tfrecords.plausibility import findings
from tfrecords.records import compression_of, unpack, walk
from tfrecords.schema import SIDES, DataError
from tfrecords.write import read_manifest

AT_ONCE = 256  # records per batch of the thread pool that decodes images
HAIR = 1e-6  # of a side: tolerance for float32 rounding of boxes at the border
NEAR = 0.01  # px, tolerance between a box of a record (float32 fractions) and of annotations.json

OBJECT = "image/object/"


@dataclasses.dataclass
class Findings:
    """Result of a check: counts, and faults by kind.

    faults: kind -> where each was found, in the order of the shards.
    facts:  folder -> Facts of its data set, what `plausibility.findings` judges.
    """

    shards: int = 0
    records: int = 0
    objects: int = 0
    faults: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    facts: dict = dataclasses.field(default_factory=dict)

    def add(self, kind, where):
        self.faults[kind].append(str(where))

    def plain(self):
        """As a dictionary that JSON can hold."""
        counts = {kind: len(where) for kind, where in self.faults.items()}
        return {
            "shards": self.shards,
            "records": self.records,
            "objects": self.objects,
            "faults": counts,
            "where": dict(self.faults),
            "findings": {
                str(folder): [one._asdict() for one in findings(f)] for folder, f in self.facts.items()
            },
        }


def check(pattern, progress=None):
    """Check every record, image and side file of a data set.

    Args:
        pattern:  a directory, a glob, or a comma-separated list of them.
        progress: function of (shards done, shards in all).
    Returns:
        Findings
    Raises:
        DataError: there are no shards, or one is compressed and cannot be decompressed.
    """
    files = shards_of(pattern)
    findings, row_of = Findings(shards=len(files)), {}
    folders = {folder: _Folder(folder, findings) for folder in dict.fromkeys(file.parent for file in files)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, file in enumerate(files, 1):
            folder = folders[file.parent]
            folder.compare_shard(file)
            with _plain(file) as plain:
                if not plain.stat().st_size and not folder.is_listed_as_empty(file):
                    findings.add("shard without a record: the file is empty", file.name)
                rows = _check_shard(
                    plain, folder.categories, folder.manifest is not None, findings=findings, pool=pool
                )
            for row in rows:
                duplicate = (file.parent, row.image_id) in row_of
                if duplicate and row.image_id is not None:
                    findings.add(f"image id in {file.parent.name} given to two images", row.where)
                row_of[file.parent, row.image_id] = row
            folder.compare_index(file, rows)
            folder.read[file.name] = rows
            if progress is not None:
                progress(done, len(files))
    for path, folder in folders.items():
        folder.compare_truth()
        findings.facts[path] = folder.facts()
    findings.faults = dict(findings.faults)
    return findings


@contextlib.contextmanager
def _plain(file):
    """The shard itself, or a temporary decompressed copy of it."""
    packed = compression_of(file)
    if packed is None:
        yield file
    elif packed == "gzip":
        with tempfile.TemporaryDirectory() as folder:
            unpack(file, pathlib.Path(folder, file.name))
            yield pathlib.Path(folder, file.name)
    else:
        raise DataError(f"{file}: is compressed with {packed}: decompress it first")


# --- one shard ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Row:
    """Fields of a record with which index.json and annotations.json must agree."""

    where: str
    offset: int
    image_id: int | None  # None: not a decimal number
    height: int
    width: int
    boxes: np.ndarray  # (N, 4) xyxy px
    category_ids: tuple
    crowd: np.ndarray  # (N,) bool


def _check_shard(file, categories, is_ours, findings, pool):
    rows = []
    records = _records(file, findings)
    while several := list(itertools.islice(records, AT_ONCE)):
        checked = pool.map(lambda one: _check_record(file, *one, categories, is_ours), several)
        for row, faults, objects in checked:
            findings.records += 1
            findings.objects += objects
            for kind, where in faults:
                findings.add(kind, where)
            if row is not None:
                rows.append(row)
    return rows


def _records(file, findings):
    """(offset, bytes) of every intact record; damaged ones are reported and skipped."""
    for offset, data, fault in walk(file):
        if data is None:
            findings.add(fault, f"{file.name}, byte {offset}")
        else:
            yield offset, data


# --- one record -----------------------------------------------------------------------------------


def _check_record(file, offset, data, categories, is_ours):
    """(row or None, [(kind, where)], number of objects) of one record."""
    import tensorflow as tf

    where = f"{file.name}, byte {offset}"
    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception:  # protobuf's own error has no public name that all of its versions share
        return None, [("not a tf.train.Example", where)], 0
    name = _text(features, "image/filename") or _text(features, "image/source_id")
    where = f"{where} ({name})" if name else where
    faults = []
    height, width = _check_image(features, faults)
    boxes, objects = _check_boxes(features, faults)
    _check_classes(features, len(boxes), categories, faults)
    _check_masks(features, len(boxes), height, width=width, faults=faults)
    image_id = _text(features, "image/source_id")
    image_id = int(image_id) if image_id.isascii() and image_id.isdecimal() else None
    if is_ours and image_id is None:
        faults.append("image/source_id is not a decimal number")
    row = _Row(
        where,
        offset,
        image_id,
        height=height,
        width=width,
        boxes=boxes * [width, height, width, height],
        category_ids=tuple(_ints(features, OBJECT + "class/label")),
        crowd=np.array(_ints(features, OBJECT + "is_crowd")[: len(boxes)] or [0] * len(boxes), bool),
    )
    return row, [(kind, where) for kind in faults], objects


def _check_image(features, faults):
    """(height, width) of the image; if it does not decode, those that the record declares."""
    import tensorflow as tf

    encoded = b"".join(_bytes(features, "image/encoded"))
    declared = [(_ints(features, f"image/{side}") or [0])[0] for side in ("height", "width")]
    digest = _text(features, "image/key/sha256")
    if digest and hashlib.sha256(encoded).hexdigest() != digest.lower():
        faults.append("image differs from image/key/sha256")
    if not encoded:
        faults.append("no image in image/encoded")
        return declared
    try:
        height, width, _ = decode(encoded).shape
    except (tf.errors.OpError, ValueError):
        faults.append("image does not decode")
        return declared
    if declared != [0, 0] and declared != [height, width]:
        faults.append("image of another size than image/height and image/width")
    return height, width


def _check_boxes(features, faults):
    """((N, 4) xyxy fractions, number of objects); each kind of fault at most once per record."""
    sides = [_floats(features, f"{OBJECT}bbox/{side}") for side in SIDES]
    if len({len(side) for side in sides}) > 1:
        faults.append("xmin, ymin, xmax, ymax of different lengths")
        return np.zeros((0, 4)), 0
    boxes = np.array(sides, "float64").T.reshape(-1, 4)
    if not np.isfinite(boxes).all():
        faults.append("box that is not finite")
        return boxes, len(boxes)
    if (boxes < -HAIR).any() or (boxes > 1 + HAIR).any():
        faults.append("box outside of the image")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        faults.append("box without area")
    areas = np.array(_floats(features, OBJECT + "area"))
    if not (np.isfinite(areas).all() and (areas >= 0).all()):
        faults.append("area that is negative or not finite")
    return boxes, len(boxes)


def _check_classes(features, count, categories, faults):
    labels = _ints(features, OBJECT + "class/label")
    if len(labels) != count:
        faults.append("more or fewer class/label than boxes")
    if categories is not None and not set(labels) <= categories.keys():
        faults.append("category id that the manifest does not list")
    texts = [text.decode(errors="replace").strip() for text in _bytes(features, OBJECT + "class/text")]
    if categories is not None and len(texts) == len(labels):
        if any(categories.get(label, text) != text for label, text in zip(labels, texts, strict=True)):
            faults.append("class/text that is not the name of class/label")
    for key in ("is_crowd", "difficult"):
        if len(values := _ints(features, OBJECT + key)) not in (0, count) or not set(values) <= {0, 1}:
            faults.append(f"{key} that is not one 0 or 1 for each box")


def _check_masks(features, count, height, width, faults):
    import tensorflow as tf

    masks = _bytes(features, OBJECT + "mask")
    if len(masks) not in (0, count):
        faults.append("more or fewer masks than boxes")
    for mask in filter(None, masks):
        try:
            if tuple(decode_mask(mask).shape) != (height, width):
                faults.append("mask of another size than the image")
                return
        except tf.errors.OpError:
            faults.append("mask that does not decode")
            return


def _bytes(features, key):
    return list(features[key].bytes_list.value) if key in features else []


def _ints(features, key):
    return list(features[key].int64_list.value) if key in features else []


def _floats(features, key):
    return list(features[key].float_list.value) if key in features else []


def _text(features, key):
    return (_bytes(features, key) or [b""])[0].decode(errors="replace")


# --- the files beside the shards ------------------------------------------------------------------


class _Folder:
    """A directory with its manifest, index and ground truth, where they exist."""

    def __init__(self, path, findings):
        self.path, self.findings, self.read = path, findings, {}
        self.manifest = read_manifest(path) if (path / "manifest.json").is_file() else None
        self.index, self.truth = self._load("index.json"), self._load("annotations.json")
        self.categories = self.shards = None
        if self.manifest is not None:
            self.categories = {one["id"]: one["name"] for one in self.manifest["categories"]}
            self.shards = {one["file"]: one for one in self.manifest["shards"]}

    def _load(self, name):
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
            self.findings.add(f"{name} is of another form", self.path)
        except FileNotFoundError:
            if self.manifest is not None:
                self.findings.add(f"{name} is missing", self.path)
        except ValueError:
            self.findings.add(f"{name} is not JSON", self.path)
        return None

    def compare_shard(self, file):
        """Bytes and digest of a shard against the manifest."""
        if self.shards is None:
            return
        listed = self.shards.get(file.name)
        if listed is None:
            self.findings.add("shard that the manifest does not list", file.name)
        elif listed["bytes"] != file.stat().st_size:
            self.findings.add("shard of another length than in the manifest", file.name)
        elif listed["sha256"] != _sha256(file):
            self.findings.add("shard with another digest than in the manifest", file.name)

    def is_listed_as_empty(self, file):
        """Whether the manifest knows that no image of a shard could be used."""
        return (self.shards or {}).get(file.name, {}).get("records") == 0

    def facts(self):
        """Facts of the data set: those of the manifest, else of the records that were read."""
        if self.manifest is not None and "statistics" in self.manifest:
            return facts_of_manifest(self.manifest)
        return facts_of_rows((row for rows in self.read.values() for row in rows), self.categories)

    def compare_index(self, file, rows):
        """index.json against the records that were read."""
        part = (self.index or {}).get(file.name)
        if part is None:
            if self.index is not None:
                self.findings.add("shard that index.json does not list", file.name)
            return
        for key, of_row in {
            "offset": lambda row: row.offset,
            "image_id": lambda row: row.image_id,
            "height": lambda row: row.height,
            "width": lambda row: row.width,
            "objects": lambda row: int((~row.crowd).sum()),
        }.items():
            if not isinstance(part, dict) or part.get(key) != [of_row(row) for row in rows]:
                self.findings.add(f"index.json has another {key} than the records", file.name)

    def compare_truth(self):
        """annotations.json against the records, if every shard of the directory was read."""
        for name in set(self.shards or ()) - {file.name for file in self.path.iterdir()}:
            self.findings.add("shard of the manifest that is not there", self.path / name)
        if self.truth is None or set(self.read) != set(self.shards or ()):
            return
        try:
            self._compare_truth()
        except (KeyError, TypeError, ValueError):
            self.findings.add("annotations.json is of another form", self.path)

    def _compare_truth(self):
        of_image = collections.defaultdict(list)
        for one in self.truth["annotations"]:
            of_image[one["image_id"]].append(one)
        rows = {row.image_id: row for several in self.read.values() for row in several}
        for image_id in rows.keys() ^ {image["id"] for image in self.truth["images"]}:
            where = "annotations.json" if image_id in rows else "the shards"
            self.findings.add(f"image that is missing in {where}", f"{self.path.name}, image {image_id}")
        for image_id, row in rows.items():
            if not _is_same(row, of_image[image_id]):
                self.findings.add("annotations.json has other objects than the record", row.where)


def _is_same(row, annotations):
    """Do the objects of a record, in their order, equal those of annotations.json?"""
    if [one["category_id"] for one in annotations] != list(row.category_ids):
        return False
    boxes = np.array([one["bbox"] for one in annotations], "float64").reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    crowd = np.array([one.get("iscrowd", 0) for one in annotations], bool)
    return (
        boxes.shape == row.boxes.shape
        and np.allclose(boxes, row.boxes, atol=NEAR)
        and (crowd == row.crowd).all()
    )


def _sha256(path):
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
