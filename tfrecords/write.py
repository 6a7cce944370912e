"""Records -> a data set on disk: shards, manifest.json, annotations.json, index.json.

A data set is one directory. It is written beside its place and renamed when it is whole, so that a
directory that exists is complete. Every picture is one job; jobs run in a pool of processes, and record k
goes to shard k modulo the number of shards.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import time

from tfrecords.index import COLUMNS, record_bytes
from tfrecords.schema import DataError

NAMED_FAULTS = 200  # so many faults are named in the manifest; all are counted
POOL_FROM = 2000  # fewer pictures than that are done before a pool has started


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something of the source that is not in the data set."""

    where: str
    reason: str

    def __str__(self):
        return f"{self.where}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a job gives: one picture with its objects.

    serialized:  bytes of the tf.train.Example.
    image:       {"id", "file_name", "height", "width"} for annotations.json.
    annotations: [{"category_id", "bbox" (xywh px), "area", "iscrowd"}, ...].
    faults:      boxes that were left out.
    clipped:     how many boxes reached out of the picture and were cut at its border.
    """

    serialized: bytes
    image: dict
    annotations: list
    faults: list = ()
    clipped: int = 0


@dataclasses.dataclass
class Report:
    """What a build made, and what it left out."""

    to: pathlib.Path
    categories: list  # [{"id", "name"}, ...] in label order
    images: int = 0
    images_without_objects: int = 0
    boxes: int = 0  # crowds included
    crowds: int = 0
    clipped: int = 0
    boxes_per_category: dict = dataclasses.field(default_factory=dict)  # name -> count
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # reason -> boxes
    faulty_pictures: int = 0
    faults: list = dataclasses.field(default_factory=list)
    shards: list = dataclasses.field(default_factory=list)  # [{"file", "records", "bytes", "sha256"}]
    seconds: float = 0.0


def write(
    to, jobs, work, categories, *, source, shards=None, workers=None, strict=False, faults=(), progress=None
):
    """Do all jobs and write the data set.

    Args:
        to:         directory of the data set; must not exist yet, or be empty.
        jobs:       list; the order of the records.
        work:       function of one job -> Record, or Fault if the picture cannot be used. It and the jobs
                    must be picklable.
        categories: [{"id", "name"}, ...] in label order.
        source:     dict for the manifest: what the data set was made from.
        shards:     number of files. None: 8, and more from 8,000 pictures on.
        workers:    number of processes. None: one per CPU for large sets, none for small ones.
        strict:     raise at the first fault instead of counting it.
        faults:     [Fault] of boxes that were found before the jobs.
        progress:   function of (pictures done, pictures in all), called now and then.
    Returns:
        Report
    Raises:
        DataError: `to` is taken, nothing is left to write, or a fault under `strict`.
    """
    started = time.monotonic()
    to = pathlib.Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"{to}: is there already: delete it or choose another directory")
    report = Report(to, categories)
    _count_faults(report, faults, strict)

    aside = to.with_name(f".{to.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _write_into(aside, to.name, report, jobs, work, shards, workers, strict, progress)
        report.seconds = round(time.monotonic() - started, 3)
        _write_json(aside / "manifest.json", {"source": source, **_manifest(report)}, indent=1)
        aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def read_manifest(folder):
    """manifest.json of a data set directory, as a dictionary."""
    path = pathlib.Path(folder) / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: these shards have no manifest") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): build the data set again") from None


def _write_into(folder, name, report, jobs, work, shards, workers, strict, progress):
    import tensorflow as tf

    shards = shards or max(1, min(len(jobs), max(8, math.ceil(len(jobs) / 1000))))
    files = [f"{name}-{n:05d}-of-{shards:05d}.tfrecord" for n in range(shards)]
    index = {file: {key: [] for key in COLUMNS if key != "shard"} for file in files}
    sizes = collections.Counter()
    truth = {"images": [], "annotations": [], "categories": report.categories}
    names = {category["id"]: category["name"] for category in report.categories}
    report.boxes_per_category = dict.fromkeys(names.values(), 0)

    with _Writers(tf, folder, files) as writers:
        for done, record in enumerate(_run(jobs, work, workers), 1):
            if progress is not None and (done % 50 == 0 or done == len(jobs)):
                progress(done, len(jobs))
            if isinstance(record, Fault):
                report.faulty_pictures += 1
                _name_fault(report, record, strict)
                continue
            file = files[report.images % shards]
            writers[file].write(record.serialized)
            objects = sum(not a["iscrowd"] for a in record.annotations)
            row = {
                "offset": sizes[file],
                "image_id": record.image["id"],
                "objects": objects,
                "height": record.image["height"],
                "width": record.image["width"],
            }
            for key, value in row.items():
                index[file][key].append(value)
            sizes[file] += record_bytes(record.serialized)
            _count(report, record, names, strict)
            _add_truth(truth, record)
    if not report.images:
        why = f"; the first fault: {report.faults[0]}" if report.faults else ""
        raise DataError(f"{report.to}: not one picture can be used{why}")
    report.shards = [
        {
            "file": file,
            "records": len(index[file]["offset"]),
            "bytes": sizes[file],
            "sha256": _sha256(folder / file),
        }
        for file in files
    ]
    _write_json(folder / "annotations.json", truth)
    _write_json(folder / "index.json", index)


class _Writers(dict):
    """File name -> open TFRecordWriter; all closed at the end."""

    def __init__(self, tf, folder, files):
        super().__init__({file: tf.io.TFRecordWriter(str(folder / file)) for file in files})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for writer in self.values():
            writer.close()


def _run(jobs, work, workers):
    """Results of all jobs in order; never more than a window of them in memory."""
    if workers is None:
        workers = os.cpu_count() if len(jobs) >= POOL_FROM else 0
    if workers < 2:
        yield from map(work, jobs)
        return
    # Forking a process in which TensorFlow runs threads hangs sooner or later.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=_be_quiet) as pool:
        remaining = iter(jobs)
        while window := list(itertools.islice(remaining, 64 * workers)):
            yield from pool.map(work, window, chunksize=8)


def _be_quiet():
    """A worker takes no accelerator and prints no banner."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _count(report, record, names, strict):
    report.images += 1
    report.clipped += record.clipped
    report.images_without_objects += not any(not a["iscrowd"] for a in record.annotations)
    for annotation in record.annotations:
        report.boxes += 1
        report.crowds += annotation["iscrowd"]
        report.boxes_per_category[names[annotation["category_id"]]] += 1
    _count_faults(report, record.faults, strict)


def _count_faults(report, faults, strict):
    for fault in faults:
        report.dropped[fault.reason] += 1
        _name_fault(report, fault, strict)


def _name_fault(report, fault, strict):
    if strict:
        raise DataError(str(fault))
    report.faults.append(fault)


def _add_truth(truth, record):
    truth["images"].append(record.image)
    for annotation in record.annotations:
        # pycocotools takes the id 0 for "no match": count from 1
        truth["annotations"].append(
            {"id": len(truth["annotations"]) + 1, "image_id": record.image["id"], **annotation}
        )


def _manifest(report):
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    del fields["to"]
    named = [dataclasses.asdict(fault) for fault in report.faults[:NAMED_FAULTS]]
    return {**fields, "dropped": dict(report.dropped), "faults": named}


def _write_json(path, content, indent=None):
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
