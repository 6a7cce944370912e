"""Processes that share one import of TensorFlow: `python -m support.programs.forks PROGRAM`.

The program's module is imported, and `main` runs in a fork for every line of standard input:

    {"arguments": [...], "environment": {...}, "output": FILE}    starts one and prints its process id
    PROCESS_ID                                                    waits for it and prints its exit status

Nothing is computed before the fork, so TensorFlow has started no threads by then.
"""

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


class Forks:
    """Context manager of such a process; a program's runs are started by `start`."""

    def __init__(self, program, **variables):
        self.process = subprocess.Popen(
            programs.command("forks", program),
            env=programs.environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def start(self, *arguments, **variables):
        """Begin `main(*arguments)` with further variables in the environment; returns a Fork."""
        return Fork(self, [str(one) for one in arguments], variables)

    def run(self, *arguments, **variables):
        """(exit status, what was printed) of a run; the status is negative if a signal ended it."""
        return self.start(*arguments, **variables).ended()

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


class Fork:
    def __init__(self, forks, arguments, variables):
        self.forks, self.output = forks, tempfile.NamedTemporaryFile("r")
        asked = {"arguments": arguments, "environment": variables, "output": self.output.name}
        self.pid = forks.ask(json.dumps(asked))

    def ended(self, patience_s=600):
        """(exit status, what was printed), at the end of the run; one that takes longer is killed."""
        alarm = threading.Timer(patience_s, os.kill, [self.pid, signal.SIGKILL])
        alarm.start()
        try:
            return self.forks.ask(self.pid), self.output.read()
        finally:
            alarm.cancel()


def child(main, arguments, environment, output):
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update(environment)
    try:
        code = main(*arguments) or 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def serve(program):
    main = importlib.import_module(f"support.programs.{program}").main
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            child(main, **asked)


if __name__ == "__main__":
    serve(sys.argv[1])
