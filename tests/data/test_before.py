"""Checks before a conversion: missing files first, then classes, then the model; nothing is converted."""

import json

import pytest
from PIL import Image

from kgarden import build
from kgarden.config.loading import load_recipe
from kgarden.data.before import check_before
from kgarden.errors import UserError
from tfrecords.converters.formats import FORMATS

CLASSES = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """world(**changes) -> recipe on train.json and val.json; a conversion is an error."""

    def refuse(*_, **__):
        raise AssertionError("nothing may be converted")

    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name / "1.png")
        write(tmp_path, name, CLASSES)
    for form in ("coco", "voc", "csv", "yolo"):
        monkeypatch.setitem(FORMATS, form, refuse)
    source = {
        name: {"format": "coco", "images": f"{tmp_path}/{name}", "annotations": f"{tmp_path}/{name}.json"}
        for name in ("train", "val")
    }
    return lambda **changes: load_recipe(
        "quickstart",
        {"data.train": source["train"], "data.val": source["val"]}
        | {key.replace("__", "."): value for key, value in changes.items()},
    )


def write(folder, name, classes):
    images = [{"id": 1, "file_name": "1.png", "height": 30, "width": 40}]
    (folder / f"{name}.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": classes})
    )


def test_classes_are_known_without_a_conversion(world, tmp_path):
    names = [one["name"] for one in check_before(world(), tmp_path)]
    assert names == ["cup", "plate"]
    (tmp_path / "names.txt").write_text("plate\n")
    listed = f"{tmp_path}/names.txt"
    found = check_before(world(data__train__classes=listed, data__val__classes=listed), tmp_path)
    assert [one["name"] for one in found] == ["plate"]
    (tmp_path / "names.txt").write_text("plate\ncup\n")  # read again
    found = check_before(world(data__train__classes=listed, data__val__classes=listed), tmp_path)
    assert [one["name"] for one in found] == ["plate", "cup"]
    shapes = {"format": "shapes", "count": 4, "seed": 0}
    assert len(check_before(world(data__train=shapes, data__val=shapes), tmp_path)) == 6
    table = {"format": "csv", "images": f"{tmp_path}/train", "annotations": f"{tmp_path}/train.json"}
    assert check_before(world(data__train=table, data__val=table), tmp_path) is None
    (tmp_path / "data.yaml").write_text("train: train\nnames: [cup, plate]\n")
    labels = {"format": "yolo", "annotations": f"{tmp_path}/data.yaml", "split": "train"}
    labels["rename"] = {"cup": "mug"}
    found = check_before(world(data__train=labels, data__val=labels), tmp_path)
    assert found == [{"id": 0, "name": "mug"}, {"id": 1, "name": "plate"}]
    (tmp_path / "codes.csv").write_text("/m/2,plate\n/m/1,cup\n")
    tables = {"annotations": f"{tmp_path}/train.json", "descriptions": f"{tmp_path}/codes.csv"}
    parts = {"format": "openimages", "images": f"{tmp_path}/train", **tables}
    found = check_before(world(data__train=parts, data__val=parts), tmp_path)
    assert [(one["name"], one["source_id"]) for one in found] == [("plate", "/m/2"), ("cup", "/m/1")]


def test_missing_files_are_said_first_and_all_at_once(world, tmp_path):
    """The classes differ too, and val is missing: an hour of converting train would come before that."""
    write(tmp_path, "val", CLASSES[:1])
    recipe = world(data__val__images="none/images", data__val__classes="none/names.txt")
    with pytest.raises(
        UserError, match=r"^data\.val\.images: no such .*: none/images; data\.val\.classes: no such"
    ):
        build.prepare_data(recipe, tmp_path / "cache")
    with pytest.raises(UserError, match=r"^data\.train: .*none: no shards found.*or name raw data"):
        build.prepare_data(world(data__train="none"), tmp_path / "cache")


def test_other_classes_and_their_number_are_said_before_a_conversion(world, tmp_path):
    with pytest.raises(UserError, match=r"model\.num_classes is 3, the data has 2 classes \(cup, plate\)"):
        build.prepare_data(world(model__num_classes=3), tmp_path / "cache")
    write(tmp_path, "val", [*CLASSES, {"id": 7, "name": "spoon"}])
    with pytest.raises(UserError, match=r"^data\.val \(.*val\.json\) .*: only data\.val has spoon \(id 7\)"):
        build.prepare_data(world(), tmp_path / "cache")


def test_the_model_is_built_before_a_conversion(world, tmp_path):
    calls = []

    def make(categories):
        calls.append(len(categories))
        raise UserError("no such setting")

    with pytest.raises(UserError, match="no such setting"):
        build.prepare_data(world(), tmp_path / "cache", on_classes=make)
    assert calls == [2]


@pytest.mark.parametrize(
    "ending,said", [(".yaml", "format: yolo"), (".json", "format: coco"), (".csv", "format: csv")]
)
def test_files_of_other_forms_are_no_shards(world, tmp_path, ending, said):
    file = tmp_path / f"data{ending}"
    file.write_text("names: [cup]\n")
    with pytest.raises(
        UserError, match=rf"^data\.train: .*data\{ending}: no shards found; this is .*{said}[^…]*$"
    ):
        build.prepare_data(world(data__train=str(file)), tmp_path / "cache")
