"""Mutation testing: applies single changes to a copy of the tree and runs the tests that must fail.

    python tests/mutants/run.py                  # all of mutants.yaml; results go to docs/mutants.md
    python tests/mutants/run.py --only nms       # those whose name or file contains it
    python tests/mutants/run.py --new            # those that docs/mutants.md has no result of

An entry of `mutants.yaml` is one change:

    name:       of the change; unique.
    file:       the file that is changed.
    before:     text that occurs in it exactly once.
    after:      what replaces it.
    tests:      arguments of pytest, the fastest tests that ought to notice.
    equivalent: why no test can notice, for a change that alters nothing; it is expected to survive.

TensorFlow and Keras are imported once; every mutant is a fork of that process, which imports kgarden itself.
Tests are run without a change first, so that a failure is due to the change. The exit status is 1 if a
mutant survived without a reason, did not apply, or has tests that fail anyway.
"""

import argparse
import compileall
import datetime
import os
import pathlib
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import yaml

ROOT = pathlib.Path(__file__).parents[2]
LIST = pathlib.Path(__file__).with_name("mutants.yaml")
PAGE = ROOT / "docs" / "mutants.md"
PASSED, FAILED, ERROR = 0, 1, 2  # exit statuses of pytest that say something about the tests
TIMEOUT = "timeout"
EQUIVALENT = "survived, equivalent"


class Mutant(NamedTuple):
    """An entry of `mutants.yaml`."""

    name: str
    file: str
    before: str
    after: str
    tests: list
    equivalent: str | None = None

    def changed(self, source):
        """The source with the change, or None if it does not apply."""
        if source.count(self.before) != 1:
            return None
        changed = source.replace(self.before, self.after)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError:
            return None
        return changed


class Job(NamedTuple):
    """A forked run of pytest.

    Attributes:
        tests:  arguments of pytest.
        tree:   copy of the working tree that it has to itself.
        begun:  time.monotonic() at the start.
        mutant: whose change is in the tree; None: the tests are run without a change.
        source: of the changed file, as it was.
    """

    tests: tuple
    tree: pathlib.Path
    begun: float
    mutant: Mutant | None = None
    source: str | None = None


class Row(NamedTuple):
    """A row of the table."""

    name: str
    file: str
    change: str
    tests: str
    result: str
    when: str

    @classmethod
    def of(cls, mutant, result, when):
        change = f"`{cell(mutant.before)}` → `{cell(mutant.after)}`"
        return cls(mutant.name, mutant.file, change, cell(" ".join(mutant.tests)), cell(result), when)


def cell(text):
    """Text on one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# --- the tree -----------------------------------------------------------------------------------------------


def copy_of_tree(folder):
    """Copies all files that git knows or would add; byte code is checked by content, never by time."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "kgarden", quiet=1, invalidation_mode=mode)
    return folder


def commit():
    """The commit of the working tree, with "-dirty" if it was changed."""
    described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


# --- processes ----------------------------------------------------------------------------------------------


def warm_up():
    """Imports what does not change; no operation may run, since a fork has no threads."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", MPLBACKEND="agg", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import keras  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401
    import tensorflow  # noqa: F401
    import xdist.plugin  # noqa: F401


def run_pytest(tree, tests):
    """In the forked process: runs the tests of a tree and ends the process."""
    os.setsid()
    log = os.open(tree / "mutant.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(one for one in sys.path if pathlib.Path(one).resolve() != ROOT)]
    status = 70
    try:
        import pytest

        status = int(pytest.main(["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def start(tests, tree, **of_mutant):
    """Forks a run; the change is already in the tree.   (pid, Job)"""
    pid = os.fork()
    if pid == 0:
        run_pytest(tree, tests)
    return pid, Job(tests, tree, time.monotonic(), **of_mutant)


def ended(running, limit):
    """Waits for a run to end, or stops one that takes too long.   (pid, exit status or TIMEOUT)"""
    while True:
        for pid, job in running.items():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return pid, os.waitstatus_to_exitcode(status)
            if time.monotonic() - job.begun > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return pid, TIMEOUT
        time.sleep(0.05)


def result_of(status, log):
    """What a run says of its mutant."""
    if status == PASSED:
        return "survived"
    if status == TIMEOUT:
        return "killed: timeout"
    if status == ERROR:
        return "killed: not importable"
    if status == FAILED:
        fell = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", log, re.MULTILINE)
        return f"killed: {fell[1].split('::', 1)[-1]}" if fell else "killed"
    if status < 0:
        return f"killed: {signal.Signals(-status).name}"
    return f"tests do not run: exit status {status} of pytest"


class Runner:
    """Runs mutants in forks, each in a copy of the tree.

    Args:
        trees:  copies of the tree, as many as there may be runs at a time.
        limit:  seconds after which a run is stopped.
        report: function (mutant, result).
        trust:  whether the tests are known to pass without a change.
    """

    def __init__(self, trees, limit, report, trust=False):
        self.free, self.limit, self.report, self.trust = list(trees), limit, report, trust
        self.running = {}
        self.broken = {}  # tests -> what is wrong with them without a change

    def run(self, mutants):
        """Runs the tests without a change, unless they are trusted, then each mutant."""
        mutants = [mutant for mutant in mutants if self._applies(mutant)]
        for tests in dict.fromkeys(tuple(mutant.tests) for mutant in mutants if not self.trust):
            self._add(None, tests)
        self._finish()
        for mutant in mutants:
            tests = tuple(mutant.tests)
            if tests in self.broken:
                self.report(mutant, f"tests fail without it: {self.broken[tests]}")
            else:
                self._add(mutant, tests)
        self._finish()

    def _applies(self, mutant):
        path = self.free[0] / mutant.file
        applies = path.exists() and mutant.changed(path.read_text()) is not None
        if not applies:
            self.report(mutant, "does not apply")
        return applies

    def _add(self, mutant, tests):
        while not self.free:
            self._collect()
        tree, source = self.free.pop(), None
        if mutant is not None:
            source = (tree / mutant.file).read_text()
            (tree / mutant.file).write_text(mutant.changed(source))
        pid, job = start(tests, tree, mutant=mutant, source=source)
        self.running[pid] = job

    def _collect(self):
        pid, status = ended(self.running, self.limit)
        job = self.running.pop(pid)
        result = result_of(status, (job.tree / "mutant.log").read_text(errors="replace"))
        if job.mutant is not None:
            (job.tree / job.mutant.file).write_text(job.source)
            self.report(job.mutant, result)
        elif status != PASSED:
            self.broken[job.tests] = result
        self.free.append(job.tree)

    def _finish(self):
        while self.running:
            self._collect()


# --- the page -----------------------------------------------------------------------------------------------

TEXT = """# Mutants

