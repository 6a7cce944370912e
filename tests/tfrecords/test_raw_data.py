"""Raw data where shards are expected: the message names the format and a command that parses."""

import re
import shlex

import pytest
import typer
import yaml

from kgarden.cli import app
from kgarden.config.recipe import Source
from tfrecords.index import shards_of
from tfrecords.raw_data import recognise
from tfrecords.schema import DataError


@pytest.mark.parametrize(
    "files,path,form",
    [
        (["data.yaml", "train/images/a.jpg"], "data.yaml", "yolo"),
        (["data.yaml", "classes.txt"], ".", "yolo"),
        (["images/a.jpg", "labels/a.txt", "classes.txt"], ".", "yolo"),
        (["a.jpg", "a.txt"], ".", "yolo"),
        (["instances.JSON"], "instances.JSON", "coco"),
        (["_annotations.coco.json", "a.jpg"], ".", "coco"),
        (["Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"], ".", "voc"),
        (["a.xml"], ".", "voc"),
        (["annotations/a.xml", "images/a.jpg"], ".", "voc"),
        (["annotations/instances_val.json", "images/a.jpg"], ".", "coco"),
        (["a.xml"], "a.xml", "voc"),
        (["boxes.csv"], ".", "csv"),
        (["train-annotations-bbox.csv"], "train-annotations-bbox.csv", "openimages"),
    ],
)
def test_raw_data_are_named_with_their_command(tmp_path, monkeypatch, files, path, form):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="no shards found; this is") as caught:
        shards_of(path)
    line = re.search("`(kgarden [^`]*)`", str(caught.value)).group(1)
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    for _ in range(3):
        name, command, words = command.resolve_command(typer.Context(command), words)
    assert name == form and command.make_context("kgarden", words)
    source = yaml.safe_load(re.search("{.*}", str(caught.value)).group())
    assert Source(**source).format == form


def test_shards_are_no_raw_data(tmp_path):
    for name in ("a-00000-of-00001.tfrecord", "manifest.json", "annotations.json", "index.json"):
        (tmp_path / name).write_text("")
    assert [file.name for file in shards_of(tmp_path)] == ["a-00000-of-00001.tfrecord"]


def test_other_paths_are_none(tmp_path):
    (tmp_path / "a.jpg").write_text("")
    assert recognise(tmp_path) is recognise(tmp_path / "a.jpg") is recognise(tmp_path / "none") is None
    with pytest.raises(DataError, match="no shards found; `kgarden data build` makes them"):
        shards_of(tmp_path)
