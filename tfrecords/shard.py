"""One shard: made by one process beside its place, renamed when it is whole, and not made twice.

Beside NAME.tfrecord lies NAME.jsonl until the data set is finished: a line with the key, a line for every
job, and a line about the file. It is renamed after the shard: if it is there, the shard is whole.
"""

import contextlib
import hashlib
import json
import os

from tfrecords.conversion_report import Fault
from tfrecords.index import record_bytes
from tfrecords.schema import DataError


class Unfinished(DataError):
    """The work could not go on, but the same call can go on from here."""


def make(file, key, jobs, work, strict=False, tick=None):
    """Do the jobs of a shard and write it, unless that was done before.

    Args:
        file:   pathlib.Path of the shard.
        key:    digest of all that the shard is made from.
        jobs, work, strict: see `tfrecords.write.write`.
        tick:   function of a number of images that were done.
    """
    tick = tick or (lambda count: None)
    if _is_done(file, key):
        tick(len(jobs))
        return
    side = side_of(file)
    side.unlink(missing_ok=True)  # it speaks of another shard from now on
    record_file, line_file = (path.with_name(f"{path.name}.{os.getpid()}") for path in (file, side))
    with writing(file), _cleared(record_file, line_file):
        with line_file.open("w", encoding="utf-8") as lines:
            print(json.dumps({"key": key}), file=lines)
            records, size = _write_records(record_file, jobs, work, strict, tick, lines)
            if record_file.stat().st_size != size:
                raise OSError(0, "the disk took less than was written")
            about = {"file": file.name, "records": records, "bytes": size, "sha256": _sha256(record_file)}
            print(json.dumps(about), file=lines)
        for path, place in ((record_file, file), (line_file, side)):
            _to_disk(path)
            path.replace(place)


def side_of(file):
    return file.with_suffix(".jsonl")


def results(file):
    """What became of every job of a shard, in order, and at last what the manifest says of the file.

    Yields:
        {"left_out": [where, reason, boxes]}, or {"offset", "image", "annotations", "faults", "remarks",
        "clipped"} with faults and remarks as [where, reason]; then {"file", "records", "bytes", "sha256"}.
    """
    with side_of(file).open(encoding="utf-8") as lines:
        next(lines)  # the key
        yield from map(json.loads, lines)


@contextlib.contextmanager
def writing(path):
    """A disk that is full, or takes no file, is the user's to mend: one line."""
    try:
        yield
    except OSError as error:
        raise _unfinished(path, error.strerror or error) from None
    except Exception as error:
        import tensorflow as tf

        if not isinstance(error, tf.errors.OpError):
            raise
        raise _unfinished(path, error.message) from None


def _unfinished(path, why):
    return Unfinished(f"{path}: cannot be written: {why}: what is done stays, the same command goes on")


def _write_records(path, jobs, work, strict, tick, lines):
    """(number of records, bytes)."""
    import tensorflow as tf

    records = offset = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for job in jobs:
            result = work(job)
            if isinstance(result, Fault):
                line = {"left_out": [result.where, result.reason, result.boxes]}
                first = [result]
            else:
                writer.write(result.serialized)
                line = {"offset": offset, **_line_of(result)}
                first = [*result.faults, *result.remarks]
                offset += record_bytes(result.serialized)
                records += 1
            if strict and first:
                raise DataError(str(first[0]))
            print(json.dumps(line), file=lines)
            tick(1)
    return records, offset


def _line_of(record):
    return {
        "image": record.image,
        "annotations": record.annotations,
        "faults": [[fault.where, fault.reason] for fault in record.faults],
        "remarks": [[fault.where, fault.reason] for fault in record.remarks],
        "clipped": record.clipped,
    }


def _is_done(file, key):
    with contextlib.suppress(FileNotFoundError, ValueError), side_of(file).open(encoding="utf-8") as lines:
        return file.is_file() and json.loads(next(lines, "null")) == {"key": key}
    return False


@contextlib.contextmanager
def _cleared(*paths):
    """Files that are still there at the end were not finished: deleted."""
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _to_disk(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
