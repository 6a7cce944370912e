"""Atomic file writes: a temporary file is renamed, so that a reader never sees an incomplete file."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from kgarden.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file, which replaces `path` when the block ends.

    The temporary file keeps the suffixes of `path`, because Keras derives formats from them. It is removed if
    the block raises: on a full disk its space is needed.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes bytes atomically; missing parent folders are created."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(content, indent=1 if isinstance(content, dict) else None) + "\n"
    replace_file(path, text.encode())


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
