"""Errors with one-line messages: of the user, of output that cannot be written, and of a failed training."""

import os


class UserError(ValueError):
    """Wrong usage, recipe or input.

    The message is one line: what is wrong, where, and how to fix it. The command line prints it and exits
    with code 2; in Python it is a ValueError.
    """


class OutputError(UserError, OSError):
    """A file or folder that cannot be written: a full or read-only disk, missing permissions, an odd path.

    Args:
        path:   of the file or folder.
        reason: in a few words, such as "No space left on device".
    """

    def __init__(self, path: str | os.PathLike, reason: object):
        super().__init__(f"{os.fspath(path)}: cannot be written ({reason})")
        self.strerror = str(reason)


class TrainingFailed(RuntimeError):
    """A training that failed at run time; the message is one line that includes what to do."""
