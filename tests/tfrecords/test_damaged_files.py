"""Damaged files beside the shards: one line that names the file and says what to do."""

import json
import shutil

import pytest

from kgarden.data.sources import open_dataset
from tfrecords.converters import shapes
from tfrecords.index import open_index
from tfrecords.schema import DataError
from tfrecords.write import read_manifest

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shapes.build(folder, count=3, seed=0, size_hw=(64, 64), shards=2)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def one_line(function, *arguments):
    with pytest.raises(DataError) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_index(folder):
    path = folder / "index.json"
    whole = path.read_text()
    first = min(json.loads(whole))
    damages = {
        "cut": whole[:40],
        "empty": "",
        "zeros": "\0" * 50,
        "a list": "[1]",
        "deep": "[" * 100_000,
        "no column": json.dumps({first: {}}),
        "text": whole.replace("64", '"64"'),
        "fractions": whole.replace("64", "64.5"),
        "too large": whole.replace("64", "9" * 30),
    }
    for name, damage in damages.items():
        path.write_text(damage)
        assert one_line(open_index, folder).startswith(f"{path}: damaged: delete it"), name
    path.write_text(whole)
    changed(path, lambda content: content[first]["offset"].append(1))  # columns of different lengths
    assert one_line(open_index, folder).startswith(f"{path}: damaged")
    path.unlink()  # as the message says
    again = open_index(folder)
    assert json.loads(whole)[first]["offset"] == again.offset[again.shard == 0].tolist()


def test_manifest(folder):
    path = folder / "manifest.json"
    whole = path.read_text()
    for damage in (whole[:40], "", "\0\0", "[" * 100_000):
        path.write_text(damage)
        assert one_line(read_manifest, folder).startswith(f"{path}: not JSON")
    changes = {
        "categories": [None, [], [{"id": 1}], [{"id": "1", "name": "a"}], [{"id": 1, "name": 2}], {"a": 1}],
        "shards": [{"a": 1}, ["a"], [{"file": 1}]],
        "dropped": [[], {"why": "many"}],
        "images_total": ["3", [3]],
    }
    for key, values in changes.items():
        for value in values:
            path.write_text(whole)
            changed(path, lambda content, key=key, value=value: content.update({key: value}))
            said = one_line(open_dataset, folder)
            assert said == f"{path}: damaged ({key}): build the data set again", value
    path.write_bytes(b"\xff\xfe")
    assert one_line(read_manifest, folder).startswith(f"{path}: not JSON")
    path.unlink()
    path.mkdir()
    assert one_line(read_manifest, folder).startswith(f"{path}: cannot be read")
