"""Identity of data sets: a run knows its shards, masks and classes again, and says what differs."""

import json
import os
import shutil

import pytest
from PIL import Image, ImageDraw

from kgarden.config.loading import load_recipe
from kgarden.data.identity import changes, check_classes, check_equal_classes, identity_of
from kgarden.data.sources import dataset_of, open_dataset
from kgarden.errors import UserError
from tfrecords.converters.formats import FORMATS

POLYGON = [[4, 4, 20, 4, 20, 20, 4, 20]]


@pytest.fixture
def built(tmp_path):
    """built(name, count, colour, masks, first) -> folder of two shards; each image has a mask."""

    def build(name, count=4, colour="red", with_masks=True, first=1):
        images = tmp_path / f"{name}-images"
        images.mkdir()
        tree = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
        for n in range(first, first + count):
            image = Image.new("RGB", (40, 30))
            ImageDraw.Draw(image).rectangle((4, 4, 20, 20 - n), fill=colour)
            image.save(images / f"{n}.png")
            tree["images"].append({"id": n, "file_name": f"{n}.png", "height": 30, "width": 40})
            box = {"bbox": [4, 4, 16, 16], "segmentation": POLYGON, "area": 256, "iscrowd": 0}
            tree["annotations"].append({"id": n, "image_id": n, "category_id": 1, **box})
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(tree))
        FORMATS["coco"](
            tmp_path / name, images=images, annotations=path, with_masks=with_masks, shards=2, workers=0
        )
        return tmp_path / name

    return build


def identity(pattern):
    return identity_of(open_dataset(pattern))


def lines(before, now):
    return changes({"val": [before]}, {"val": [now]})


def test_the_same_data_elsewhere_is_the_same(built, tmp_path):
    before = identity(built("a"))
    assert (before["images"], before["objects"], before["masks"]) == (4, 4, 4)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert lines(before, identity(tmp_path / "copy")) == []
    assert lines(before, json.loads(json.dumps(before))) == []


def test_other_images_under_the_same_names(built, tmp_path):
    before = identity(built("a"))
    shutil.rmtree(tmp_path / "a-images")
    shutil.rmtree(tmp_path / "a")
    [line] = lines(before, identity(built("a", colour="blue")))
    assert (
        line.startswith("data.val: the contents of a-00000-of-00002.tfrecord, a-00001") and "differ" in line
    )


def test_a_missing_and_an_added_shard(built, tmp_path):
    before = identity(built("a"))
    shard = tmp_path / "a" / "a-00001-of-00002.tfrecord"
    more = tmp_path / "a" / "more.tfrecord"
    shutil.copy(built("b", first=10) / "b-00000-of-00002.tfrecord", more)
    assert lines(before, identity(tmp_path / "a")) == [
        "data.val: 6 images, 4 when the run began",
        "data.val: 6 objects, 4 when the run began",
        "data.val: more.tfrecord is new",
    ]
    more.unlink()
    shard.unlink()
    assert lines(before, identity(tmp_path / "a")) == [
        "data.val: 2 images, 4 when the run began",
        "data.val: 2 objects, 4 when the run began",
        "data.val: a-00001-of-00002.tfrecord is missing",
    ]


def test_shards_of_the_same_name_are_told_apart(built, tmp_path):
    """Two folders of a list with the same names of shards, in folders of the same name too."""
    for place, source in (("x", built("a")), ("y", built("b", colour="blue", first=10))):
        (tmp_path / place / "val").mkdir(parents=True)
        for file in source.iterdir():
            shutil.copy(file, tmp_path / place / "val" / file.name.replace("b-0", "a-0"))
    for name in ("manifest.json", "index.json"):
        file = tmp_path / "y" / "val" / name
        file.write_text(file.read_text().replace('"b-0', '"a-0'))
    both = identity(f"{tmp_path}/x/val,{tmp_path}/y/val")["shards"]
    alone = [identity(tmp_path / place / "val")["shards"] for place in "xy"]
    shard = "a-00000-of-00002.tfrecord"
    assert len(both) == 4 and alone[0][shard] != alone[1][shard]
    for place, of_one in zip("xy", alone, strict=True):
        assert {both[f"{place}/val/{name}"] for name in of_one} == set(of_one.values())


