"""Apache Beam: shards written by the workers of a Beam runner instead of a process pool.

Every shard is one element of a pipeline and is written to the directory of the data set, which all workers
must see under the same path: local processes do, machines of a cluster need shared storage. As with the pool,
complete shards are reused by the next call, so that an interrupted pipeline continues.
"""

import dataclasses
import json

from tfrecords import shard as shard_files
from tfrecords.files import Unfinished
from tfrecords.schema import DataError

PACKAGE = "apache-beam"


@dataclasses.dataclass(frozen=True)
class BeamWorkers:
    """Workers of a Beam runner.

    Args:
        options: of Beam's pipeline, such as "--runner=FlinkRunner" or "--direct_num_workers=4"; without any,
                 Beam's DirectRunner in this process.
    """

    options: tuple[str, ...] = ()

    def make_all(self, tasks, work, *, strict=False, progress=None):
        """Write all shards; arguments as in `tfrecords.pool.make_all`. Progress is told at the end alone.

        Raises:
            DataError: Beam is not installed, a fault under `strict`, or shards are not visible here.
            Unfinished: the pipeline was interrupted.
        """
        beam, pipeline_options = _beam()
        for file, _, _ in tasks:
            _fault_of(file).unlink(missing_ok=True)
        try:
            with beam.Pipeline(options=pipeline_options.PipelineOptions(list(self.options))) as pipeline:
                shards = pipeline | "shards" >> beam.Create(list(enumerate(tasks)))
                spread = shards | "spread" >> beam.Reshuffle()
                _ = spread | "write" >> beam.Map(_make, work, strict)
        except Exception as error:
            raise _told(tasks, error) from None
        missing = [file.name for file, key, _ in tasks if not shard_files.is_done(file, key)]
        if missing:
            raise DataError(
                f"{tasks[0][0].parent}: {len(missing)} shards of Beam's workers are not here, {missing[0]} "
                "first: they must see this directory under the same path; use shared storage"
            )
        if progress is not None:
            total = sum(len(jobs) for _, _, jobs in tasks)
            progress(total, total)


def _beam():
    try:
        import apache_beam
        from apache_beam.options import pipeline_options
    except ModuleNotFoundError as error:
        raise DataError(f"runner beam needs {PACKAGE} ({error}): pip install 'kgarden[beam]'") from None
    return apache_beam, pipeline_options


def _make(element, work, strict):
    """Write a shard on a worker; faults are left beside it, because Beam reports them as text alone."""
    _, (file, key, jobs) = element
    try:
        shard_files.make(file, key, list(jobs), work, strict=strict)
    except DataError as error:
        told = {"unfinished": isinstance(error, Unfinished), "message": str(error)}
        _fault_of(file).write_text(json.dumps(told), encoding="utf-8")
        raise


def _told(tasks, error):
    """The exception of a pipeline that failed: that of the first shard with a fault, if there is one."""
    for file, _, _ in tasks:
        path = _fault_of(file)
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            return (Unfinished if told["unfinished"] else DataError)(told["message"])
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Unfinished(f"{tasks[0][0].parent}: Beam: {lines[-1]}: run the same command again to continue")


def _fault_of(file):
    return file.with_suffix(".fault")
