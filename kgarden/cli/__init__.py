"""The door: reads the command line, hands over to one function, prints, returns an exit code.

0: done. 1: the work ran and found faults. 2: wrong usage, recipe or input, told in one line.
Heavy imports stand inside the commands, so that `kgarden --help` answers at once.
"""

import errno
import sys
from typing import Annotated

import typer

from kgarden.cli.analyze import analyze_app
from kgarden.cli.commands import runs_app
from kgarden.cli.data import data_app
from kgarden.errors import TrainingFailed, UserError

app = typer.Typer(
    help="An object-detection model garden: train, measure, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs_app)
app.add_typer(data_app, name="data")
app.add_typer(analyze_app, name="analyze")


def _version(wanted):
    if wanted:
        from kgarden import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show where an error came from")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
):
    pass


def main(arguments=None):
    """Run a command line; the exit code is what the process should return."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = ["--debug", *(one for one in arguments if one != "--debug")] if debug else arguments
    try:
        return app(arguments, prog_name="kgarden", standalone_mode=False) or 0
    except Exception as error:
        code = _exit_code(error)
        if code is None or (debug and not _is_usage(error)):
            raise
        _complain(error)
        return code


def _exit_code(error):
    """2 for what the caller did wrong, 1 for work that went wrong, None for a fault of ours."""
    from tfrecords.schema import DataError

    if isinstance(error, UserError | DataError) or _is_usage(error) or _lacks_tensorflow(error):
        return 2
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return 1 if isinstance(error, TrainingFailed) or full else None


def _is_usage(error):
    # the base of typer's usage errors has no public name in every version, its method has
    return hasattr(error, "format_message") or isinstance(error, typer.Abort)


def _lacks_tensorflow(error):
    """On JAX kgarden is installed without it, too, and much works."""
    name = (getattr(error, "name", None) or "").split(".")[0]
    return isinstance(error, ModuleNotFoundError) and name == "tensorflow"


def _complain(error):
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if _lacks_tensorflow(error):
        text = "this needs TensorFlow, on the JAX backend too: pip install 'tensorflow~=2.21.0'"
    print(f"kgarden: {text or 'aborted'}", file=sys.stderr)
