"""Errors with one-line messages: of the user, and of a failed training."""


class UserError(ValueError):
    """Wrong usage, recipe or input.

    The message is one line: what is wrong, where, and how to fix it. The command line prints it and exits
    with code 2; in Python it is a ValueError.
    """


class TrainingFailed(RuntimeError):
    """A training that failed at run time; the message is one line that includes what to do."""
