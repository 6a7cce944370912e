"""Locks that name their process: one writer at a time for a run directory.

The operating system ends the lock of a process that dies, however it dies, so that a stale lock file is
recognised at once; it also works across machines on a shared file system that passes locks on.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from kgarden.errors import UserError
from kgarden.utils.files import make_folder, writing

UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of some network file systems


@contextlib.contextmanager
def locked(
    path: str | os.PathLike, what: str, say: Callable[[str], object], remedy: str = "wait for it to end"
) -> Iterator[None]:
    """Holds a lock file while the block runs, and removes it afterwards.

    Args:
        path:   of the lock file; it holds the process id, the host and the time of the start.
        what:   is locked, for the message.
        say:    called with one line if the lock of a process that has ended is taken over.
        remedy: what to do if another process holds it, for the message.
    Raises:
        UserError:   another process holds it; the message names that process.
        OutputError: the lock file cannot be written.
    """
    path = pathlib.Path(path)
    make_folder(path.parent)
    file = _acquired(path, what, remedy)
    try:
        with writing(path):
            earlier = file.read().strip()
            file.seek(0)
            file.truncate()
            file.write(json.dumps(_this_process()) + "\n")
            file.flush()
        if earlier:
            say(f"{what}: taking over from {_described(earlier)}, which has ended")
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_current(file, path):
                path.unlink()
        file.close()


def _acquired(path, what, remedy):
    """The open and locked file; another process may remove it between opening and locking."""
    while True:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = open(descriptor, "r+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip()
            if error.errno in UNSUPPORTED and not _runs(holder):
                file.seek(0)
                return file
            with file:
                orphaned = error.errno not in UNSUPPORTED and _has_ended(holder)
                if orphaned and _is_current(file, path):
                    path.unlink(missing_ok=True)  # only children of the process that has ended still hold it
            if orphaned:
                continue
            raise UserError(f"{what} is in use by {_described(holder)}; {remedy}") from None
        if _is_current(file, path):
            file.seek(0)
            return file
        file.close()


def _is_current(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process():
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _holder(text):
    """The contents of a lock file; {} if they cannot be read."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(text):
    holder = _holder(text)
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"


def _has_ended(text):
    """Whether the process that a lock file names is one of this machine that does not run any more."""
    holder = _holder(text)
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _runs(text):
    """Whether a lock file names a process that runs, as far as this machine can tell."""
    return bool(_holder(text)) and not _has_ended(text)
