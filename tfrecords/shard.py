"""Writes one shard: to a temporary file, renamed when it is complete; complete shards are reused.

Beside NAME.tfrecord lies NAME.jsonl until the data set is finished: a line with the key, a line for every
job, and a line about the file. It is renamed after the shard: where it exists, the shard is complete.
"""

import contextlib
import hashlib
import json

from tfrecords.conversion_report import Fault
from tfrecords.files import replacing, writing
from tfrecords.index import record_bytes
from tfrecords.schema import DataError


def make(file, key, jobs, work, strict=False, tick=None):
    """Write one shard, unless a complete one with the same key exists.

    Args:
        file:   pathlib.Path of the shard.
        key:    digest of everything that the shard depends on.
        jobs, work, strict: see `tfrecords.write.write`.
        tick:   function of the number of images done since the last call.
    """
    tick = tick or (lambda count: None)
    if is_done(file, key):
        tick(len(jobs))
        return
    side = side_of(file)
    side.unlink(missing_ok=True)  # it describes the shard that is about to be replaced
    with writing(file), replacing(file, side) as (record_file, line_file):
        with line_file.open("w", encoding="utf-8") as lines:
            print(json.dumps({"key": key}), file=lines)
            records, size = _write_records(record_file, jobs, work, strict=strict, tick=tick, lines=lines)
            if record_file.stat().st_size != size:
                raise OSError(0, "file is shorter than what was written")
            about = {"file": file.name, "records": records, "bytes": size, "sha256": _sha256(record_file)}
            print(json.dumps(about), file=lines)


def side_of(file):
    return file.with_suffix(".jsonl")


def results(file):
    """Read the result of every job of a shard, in order, and then its entry of the manifest.

    Yields:
        {"left_out": [where, reason, boxes]}, or {"offset", "image", "annotations", "faults", "remarks",
        "clipped", "signs"} with faults and remarks as [where, reason]; then {"file", "records", "bytes",
        "sha256"}.
    """
    with side_of(file).open(encoding="utf-8") as lines:
        next(lines)  # the key
        yield from map(json.loads, lines)


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
        "signs": record.signs,
    }


def is_done(file, key):
    """Whether a complete shard with this key exists."""
    with contextlib.suppress(FileNotFoundError, ValueError), side_of(file).open(encoding="utf-8") as lines:
        return file.is_file() and json.loads(next(lines, "null")) == {"key": key}
    return False


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
