"""Output folders: nothing but earlier output is replaced."""

import errno
import os
import shutil

import pytest
from support.size_limit import size_limit

from kgarden.errors import OutputError, UserError
from kgarden.utils.output_folder import LIST, OutputFolder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LIST}


def test_earlier_output_is_replaced_also_by_another_process_and_in_a_copy(tmp_path):
    folder = OutputFolder(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()  # only with the first file
    folder.write("a.txt", b"1")
    folder.write("a.txt", b"2")
    OutputFolder(tmp_path / "new/out").write("a.txt", b"3")
    shutil.copytree(tmp_path / "new/out", tmp_path / "copy")
    OutputFolder(tmp_path / "copy").write("a.txt", b"4")
    assert content(tmp_path / "new/out") == {"a.txt": b"3"} and content(tmp_path / "copy") == {"a.txt": b"4"}


def test_files_of_others_stay(tmp_path):
    """Found there, changed since, put in the place of ours, reached through a link, or a folder."""
    folder = OutputFolder(tmp_path / "out")
    for name in ("changed", "linked", "folder"):
        folder.write(name, b"ours")
    (tmp_path / "photo").write_bytes(b"ours")
    (tmp_path / "out/found").write_bytes(b"theirs")
    (tmp_path / "out/changed").write_bytes(b"theirs")
    (tmp_path / "out/linked").unlink()
    (tmp_path / "out/linked").symlink_to(tmp_path / "photo")
    (tmp_path / "out/dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "out/folder").unlink()
    (tmp_path / "out/folder").mkdir()
    for name in ("found", "changed", "linked", "dangling", "folder"):
        for act in (folder.check, lambda name: folder.write(name, b"new")):
            with pytest.raises(
                UserError, match=f"out/{name}: .*(not written by kgarden|is a folder)"
            ) as raised:
                act(name)
            assert "\n" not in str(raised.value)
    assert (tmp_path / "photo").read_bytes() == b"ours" and not (tmp_path / "nothing").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "found",
        "changed",
        "linked",
        "dangling",
        "folder",
        LIST,
    }


def test_inputs_stay_even_if_they_are_earlier_output(tmp_path):
    OutputFolder(tmp_path / "out").write("a.png", b"drawing")
    (tmp_path / "alias").symlink_to(tmp_path / "out")
    folder = OutputFolder(tmp_path / "out", inputs=[tmp_path / "alias" / "a.png"])
    with pytest.raises(UserError, match="out/a.png: is an input"):
        folder.write("a.png", b"new")
    assert content(tmp_path / "out") == {"a.png": b"drawing"}


def test_a_folder_of_kgarden_is_replaced_without_a_list(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"old")
    OutputFolder(tmp_path, owned=True).write("a.txt", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"new"}


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path)
    folder.write("a.txt", b"1")
    with pytest.raises(OutputError, match=r"a.txt: cannot be written \(No space left on device\)"):
        with folder.replacing("a.txt") as temporary:
            temporary.write_bytes(b"ha")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(tmp_path) == {"a.txt": b"1"}
    folder.write("a.txt", b"2")


def test_a_list_on_a_full_disk_stays_whole(tmp_path):
    """Half a line would make the next one unreadable too, and its file one of somebody else."""
    folder = OutputFolder(tmp_path)
    folder.write("a.txt", b"1")
    with size_limit((tmp_path / LIST).stat().st_size + 5):
        with pytest.raises(OutputError, match=f"{LIST}: cannot be written .File too large"):
            folder.write("b.txt", b"1")
    folder.write("b.txt", b"1")
    OutputFolder(tmp_path).write("b.txt", b"2")
    assert content(tmp_path) == {"a.txt": b"1", "b.txt": b"2"}


def test_a_damaged_list_protects(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write("a.txt", b"1")
    for damaged in ('{"file": "a.txt", "sha', "[]", '{"file": [1], "sha256": 3}', "\0"):
        (tmp_path / LIST).write_text(damaged)
        with pytest.raises(UserError, match="not written by kgarden"):
            OutputFolder(tmp_path).write("a.txt", b"2")


def test_odd_folders_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for odd in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none/x"):
        with pytest.raises(OutputError, match=f"{odd}: cannot be written"):
            OutputFolder(odd).write("a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
