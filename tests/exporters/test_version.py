"""Version directories of exports: complete, numbered, and not in the way of each other."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys

import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden.errors import OutputError, UserError  # noqa: E402
from kgarden.exporters import version  # noqa: E402
from kgarden.exporters.version import new_version  # noqa: E402


def export(to, content="x"):
    with new_version(to, "onnx") as (aside, path):
        (aside / "metadata.json").write_text('{"format": "onnx"}')
        (aside / "model.onnx").write_text(content)
    return path


def test_a_killed_export_leaves_nothing_that_stops_the_next(tmp_path):
    """Killed after it has written a part; its process number may come again, as in containers."""
    program = (
        "import os, sys\nfrom kgarden.exporters.version import new_version\n"
        "with new_version(sys.argv[1], 'onnx') as (aside, version):\n"
        "    (aside / 'model.onnx').write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert done.returncode == -9 and len(list(tmp_path.iterdir())) == 2, done.stderr
    (tmp_path / f".exporting.{os.getpid()}").mkdir()
    assert export(tmp_path) == tmp_path / "1" and export(tmp_path) == tmp_path / "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_two_exports_at_once(tmp_path):
    with new_version(tmp_path, "onnx") as (aside, _):
        with pytest.raises(UserError, match=f"{tmp_path} is in use by process {os.getpid()} "):
            export(tmp_path)
        assert aside.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_versions_are_counted_under_the_lock(tmp_path, monkeypatch):
    """Another export may end between the first look at the folder and the lock."""

    @contextlib.contextmanager
    def after_another(*args, **kwargs):
        monkeypatch.undo()
        export(tmp_path)
        yield

    monkeypatch.setattr(version, "locked", after_another)
    assert export(tmp_path) == tmp_path / "2"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        tf.errors.ResourceExhaustedError(None, None, "x/variables.data; No space left on device"),
        tf.errors.FailedPreconditionError(None, None, "x; Read-only file system"),
    ],
)
def test_a_full_disk_leaves_no_version(tmp_path, error):
    with pytest.raises(OutputError, match="1: cannot be written .(No space|Read-only)"):
        with new_version(tmp_path / "to", "onnx") as (aside, _):
            (aside / "model.onnx").write_text("half")
            raise error
    assert list((tmp_path / "to").iterdir()) == []


def test_other_errors_pass(tmp_path):
    with pytest.raises(tf.errors.ResourceExhaustedError), new_version(tmp_path, "onnx"):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    (tmp_path / "file").touch()
    for odd in (tmp_path / "file", tmp_path / "file" / "below", pathlib.Path("/proc/none")):
        with pytest.raises(OutputError, match="cannot be written"):
            export(odd)
