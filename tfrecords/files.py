"""Atomic writes (temporary path, then rename), and the error for a write that failed."""

import contextlib
import os

from tfrecords.schema import DataError


class Unfinished(DataError):
    """The work was interrupted; the same call continues from here."""


@contextlib.contextmanager
def writing(path):
    """Raises Unfinished, one line, where a file cannot be written: a full disk, missing permissions."""
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
    return Unfinished(f"{path}: cannot be written: {why}: run the same command again to continue")


@contextlib.contextmanager
def replacing(*paths):
    """Temporary paths beside `paths`, moved onto them at the end, in this order; deleted after an error.

    Yields:
        list of pathlib.Path, one for each of `paths`.
    """
    temporary = [path.with_name(f"{path.name}.{os.getpid()}") for path in paths]
    try:
        yield temporary
        for path, target in zip(temporary, paths, strict=True):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