def test_shards_without_masks_are_other_masks(built):
    before, folder = identity(built("a")), built("b", with_masks=False)
    found = lines(before, identity(folder))
    assert "data.val: 0 objects with a mask, 4 when the run began" in found
    assert json.loads((folder / "manifest.json").read_text())["masks"] == 4  # of annotations.json
    pipeline = pytest.importorskip("kgarden.data.pipeline", exc_type=ImportError)
    sizes = {
        "short_side_px": 30,
        "long_side_px": 40,
        "canvases": [[32, 64]],
        "batch_size": 1,
        "max_objects": 2,
    }
    with pytest.raises(UserError, match=r"data\.masks: .*b was built without masks \(--no-masks\)"):
        pipeline.train_batches([open_dataset(folder)], masks=True, **sizes)


def test_another_data_set_is_said_in_one_line_about_its_shards(built):
    found = lines(identity(built("a")), identity(built("b", count=6, colour="blue")))
    assert found[-1] == "data.val: all 2 shards differ from the 2 of the run"


def test_a_shard_that_no_longer_fits_its_manifest_and_another_ground_truth(built, tmp_path):
    before = identity(built("a"))
    with open(tmp_path / "a" / "annotations.json", "a") as file:
        file.write("\n")
    assert lines(before, identity(tmp_path / "a")) == [
        "data.val: annotations.json differs: another ground truth"
    ]
    os.truncate(tmp_path / "a" / "a-00000-of-00002.tfrecord", 100)
    [line] = lines(before, identity(tmp_path / "a"))
    assert "the contents of a-00000-of-00002.tfrecord differ" in line


def test_numbers_of_data_sets():
    assert changes({"train": [1, 2], "val": [1]}, {"train": [1]}) == [
        "data.train: 1 data sets, 2 when the run began"
    ]


def classes(*pairs):
    return [{"id": number, "name": name} for number, name in pairs]


@pytest.mark.parametrize(
    "found,said",
    [
        (classes((1, "cup"), (2, "plate"), (7, "spoon")), r"only val\.json has spoon \(id 7\)"),
        (classes((1, "cup")), r"only train\.json has plate \(id 2\)"),
        (
            classes((0, "cup"), (1, "plate")),
            r"ids differ \(cup 1, plate 2 in train\.json; cup 0, plate 1 in val\.json\)",
        ),
        (
            classes((2, "plate"), (1, "cup")),
            r"order differs \(cup, plate in train\.json; plate, cup in val\.json\)",
        ),
        (classes(*enumerate("abcdefg", 10)), r"has a \(id 10\), .*, e \(id 14\) and 2 more"),
    ],
)
def test_differing_classes_are_named_with_the_way_out(found, said):
    listed = classes((1, "cup"), (2, "plate"))
    with pytest.raises(UserError, match=said) as error:
        check_classes(listed, "train.json", found, "val.json")
    assert "classes: FILE" in str(error.value) and "--classes" in str(error.value)
    check_classes(listed, "train.json", [{**one, "source_id": "x"} for one in listed], "val.json")


def test_sources_are_named_by_their_key_and_file(built, tmp_path):
    """The way out that the message names is one: the json of the one is the list of the other."""
    built("a"), built("b")
    tree = json.loads((tmp_path / "b.json").read_text())
    tree["categories"] = classes((0, "plate"), (1, "cup"))
    (tmp_path / "b.json").write_text(json.dumps(tree))
    source = {
        n: {"format": "coco", "images": f"{tmp_path}/{n}-images", "annotations": f"{tmp_path}/{n}.json"}
        for n in "ab"
    }

    def datasets(**more):
        recipe = load_recipe("quickstart", {"data.train": source["a"], "data.val": {**source["b"], **more}})
        sets = {
            split: [dataset_of(getattr(recipe.data, split)[0].model_dump(), tmp_path / "cache")]
            for split in ("train", "val")
        }
        return recipe, sets

    with pytest.raises(
        UserError, match=r"^data\.val \(.*b\.json\) has other classes than data\.train \(.*a\.json\): only"
    ):
        check_equal_classes(*datasets())
    check_equal_classes(*datasets(classes=f"{tmp_path}/a.json"))
