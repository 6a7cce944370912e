"""Atomic writes of single files, and reports that replace reports only."""

import errno
import os
import pathlib
import threading

import pytest

from kgarden.errors import OutputError, UserError
from kgarden.utils import files
from kgarden.utils.files import (
    check_report,
    check_writable,
    read_json,
    replace_file,
    write_json,
    write_report,
)


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    report = tmp_path / "a" / "n.json"
    check_report(report)
    assert not report.parent.exists()
    write_report(report, {"ap": 1})
    write_report(report, {"ap": 2})
    assert read_json(report)["ap"] == 2 and read_json(report)["written_by"].startswith("kgarden ")
    theirs = {"truth.json": b'{"images": []}', "found.json": b"[]", "photo.jpg": b"\xff\xd8", "empty": b""}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
        for act in (check_report, lambda path: write_report(path, {"ap": 3})):
            with pytest.raises(UserError, match=f"{name}: exists and is not a report of kgarden; move it"):
                act(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    (tmp_path / "link.json").symlink_to(tmp_path / "truth.json")
    with pytest.raises(UserError, match="link.json: exists"):
        write_report(tmp_path / "link.json", {})


@pytest.mark.parametrize("odd", ["", ".", "folder", "folder/", "file/below", "/proc/none.json"])
def test_odd_paths_are_one_line(tmp_path, monkeypatch, odd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for act in (check_report, lambda path: write_json(path, {})):
        with pytest.raises(OutputError, match="cannot be written") as raised:
            act(odd)
        assert "\n" not in str(raised.value) and isinstance(raised.value, OSError)
    assert sorted(os.listdir()) == ["file", "folder"] and os.listdir("folder") == []


def test_a_read_only_disk_is_told_before_the_work(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(pathlib.Path, "touch", refuse)
    for path in (tmp_path, tmp_path / "new" / "n.json"):
        with pytest.raises(OutputError, match="Read-only file system"):
            check_writable(path)


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_report(pipe, {"ap": 1})
    reader.join(10)
    assert b'"ap": 1' in read[0] and pipe.is_fifo()
    with pytest.raises(OutputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        replace_file("/dev/full", b"x")
    assert files.is_device("/dev/full") and files.is_device("/dev/null")
