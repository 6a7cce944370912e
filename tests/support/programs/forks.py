"""Processes that share one import of TensorFlow and kgarden: `python -m support.programs.forks`.

Every line of standard input starts a program in a fork, or waits for one:

    {"program": NAME, "arguments": [...], "environment": {...}, "output": FILE, "errors": FILE}
                     calls `main` of support/programs/NAME.py, or executes the first argument if NAME is "-c";
                     prints the process id
    PROCESS_ID       waits for it and prints its exit status

Nothing is computed before the fork, so TensorFlow has started no threads and chosen no devices by then.
"""

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

from support import programs


@functools.cache
def forks():
    """Those of this test process, until it ends."""
    started = Forks()
    atexit.register(started.close)
    return started


class Forks:
    """Starts programs."""

    def __init__(self):
        self.process = subprocess.Popen(
            programs.command("forks"),
            env=programs.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, program, *arguments, **variables):
        """Begin a program with further variables in the environment; returns a Fork."""
        return Fork(self, program, [str(one) for one in arguments], variables)

    def run(self, program, *arguments, **variables):
        """(exit status, what was printed) of a program; the status is negative if a signal ended it."""
        return self.start(program, *arguments, **variables).ended()

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Fork:
    """A program that runs.

    Attributes:
        output, errors: what it prints, two files to read.
    """

    def __init__(self, forks, program, arguments, variables):
        self.forks = forks
        self.output, self.errors = (tempfile.NamedTemporaryFile("r", errors="replace") for _ in range(2))
        asked = {"program": program, "arguments": arguments, "environment": variables}
        self.pid = forks.ask(json.dumps(asked | {"output": self.output.name, "errors": self.errors.name}))

    def status(self, patience_s=600):
        """Exit status at the end of the program; one that takes longer is killed."""
        alarm = threading.Timer(patience_s, os.kill, [self.pid, signal.SIGKILL])
        alarm.start()
        try:
            return self.forks.ask(self.pid)
        finally:
            alarm.cancel()

    def ended(self, patience_s=600):
        """(exit status, errors and output), see `status`."""
        return self.status(patience_s), self.errors.read() + self.output.read()


def child(program, arguments, environment, output, errors):
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.update(environment)
    try:
        code = called(program, arguments) or 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def called(program, arguments):
    """What `main` of a program returns; None for a text that is executed."""
    if program == "-c":
        return exec(arguments[0], {"__name__": "__main__"})
    return importlib.import_module(f"support.programs.{program}").main(*arguments)


def serve():
    for module in ("tensorflow", "kgarden.models", "kgarden.commands.train", "support.variants"):
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            child(**asked)


if __name__ == "__main__":
    serve()
