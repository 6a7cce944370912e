"""Locks that name their process."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from kgarden.errors import UserError
from kgarden.utils.process_lock import locked

HOLD = """
import sys, time
from kgarden.utils.process_lock import locked
with locked(sys.argv[1], "the run", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path, holder):
    lock = tmp_path / "lock"
    said = rf"the run is in use by process {holder.pid} on {socket.gethostname()}, started 20.*; do that"
    with pytest.raises(UserError, match=said), locked(lock, "the run", print, remedy="do that"):
        pass
    assert json.loads(lock.read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lines = []
    with locked(tmp_path / "lock", "the run", lines.append):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    (line,) = lines
    assert f"taking over from process {holder.pid} on" in line and "has ended" in line
    assert not (tmp_path / "lock").exists()


def test_one_process_holds_it_once(tmp_path):
    lines = []
    with locked(tmp_path / "deep" / "lock", "the run", lines.append):
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            with locked(tmp_path / "deep" / "lock", "the run", lines.append):
                pass
    with locked(tmp_path / "deep" / "lock", "the run", lines.append):
        pass
    assert not lines and not (tmp_path / "deep" / "lock").exists()


def test_children_of_a_dead_process_do_not_hold_its_lock(tmp_path):
    """They inherit the lock; the process that the file names has ended."""
    lock = tmp_path / "lock"
    program = (
        "import os, sys, time\nfrom kgarden.utils.process_lock import locked\n"
        "with locked(sys.argv[1], 'x', print):\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60)\n"
        "    time.sleep(0.2); os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.wait()
        try:
            with locked(lock, "the run", print):
                assert json.loads(lock.read_text())["pid"] == os.getpid()
        finally:
            os.kill(child, signal.SIGKILL)


def test_file_systems_without_locks_are_judged_by_the_process_that_the_file_names(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock, lines = tmp_path / "lock", []
    with locked(lock, "the run", lines.append):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            with locked(lock, "the run", lines.append):
                pass
    assert not lines and not lock.exists()
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "started": "2026"}))
    with locked(lock, "the run", lines.append):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert lines == [
        f"the run: taking over from process {2**22 + 1} on {socket.gethostname()}, started 2026, "
        f"which has ended"
    ]


@pytest.mark.parametrize("content", [b"\0\0{", b"\xff\xfe", b"[1]"])
def test_a_damaged_lock_file_is_taken_over(tmp_path, content):
    lines = []
    (tmp_path / "lock").write_bytes(content)
    with locked(tmp_path / "lock", "the run", lines.append):
        pass
    assert lines == ["the run: taking over from another process, which has ended"]
