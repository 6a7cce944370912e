"""Process pool that writes shards in parallel."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from concurrent.futures.process import BrokenProcessPool

from tfrecords import shard as shard_files
from tfrecords.beam import BeamWorkers
from tfrecords.files import Unfinished

POOL_FROM = 2000  # images; below, starting a pool takes longer than the work
TELL_EVERY = 50  # images


def make_all(tasks, work, *, strict=False, workers=None, progress=None):
    """Write all shards, in parallel for large data sets.

    Args:
        tasks:    [(file, key, jobs), ...], see `shard.make`.
        work, strict, workers, progress: see `tfrecords.write.write`.
    """
    if isinstance(workers, BeamWorkers):
        workers.make_all(tasks, work, strict=strict, progress=progress)
        return
    total = sum(len(jobs) for _, _, jobs in tasks)
    if workers is None:
        workers = os.cpu_count() if total >= POOL_FROM else 0
    count = _Count(total, progress)
    if workers < 2 or len(tasks) < 2:
        for file, key, jobs in tasks:
            shard_files.make(file, key, jobs, work, strict=strict, tick=count.add)
        return
    # Forking a process with TensorFlow's threads can deadlock.
    spawn = multiprocessing.get_context("spawn")
    shared = spawn.Value("q", 0)
    workers = min(workers, len(tasks))
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (shared,)) as pool:
        waiting = {pool.submit(_in_worker, *task, work, strict) for task in tasks}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
                for future in done:
                    future.result()
                count.set(shared.value)
        except BrokenProcessPool:
            raise Unfinished(
                f"{tasks[0][0].parent}: a worker process was killed (out of memory?): "
                "run the same command with fewer workers to continue"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


class _Count:
    """Calls `progress` every TELL_EVERY images and at the last."""

    def __init__(self, total, progress):
        self.total, self.progress, self.done = total, progress, 0

    def add(self, count):
        self.set(self.done + count)

    def set(self, done):
        if self.progress is not None and (
            done // TELL_EVERY > self.done // TELL_EVERY or self.done < done == self.total
        ):
            self.progress(done, self.total)
        self.done = done


def _start_worker(shared):
    """Initialise a worker: no accelerator, no banner, and an exit when the parent process ends."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _in_worker.shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _in_worker(file, key, jobs, work, strict):
    def add(count):
        with _in_worker.shared.get_lock():
            _in_worker.shared.value += count

    shard_files.make(file, key, jobs, work, strict=strict, tick=add)
