"""Command-line entry point. Parses arguments, calls one library function, prints, returns an exit code.

Exit codes: 0 success; 1 the command ran and failed or found faults; 2 wrong usage, recipe or input, reported
in one line. Heavy imports are inside the commands, so that `kgarden --help` is fast.
"""

import errno
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from kgarden.cli.analyze import analyze_app
from kgarden.cli.completion import VARIABLE, completion_app, register_shells
from kgarden.cli.convert import convert_app
from kgarden.cli.data import data_app
from kgarden.cli.listing import list_app
from kgarden.cli.options import silence_tensorflow
from kgarden.cli.recipe_commands import recipe_app
from kgarden.cli.recipes_and_runs import runs_app
from kgarden.cli.report_command import report_app
from kgarden.cli.reproduction import reproduce
from kgarden.errors import TrainingFailed, UserError
from kgarden.utils.text import printable

app = typer.Typer(
    help="An object-detection model garden: train, evaluate and serve detectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(list_app)
app.add_typer(runs_app)
app.add_typer(report_app)
app.add_typer(convert_app)
app.add_typer(completion_app)
app.add_typer(data_app, name="data")
app.add_typer(recipe_app, name="recipe")
app.add_typer(analyze_app, name="analyze")
app.command("reproduce")(reproduce)


def _version(requested: bool):
    if requested:
        from kgarden import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code of the process.

    Args:
        arguments: None: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = ["--debug", *(one for one in arguments if one != "--debug")] if debug else arguments
    for stream in (sys.stdout, sys.stderr):  # names that the terminal's encoding lacks are no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    silence_tensorflow()
    if VARIABLE in os.environ:
        register_shells()
    shown_before = warnings.showwarning
    warnings.showwarning = shown_before if debug else _show_warning
    try:
        return app(arguments, prog_name="kgarden", standalone_mode=False) or 0
    except Exception as error:
        code = _exit_code(error)
        if code is None or (debug and not _is_usage(error)):
            raise
        _print_error(error)
        return code
    finally:
        warnings.showwarning = shown_before


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """Prints our own warnings, a line each; those of libraries speak of their sources and are not shown."""
    ours = {pathlib.Path(__file__).parents[1], pathlib.Path(__file__).parents[2] / "tfrecords"}
    if ours & set(pathlib.Path(filename).parents):
        print(f"kgarden: {printable(message)}", file=sys.stderr)


# Reasons for which a file cannot be written or read that are no fault of the program.
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
OF_THE_DISK |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def _exit_code(error):
    """Returns 2 for an error of the user, 1 for a failure at run time, None for an internal error."""
    from tfrecords.schema import DataError

    if isinstance(error, UserError | DataError) or _is_usage(error) or _lacks_tensorflow(error):
        return 2
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return 2
    return 1 if isinstance(error, TrainingFailed) else None


def _is_usage(error):
    # the base class of typer's usage errors is not public in every version, its method is
    return hasattr(error, "format_message") or isinstance(error, typer.Abort)


def _lacks_tensorflow(error):
    """Returns whether TensorFlow is missing: on JAX most of kgarden works without it."""
    name = (getattr(error, "name", None) or "").split(".")[0]
    return isinstance(error, ModuleNotFoundError) and name == "tensorflow"


def _print_error(error):
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if _lacks_tensorflow(error):
        text = "this command requires TensorFlow, on the JAX backend too: pip install 'tensorflow~=2.21.0'"
    print(f"kgarden: {printable(text or 'aborted', newlines=True)}", file=sys.stderr)
