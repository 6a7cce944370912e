"""Programs that tests run in a process of their own: `python -m support.programs.NAME ARGUMENTS`."""

import os
import subprocess
import sys


def command(program, *arguments):
    """The command line of a program of this folder, or of the file that `program` names."""
    where = [str(program)] if str(program).endswith(".py") else ["-m", f"support.programs.{program}"]
    return [sys.executable, *where, *map(str, arguments)]


def environment(backend="tensorflow", **more):
    """Variables under which a program sees the same modules as the test that runs it."""
    return os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path), **more}


def run(program, *arguments, **variables):
    """Standard output of a program that succeeds; see `command` and `environment`."""
    made = environment(**variables)
    done = subprocess.run(command(program, *arguments), env=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
