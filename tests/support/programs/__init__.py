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
    """Standard output of a program that succeeds, on TensorFlow; see `forks`."""
    from support.programs.forks import forks

    fork = forks().start(program, *arguments, **variables)
    assert fork.status() == 0, fork.errors.read()
    return fork.output.read()


def run_on(backend, program, *arguments, **variables):
    """Standard output of a program that succeeds on a backend; see `command` and `environment`."""
    made = environment(backend, **variables)
    done = subprocess.run(command(program, *arguments), env=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
