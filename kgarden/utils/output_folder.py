"""Output folders of commands: a file in them is replaced only if kgarden has written it.

A folder given as `--to` may hold photos, annotations or another program's figures. `.kgarden.jsonl` in it
lists the files that kgarden wrote, with their digests; any other file stays as it is, also if its name is
that of an output.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from kgarden.errors import OutputError, UserError
from kgarden.utils.files import ASIDE, append, check_writable, json_bytes, make_folder, replacing

LIST = ".kgarden.jsonl"


class OutputFolder:
    """Writes files into a folder, atomically and never over a file of somebody else.

    Args:
        path:   of the folder; created with the first file.
        inputs: files that the command reads; they are never replaced, even if kgarden wrote them.
        owned:  the folder belongs to kgarden, as those in a run directory: every file may be replaced.
    Raises:
        OutputError: it is a file, or cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        inputs: Iterable[str | os.PathLike] = (),
        owned: bool = False,
    ):
        self.path, self.owned = pathlib.Path(path), owned
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(self.path, "it is a file, a folder is needed")
        check_writable(self.path)
        self._inputs = {_identity(one) for one in inputs} - {None}
        self._written = _read_list(self.path / LIST)

    @classmethod
    def of(cls, folder: "str | os.PathLike | OutputFolder") -> "OutputFolder":
        """Returns the OutputFolder of a path; one that exists already as it is."""
        return folder if isinstance(folder, cls) else cls(folder)

    def check(self, *names: str) -> None:
        """Checks that files of these names may be written, before the work whose results they are.

        Raises:
            UserError: one is an input, or a file that kgarden has not written.
        """
        for name in names:
            path = self.path / name
            if not os.path.lexists(path):
                continue
            if path.is_dir():
                raise OutputError(path, "it is a folder, a file is needed")
            if _identity(path) in self._inputs:
                raise UserError(f"{path}: is an input and would be replaced; use another folder for output")
            if not self.wrote(name):
                raise UserError(
                    f"{path}: exists and was not written by kgarden; move it, or use another folder"
                )

    def wrote(self, name: str) -> bool:
        """Returns whether the file of this name is one that kgarden has written here, unchanged since."""
        if self.owned or name == LIST or name.startswith(ASIDE):
            return True
        path, digests = self.path / name, self._written.get(name, ())
        return bool(digests) and not path.is_symlink() and path.is_file() and _digest(path) in digests

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a temporary path, which becomes the file `name` at the end; see kgarden/utils/files.py."""
        self.check(name)
        with replacing(self.path / name) as temporary:
            yield temporary
            if not self.owned:
                self._list(name, _digest(temporary))

    def write(self, name: str, content: bytes) -> None:
        """Writes a file."""
        with self.replacing(name) as temporary:
            temporary.write_bytes(content)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        self.write(name, json_bytes(content))

    def _list(self, name, digest):
        """Lists a file before it gets its name, so that a killed process leaves none unlisted."""
        known = self._written.setdefault(name, set())
        if digest in known:
            return
        line = json.dumps({"file": name, "sha256": digest}) + "\n"
        append(make_folder(self.path) / LIST, line.encode())
        known.add(digest)


def _read_list(path):
    """{name: digests}; a line that was cut by a full disk or a kill is left out."""
    written = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                one = json.loads(line)
                written.setdefault(one["file"], set()).add(one["sha256"])
    return written


def _identity(path):
    """(device, inode) of a file, also behind links; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
