"""Process pool that writes shards in parallel."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from concurrent.futures.process import BrokenProcessPool

from tfrecords import shard as shard_files
from tfrecords.files import Unfinished

POOL_FROM = 2000  # fewer images than that are done before a pool has started
TELL_EVERY = 50  # images


def make_all(tasks, work, *, strict=False, workers=None, progress=None):
    """Make every shard.

    Args:
        tasks:    [(file, key, jobs), ...], see `shard.make`.
        work, strict, workers, progress: see `tfrecords.write.write`.
    """
    total = sum(len(jobs) for _, _, jobs in tasks)
    if workers is None:
        workers = os.cpu_count() if total >= POOL_FROM else 0
    count = _Count(total, progress)
    if workers < 2 or len(tasks) < 2:
        for file, key, jobs in tasks:
            shard_files.make(file, key, jobs, work, strict=strict, tick=count.add)
        return
    # Forking a process in which TensorFlow runs threads hangs sooner or later.
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
                f"{tasks[0][0].parent}: a process of the conversion was ended from outside (out of memory?): "
                "what is done stays, the same command with fewer workers goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


class _Count:
    """Tells `progress` about images that are done: now and then, and about the last."""

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
    """A worker takes no accelerator, prints no banner, and ends when the process that started it does."""
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
