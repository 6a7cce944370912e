"""Conversion by Apache Beam: the same files as by the process pool, and its faults in one line."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from kgarden import cli
from tfrecords.beam import BeamWorkers
from tfrecords.converters import coco, shapes
from tfrecords.files import Unfinished
from tfrecords.schema import DataError

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="needs apache-beam, the extra `beam`")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_without_beam_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DataError, match=r"runner beam needs apache-beam .*pip install 'kgarden\[beam\]'"):
        shapes.build(tmp_path / "x", count=3, seed=0, workers=BeamWorkers())


@pytest.mark.parametrize("options", [(), ("--direct_num_workers=2", "--direct_running_mode=multi_threading")])
def test_the_shards_are_those_of_the_pool(beam, tmp_path, options):
    seen = []
    arguments = dict(count=12, seed=3, shards=3)
    report = shapes.build(
        tmp_path / "beam" / "x",
        **arguments,
        workers=BeamWorkers(options),
        progress=lambda *done: seen.append(done),
    )
    other = shapes.build(tmp_path / "pool" / "x", **arguments, workers=0)
    assert manifest_of(tmp_path / "beam" / "x") == manifest_of(tmp_path / "pool" / "x")
    assert (report.images, report.boxes) == (other.images, other.boxes) and seen[-1] == (12, 12)
    names = {path.name for path in (tmp_path / "beam" / "x").iterdir()}
    assert names == {path.name for path in (tmp_path / "pool" / "x").iterdir()}


def test_a_strict_fault_and_a_broken_pipeline(beam, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((20, 20, 3), "uint8")).save(photos / f"{name}.png")
    (photos / "b.png").write_bytes(b"no image")
    truth = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "height": 20, "width": 20} for n, name in enumerate("ab", 1)
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    arguments = dict(images=photos, annotations=tmp_path / "truth.json", workers=BeamWorkers(), shards=2)
    with pytest.raises(DataError, match="b.png: not an image") as caught:
        coco.build(tmp_path / "strict", **arguments, strict=True)
    assert not isinstance(caught.value, Unfinished) and not (tmp_path / "strict").exists()
    assert coco.build(tmp_path / "lenient", **arguments).images == 1
    monkeypatch.setattr(beam, "Reshuffle", lambda: (_ for _ in ()).throw(RuntimeError("first\nlast line")))
    with pytest.raises(Unfinished, match="Beam: last line: run the same command again to continue"):
        coco.build(tmp_path / "broken", **arguments)


def test_shards_that_are_elsewhere_are_told(beam, tmp_path, monkeypatch):
    monkeypatch.setattr("tfrecords.beam._make", lambda element, work, strict: None)
    with pytest.raises(DataError, match=r"2 shards of Beam's workers are not here.*use shared storage"):
        shapes.build(tmp_path / "x", count=4, seed=0, shards=2, workers=BeamWorkers())


def test_the_command_line_chooses_the_runner(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    build = ["data", "build", "shapes", "--count", "3", "--to", str(tmp_path / "x")]
    for options, said in (
        (["--runner", "beam"], "runner beam needs apache-beam"),
        (["--runner", "spark"], "--runner spark: use pool or beam"),
        (["--beam-option=--direct_num_workers=2"], "--beam-option applies to --runner beam"),
        (["--runner", "beam", "--workers", "2"], "--workers applies to --runner pool"),
    ):
        assert cli.main([*build, *options]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_options_of_the_pipeline_reach_beam(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(BeamWorkers, "make_all", lambda self, *args, **kwargs: seen.append(self.options))
    build = ["data", "build", "shapes", "--count", "3", "--to", str(tmp_path / "x"), "--runner", "beam"]
    cli.main([*build, "--beam-option=--runner=FlinkRunner", "--beam-option=--flink_master=host:8081"])
    assert seen == [("--runner=FlinkRunner", "--flink_master=host:8081")]
