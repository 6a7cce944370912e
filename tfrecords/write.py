"""Writes a data set: shards, manifest.json, annotations.json, index.json.

A data set is one directory. It is written to a temporary directory and renamed, so that a directory that
exists is complete. Every shard is one task of a process pool; job k goes to shard k modulo the number of
shards. Complete shards survive an interruption and are reused by the next call (`shard.py`).
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import time

from tfrecords import shard as shard_files
from tfrecords.conversion_report import Faults, Report, report_of
from tfrecords.files import Unfinished, writing
from tfrecords.finish import finish
from tfrecords.pool import make_all
from tfrecords.schema import DataError

FORM = 2  # version of the files; interrupted work of another version is not reused
PER_SHARD = 1000  # images
LOCK = "lock"  # the file in the temporary directory that the process writing it holds locked


def write(
    to,
    jobs,
    work,
    categories,
    *,
    source,
    state_of=None,
    boxes_total=None,
    before=None,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Run all jobs and write the data set, or resume an interrupted call.

    Args:
        to:          directory of the data set; must not exist yet, or be empty.
        jobs:        sequence of JSON-serialisable values; the order of the records.
        work:        function of one job -> Record, or Fault if the image cannot be used. It and the jobs
                     must be picklable.
        categories:  [{"id", "name"}, ...] in label order.
        source:      dict for the manifest: origin of the data set.
        state_of:    function of a job -> state (size, time) of the files that it reads.
        boxes_total: boxes in the source, see `Report.close`. None: all that the jobs read.
        before:      Faults of the annotations, found before the jobs.
        shards:      number of files. None: 8, more above 8,000 images.
        workers:     number of processes, or `tfrecords.beam.BeamWorkers`. None: one process per CPU for large
                     sets, none for small ones.
        strict:      raise at the first fault instead of counting it.
        progress:    function of (images done, images in all), called every few images.
    Returns:
        Report
    Raises:
        DataError: `to` exists, no image can be used, a fault under `strict`, or the disk is full.
    """
    started = time.monotonic()
    to, before = pathlib.Path(to), before or Faults()
    if _is_taken(to):
        raise DataError(f"{to}: already exists: delete it or choose another directory")
    count = shards or max(1, min(len(jobs), max(8, math.ceil(len(jobs) / PER_SHARD))))
    plan = [_digest(source, categories, jobs[n::count], state_of) for n in range(count)]
    report = Report(to, categories, strict=strict, plan=hashlib.sha256("".join(plan).encode()).hexdigest())
    for fault in before.images:
        report.leave_out(fault)
    report.drop(before.boxes)
    report.remark(before.remarks)

    with alone(to) as aside:
        if _is_taken(to):  # another process built it while this one waited
            shutil.rmtree(aside)
            return _built(to, report.plan)
        try:
            files = [aside / f"{to.name}-{n:05d}-of-{count:05d}.tfrecord" for n in range(count)]
            _keep_only(aside, files)
            tasks = [
                (file, key, jobs[n::count]) for n, (file, key) in enumerate(zip(files, plan, strict=True))
            ]
            make_all(tasks, work, strict=strict, workers=workers, progress=progress)
            finish(
                aside,
                files,
                jobs,
                source=source,
                report=report,
                images_total=len(jobs) + len(before.images),
                boxes_total=boxes_total,
            )
        except Unfinished:
            raise
        except DataError:
            shutil.rmtree(aside)
            raise
        aside.rename(to)
        (to / LOCK).unlink()
    report.seconds = round(time.monotonic() - started, 3)
    return report


def read_manifest(folder):
    """manifest.json of a data set directory, as a dictionary.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = pathlib.Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: these shards have no manifest") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}): build the data set again") from None
    if key := _damaged_key(manifest):
        raise DataError(f"{path}: damaged ({key}): build the data set again")
    return manifest


def _damaged_key(manifest):
    """The first key of a manifest whose value cannot be one of ours, or None."""
    if not isinstance(manifest, dict):
        return "no dictionary"
    texts = {"categories": "name", "shards": "file"}
    numbers = ("images", "images_total", "boxes_total", "faulty_pictures")
    checks = {
        key: lambda value, text=text: (
            isinstance(value, list)
            and all(isinstance(one, dict) and isinstance(one.get(text), str) for one in value)
        )
        for key, text in texts.items()
    }
    checks["dropped"] = lambda value: isinstance(value, dict) and all(type(n) is int for n in value.values())
    checks |= {key: lambda value: value is None or type(value) is int for key in numbers}
    wrong = [key for key, is_right in checks.items() if key in manifest and not is_right(manifest[key])]
    ids = [one.get("id") for one in manifest.get("categories", ())] if not wrong else []
    if not wrong and not (ids and all(type(one) is int for one in ids)):
        return "categories"
    return wrong[0] if wrong else None


def _is_taken(to):
    return to.exists() and (not to.is_dir() or any(to.iterdir()))


def _built(to, plan):
    """The report of a data set that another process built meanwhile, if it is the same."""
    manifest = read_manifest(to)
    if manifest.get("plan") != plan:
        raise DataError(f"{to}: already exists: another process has built a different data set there")
    return report_of(to, manifest)


@contextlib.contextmanager
def alone(to):
    """Hold the lock of the temporary directory beside `to`; waits while another process holds it."""
    aside = to.with_name(f".{to.name}.partial")
    lock = None
    while lock is None:
        lock = _locked(aside)
    with lock:
        yield aside


def _locked(folder):
    """The lock of a directory, or None if the directory was finished or removed while waiting for it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / LOCK, "w")
        except FileNotFoundError:
            return None
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
                return lock
        lock.close()
        return None


def _digest(source, categories, jobs, state_of):
    """Digest of everything that a shard depends on."""
    digest = hashlib.sha256(json.dumps([FORM, source, categories], sort_keys=True).encode())
    for job in jobs:
        state = state_of(job) if state_of else None
        digest.update(json.dumps([job, state], sort_keys=True).encode())
    return digest.hexdigest()


def _keep_only(folder, files):
    """Delete leftovers of a killed call or of one with other settings."""
    kept = {LOCK, *(file.name for file in files), *(shard_files.side_of(file).name for file in files)}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
