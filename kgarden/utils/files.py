"""Atomic file writes: a temporary file is renamed, so that a reader never sees an incomplete file.

Every failure to write is an `OutputError`, one line with the path and the reason.
"""

import contextlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from kgarden.errors import OutputError, UserError

ASIDE = ".kgarden-"  # prefix of temporary files; what a killed process left behind is recognised by it
AUTHOR = "written_by"  # key of reports; another command may replace a file that has it


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raises OutputError for an OSError of the block, which writes `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(path, error.strerror or error) from error


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Creates a folder and its parents, unless it exists.

    Raises:
        OutputError: it is a file, or cannot be created.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(path, "it is a file, a folder is needed")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Checks that a file or folder can be created at `path`, before the work that fills it.

    It leaves nothing behind.

    Raises:
        OutputError: the file system is read-only, a permission is missing, or a parent is a file.
    """
    path = pathlib.Path(path)
    with writing(path):
        existing = next(one for one in (path, *path.absolute().parents) if one.exists())
        folder = existing.parent if existing == path and not path.is_dir() else existing
        if not folder.is_dir():
            raise OutputError(path, f"{folder} is a file")
        probe = folder / f"{ASIDE}{os.getpid()}-probe"  # os.access knows less: of quotas, of /proc
        probe.touch()
        probe.unlink()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file, which replaces `path` when the block ends; creates its folder.

    The temporary file keeps the suffixes of `path`, because Keras derives formats from them. It is removed if
    the block raises: on a full disk its space is needed.

    Raises:
        OutputError: the file cannot be written, or is a folder or a device.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise OutputError(path, "it is a folder, a file is needed")
    if is_device(path):
        raise OutputError(path, "it is not a regular file")
    make_folder(path.parent)
    temporary = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_device(path: str | os.PathLike) -> bool:
    """Returns whether this is a device, a pipe or a socket, as /dev/stdout is, which must not be replaced."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes bytes atomically; missing parent folders are created. A device or pipe is written to."""
    if is_device(path):
        with writing(path), open(path, "wb") as device:
            device.write(content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def create_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a new file.

    Raises:
        UserError: there is one already, or it cannot be written.
    """
    path = pathlib.Path(path)
    with writing(path):
        try:
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another name, or remove it first") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text as UTF-8, aside and renamed."""
    replace_file(path, text.encode())


def append(path: str | os.PathLike, content: bytes) -> None:
    """Appends all of the content to a file, or nothing if the disk is full; links are not followed.

    Raises:
        OutputError: the file cannot be written, or is a link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with writing(path):
        # Unbuffered: a buffer is flushed once more on closing, and would put back what was cut off.
        with open(os.open(path, flags, 0o666), "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(end)
                raise


def json_bytes(content: Any) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(content, indent=1 if isinstance(content, dict) else None) + "\n").encode()


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file atomically."""
    replace_file(path, json_bytes(content))


def check_report(path: str | os.PathLike) -> None:
    """Checks that `write_report` may write a file, before the work that it reports.

    Raises:
        UserError: the file exists and is not an earlier report: it may be an input, or somebody's work.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise OutputError(path, "it is a folder, a file is needed")
    if is_device(path):
        return
    if os.path.lexists(path) and not _is_report(path):
        raise UserError(
            f"{path}: exists and is not a report of kgarden; move it away, or use another file for the output"
        )
    check_writable(path)


def _is_report(path):
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and str(content.get(AUTHOR, "")).startswith("kgarden")


def write_report(path: str | os.PathLike, content: dict) -> None:
    """Writes the results of a command as JSON, atomically, with the version of kgarden as `written_by`.

    Raises:
        UserError: see `check_report`.
    """
    check_report(path)
    write_json(path, authored(content))


def authored(content: dict) -> dict:
    """Returns the content of a report with the version of kgarden as `written_by`."""
    from kgarden import __version__

    return {AUTHOR: f"kgarden {__version__}", **content}


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not valid JSON.
    """
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
