"""Conversions that are cut off, that run at the same time, and that find no room on the disk."""

import hashlib
import json
import os
import pathlib
import signal
import time

import pytest

pytest.importorskip("tensorflow")

from support.programs.builds import COUNT, SMALL  # noqa: E402
from support.programs.forks import forks  # noqa: E402

from tfrecords.converters import shapes  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402
from tfrecords.write import read_manifest  # noqa: E402


def files_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same set, built without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "to"
    shapes.build(folder, count=COUNT, **SMALL)
    return files_of(folder)


def start(how, *arguments):
    """Begin to build in a process of its own, see support/programs/builds.py."""
    return forks().start("builds", how, *arguments, CUDA_VISIBLE_DEVICES="-1")


def build_and_die(*arguments):
    code, said = start("killed", *arguments).ended()
    assert code == -signal.SIGKILL, said


@pytest.mark.parametrize("after", [2, 15, COUNT])
def test_killed_conversion_resumes_with_the_same_result(tmp_path, whole, after):
    to, aside = tmp_path / "to", tmp_path / ".to.partial"
    build_and_die(to, after)
    assert not to.exists() and aside.is_dir()
    before = {path.name: path.stat().st_mtime_ns for path in aside.glob("*.tfrecord")}
    assert len(before) == (after - 1) // 6  # the shards of six images that were whole
    shapes.build(to, count=COUNT, **SMALL)
    assert files_of(to) == whole and not aside.exists()
    for name, written in before.items():
        assert (to / name).stat().st_mtime_ns == written  # taken over, not made again


def test_workers_exit_with_their_parent(tmp_path, whole):
    build_and_die(tmp_path / "to", 8, 2)
    deadline = time.monotonic() + 20
    while workers_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers_of(tmp_path)
    shapes.build(tmp_path / "to", count=COUNT, **SMALL)
    assert files_of(tmp_path / "to") == whole


def workers_of(folder):
    """Processes that have a file of this folder open."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*/fd"):
        try:
            open_files = [os.readlink(file) for file in process.iterdir()]
        except OSError:
            continue
        if process.parent.name != str(os.getpid()) and any(str(folder) in file for file in open_files):
            found.append(process.parent.name)
    return found


def test_shards_of_other_settings_are_not_reused(tmp_path, whole):
    to, aside = tmp_path / "to", tmp_path / ".to.partial"
    build_and_die(to, 15)
    assert list(aside.glob("*.tfrecord"))
    shapes.build(to, count=COUNT, **{**SMALL, "seed": 2})
    other = tmp_path / "clean/to"
    shapes.build(other, count=COUNT, **{**SMALL, "seed": 2})
    assert files_of(to) == files_of(other) != whole


def test_changed_image_is_read_again(tmp_path):
    from PIL import Image

    from tfrecords import pool
    from tfrecords.converters import coco

    (tmp_path / "images").mkdir()
    names = [f"{n}.png" for n in range(4)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    tree = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))

    def build(to, **options):
        return coco.build(
            to, images=tmp_path / "images", annotations=tmp_path / "a.json", shards=4, **options
        )

    def stop(done, total):
        raise KeyboardInterrupt

    pool.TELL_EVERY, told = 1, pool.TELL_EVERY
    try:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "to", progress=lambda done, total: done == 3 and stop(done, total))
    finally:
        pool.TELL_EVERY = told
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images/0.png")
    build(tmp_path / "to")
    (tmp_path / "clean").mkdir()
    build(tmp_path / "clean/to")
    assert files_of(tmp_path / "to") == files_of(tmp_path / "clean/to")


def start_slowly(to):
    """A process that is in the middle of building."""
    process, deadline = start("slow", to), time.monotonic() + 60
    while not (to.parent / ".to.partial/lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_two_processes_that_build_the_same_set(tmp_path, whole):
    """The second waits for the first, finds the set and says what is in it."""
    first = start_slowly(tmp_path / "to")
    report = shapes.build(tmp_path / "to", count=COUNT, **SMALL)
    assert first.ended()[0] == 0
    assert report.images == COUNT and report.boxes == read_manifest(tmp_path / "to")["boxes"]
    assert files_of(tmp_path / "to") == whole and [p.name for p in tmp_path.iterdir()] == ["to"]


def test_two_processes_that_build_different_sets_in_one_directory(tmp_path):
    first = start_slowly(tmp_path / "to")
    with pytest.raises(DataError, match="a different data set"):
        shapes.build(tmp_path / "to", count=COUNT, **{**SMALL, "seed": 5})
    assert first.ended()[0] == 0


def test_full_disk_is_one_line_and_the_next_call_resumes(tmp_path, whole):
    code, said = start("full", tmp_path / "to").ended()
    said = said.split("said: ")[1].strip()
    assert code == 1 and "cannot be written" in said and "to continue" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "to").exists()
    shapes.build(tmp_path / "to", count=COUNT, **SMALL)
    assert files_of(tmp_path / "to") == whole


def test_directory_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        shapes.build(tmp_path / "file/to", count=2, **SMALL)
