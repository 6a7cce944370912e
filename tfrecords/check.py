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

from tfrecords.check_record import check_record
from tfrecords.data_statistics import facts_of_manifest, facts_of_rows
from tfrecords.index import shards_of
from tfrecords.plausibility import findings
from tfrecords.records import compression_of, unpack, walk
from tfrecords.schema import DataError
from tfrecords.write import read_manifest

AT_ONCE = 256  # records per batch of the thread pool that decodes images
NEAR = 0.01  # px, tolerance between a box of a record (float32 fractions) and of annotations.json


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


def _check_shard(file, categories, is_ours, findings, pool):
    rows = []
    records = _records(file, findings)
    while several := list(itertools.islice(records, AT_ONCE)):
        checked = pool.map(lambda one: check_record(file, *one, categories, is_ours), several)
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
        image_of = {image["id"]: image for image in self.truth["images"]}
        for image_id, row in rows.items():
            if not _is_same(row, of_image[image_id]):
                self.findings.add("annotations.json has other objects than the record", row.where)
            image = image_of.get(image_id, {})
            keys = ("pos_category_ids", "neg_category_ids", "not_exhaustive_category_ids")
            if (*row.verified, row.not_exhaustive) != tuple(tuple(image.get(key, ())) for key in keys):
                self.findings.add("annotations.json has other image-level labels than the record", row.where)


def _is_same(row, annotations):
    """Do the objects of a record, in their order, equal those of annotations.json?"""
    if [one["category_id"] for one in annotations] != list(row.category_ids):
        return False
    boxes = np.array([one["bbox"] for one in annotations], "float64").reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    crowd, group_of = (
        np.array([one.get(key, 0) for one in annotations], bool) for key in ("iscrowd", "is_group_of")
    )
    return (
        boxes.shape == row.boxes.shape
        and np.allclose(boxes, row.boxes, atol=NEAR)
        and (crowd == row.crowd).all()
        and (group_of == row.group_of).all()
    )


def _sha256(path):
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