Single changes of the code, and the test that fails when each is made: a default, a comparison, a sign, a wire
between two parts. A change that no test notices marks a property that no test holds.

```
python tests/mutants/run.py             # all; takes long
python tests/mutants/run.py --only nms  # by name or file
```

The list is `tests/mutants/mutants.yaml`. A row holds the latest run of its mutant, with date and commit.

{summary}

| mutant | file | change | tests | result | run |
|---|---|---|---|---|---|
"""


def rows_of_page():
    """{name: Row} of the page as it is."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    rows = [Row(*(one.strip() for one in row)) for row in rows if len(row) == len(Row._fields)]
    return {row.name: row for row in rows if row.name != "mutant"}


def has_run(mutant, row):
    """Whether a row is the result of this mutant as it is now."""
    return row is not None and row[:4] == Row.of(mutant, "", "")[:4] and bool(row.when)


def write_page(mutants, new):
    """Writes all mutants' rows: new ones, those of the page, or that it has not run."""
    known = rows_of_page() | new
    rows = [known.get(one.name, Row.of(one, "not run", "")) for one in mutants]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    PAGE.write_text(TEXT.format(summary=summary_of(rows)) + table)


def summary_of(rows):
    """How many were killed, survived, and neither."""
    results = [row.result for row in rows]
    killed = sum(result.startswith("killed") for result in results)
    equivalent = sum(result.startswith(EQUIVALENT) for result in results)
    survived = results.count("survived")
    others = len(results) - killed - equivalent - survived
    return (
        f"{len(results)} mutants: {killed} killed, {survived} survived, "
        f"{equivalent} survived and are equivalent, {others} without a result."
    )


# --- the command --------------------------------------------------------------------------------------------


def read_list():
    """All mutants of the list."""
    mutants = [Mutant(**entry) for entry in yaml.safe_load(LIST.read_text())]
    names = [mutant.name for mutant in mutants]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        sys.exit(f"{LIST.name}: names must be unique: {', '.join(repeated)}")
    return mutants


def parse():
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression: name or file")
    parser.add_argument("--new", action="store_true", help="only those that the page has no result of")
    parser.add_argument("--trust", action="store_true", help="leave out the runs without a change")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    return parser.parse_args()


def choose(mutants, options):
    """The mutants that the options ask for."""
    known = rows_of_page() if options.new else {}
    fitting = [one for one in mutants if re.search(options.only, f"{one.name} {one.file}")]
    return [one for one in fitting if not has_run(one, known.get(one.name))]


def main():
    options = parse()
    mutants = read_list()
    chosen = choose(mutants, options)
    when = f"{datetime.date.today()} {commit()}"
    rows, faults = {}, []

    def report(mutant, result):
        if result == "survived" and mutant.equivalent:
            result = f"{EQUIVALENT}: {mutant.equivalent}"
        elif not result.startswith("killed"):
            faults.append(mutant.name)
        rows[mutant.name] = Row.of(mutant, result, when)
        write_page(mutants, rows)
        print(f"{mutant.name}: {result}", flush=True)

    warm_up()
    with tempfile.TemporaryDirectory(prefix="kgarden-mutants-") as scratch:
        trees = [copy_of_tree(pathlib.Path(scratch, str(number))) for number in range(options.jobs)]
        Runner(trees, options.timeout, report, trust=options.trust).run(chosen)
    print(f"{len(chosen)} mutants, {len(faults)} faults{': ' if faults else ''}{', '.join(faults)}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
