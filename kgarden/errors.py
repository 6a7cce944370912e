"""Errors that name a mistake in one line: of the user, or of a training that cannot go on."""


class UserError(ValueError):
    """A mistake of the person who called: wrong usage, recipe or input.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints it and exits with code 2; Python callers see an ordinary ValueError.
    """


class TrainingFailed(RuntimeError):
    """The work ran and went wrong; the message is one line that says what to do."""
