"""Reading of text, atomic writes (temporary path, then rename), and the errors of both."""

import contextlib
import os

from tfrecords.schema import DataError


class Unfinished(DataError):
    """The work was interrupted; the same call continues from here."""


def read_text(path):
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: pathlib.Path.
    Raises:
        DataError: it does not exist, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


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
