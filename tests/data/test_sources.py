"""What a recipe names as data: raw files of every form, our shards and those of others."""

import json
import shutil
import warnings

import pytest
from PIL import Image
from support import real_data

tf = pytest.importorskip("tensorflow")

from kgarden.build import prepare_data  # noqa: E402
from kgarden.config.loading import load_recipe, packaged_recipes  # noqa: E402
from kgarden.config.recipe import Source  # noqa: E402
from kgarden.data.sources import dataset_of, open_dataset  # noqa: E402
from kgarden.errors import UserError  # noqa: E402
from kgarden.metrics.registry import measure  # noqa: E402
from kgarden.structures import truth_is_valid  # noqa: E402

XML = """<annotation><object><name>cat</name>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax>
</bndbox></object></annotation>"""


@pytest.fixture
def world(tmp_path):
    """Two images with a box each, as voc and as csv."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / f"Annotations/{name}.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/val.txt").write_text("b\n")
    (tmp_path / "boxes.csv").write_text(
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,11,22\nb.jpg,,,,,\n"
    )
    return tmp_path


def opened(world, **source):
    return dataset_of(Source(**source).model_dump(), world / "cache")


def truth(data):
    [path] = data.annotations
    return json.loads(path.read_text())


def test_voc(world):
    data = opened(world, format="voc", root=str(world))
    assert len(data.index) == 2 and data.categories == [{"id": 1, "name": "cat"}]
    assert truth(data)["annotations"][0]["bbox"] == [1, 2, 10, 20]
    val = opened(world, format="voc", root=str(world), split="val", one_based=True)
    assert len(val.index) == 1 and truth(val)["annotations"][0]["bbox"] == [0, 1, 11, 21]
    (world / "ImageSets/Main/val.txt").write_text("a\nb\n")  # other lists, other data
    assert len(opened(world, format="voc", root=str(world), split="val", one_based=True).index) == 2
    folders = {"images": str(world / "JPEGImages"), "annotations": str(world / "Annotations")}
    assert len(opened(world, format="voc", **folders).index) == 2
    (world / "Annotations/b.xml").unlink()
    assert len(opened(world, format="voc", **folders).index) == 1


def test_csv(world):
    source = {"images": str(world / "JPEGImages"), "annotations": str(world / "boxes.csv")}
    data = opened(world, format="csv", **source)
    assert data.index.objects.tolist() == [1, 0]
    (world / "names.txt").write_text("dog\ncat\n")
    named = opened(world, format="csv", classes=str(world / "names.txt"), **source)
    assert [c["name"] for c in named.categories] == ["dog", "cat"]
    renamed = opened(world, format="csv", rename={"cat": 0}, **source)  # YAML reads 0 as a number
    assert [c["name"] for c in renamed.categories] == ["0"]


def test_yolo(world):
    """Other labels, other images, other data: the cache follows what data.yaml leads to."""
    for folder in ("images", "labels"):
        (world / folder).mkdir()
    for name in "ab":
        shutil.copy(world / f"JPEGImages/{name}.jpg", world / f"images/{name}.jpg")
    (world / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (world / "data.yaml").write_text("val: images\nnames: [cat, dog]\n")
    source = {"format": "yolo", "annotations": str(world / "data.yaml"), "split": "val"}
    data = opened(world, **source)
    assert data.index.objects.tolist() == [1, 0] and truth(data)["annotations"][0]["bbox"] == [
        10,
        7.5,
        20,
        15,
    ]
    (world / "labels/b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert opened(world, **source).index.objects.tolist() == [1, 1]
    shutil.copy(world / "images/b.jpg", world / "images/c.jpg")
    assert opened(world, **source).index.objects.tolist() == [1, 1, 0]


def test_renamings_of_a_recipe_are_no_paths(world):
    """A class may be called like a key that holds a path, and like a file beside the recipe."""
    (world / "cat").write_text("")
    source = {"format": "voc", "root": str(world), "rename": {"train": "cat", "cat": "train"}}
    changes = {"data.train": source, "data.val": source}
    (world / "r.yaml").write_text((packaged_recipes()["quickstart"]).read_text())
    [train] = load_recipe(world / "r.yaml", changes).data.train
    assert train.rename == {"train": "cat", "cat": "train"}
    assert [c["name"] for c in opened(world, **train.model_dump()).categories] == ["train"]


def test_lists_of_a_recipe_are_paths_and_names_of_lists_are_not(world):
    (world / "r.yaml").write_text((packaged_recipes()["quickstart"]).read_text())
    (world / "train").mkdir()
    (world / "mine.txt").write_text("a\n")
    for split, path in (("mine.txt", str(world / "mine.txt")), ("train", "train")):
        source = {"format": "voc", "root": str(world), "split": split}
        recipe = load_recipe(world / "r.yaml", {"data.train": source, "data.val": source})
        assert recipe.data.train[0].split == path


@pytest.mark.parametrize(
    "source,message",
    [
        ({"format": "voc"}, "requires root, or images and annotations"),
        ({"format": "voc", "images": "x"}, "requires root, or images and annotations"),
        ({"format": "csv", "images": "x"}, "requires annotations"),
        ({"format": "yolo", "images": "x"}, "requires annotations"),
        (
            {"format": "csv", "images": "x", "annotations": "y", "root": "z"},
            "unexpected root with format: csv",
        ),
        ({"format": "coco", "images": "x", "annotations": "y", "labels": "z"}, "unexpected labels"),
        ({"glob": "x", "classes": "y"}, "unexpected classes with glob"),
    ],
)
def test_conflicting_keys_of_a_source(source, message):
    with pytest.raises(ValueError, match=message):
        Source(**source)


def test_shards_of_other_tools(tmp_path):
    file = real_data.folder("raccoon", "data") / "test.record"
    data = opened(tmp_path, glob=str(file))
    assert data.index.files == (str(file),) and len(data.index) == 40 and data.index.objects.sum() == 44
    assert data.categories == [{"id": 1, "name": "raccoon"}]
    (tmp_path / "map.csv").write_text("1,Procyon lotor\n2,other\n")
    named = opened(tmp_path, glob=str(file), labels=str(tmp_path / "map.csv"))
    assert [c["name"] for c in named.categories] == ["Procyon lotor", "other"]
    assert [c["name"] for c in truth(named)["categories"]] == ["Procyon lotor", "other"]


def test_left_out_images_and_boxes_are_warned_about(world):
    faulty = "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,11,22\na.jpg,cat,5,5,5,5\nc.jpg,cat,1,2,3,4\n"
    (world / "boxes.csv").write_text(faulty)
    source = {"images": str(world / "JPEGImages"), "annotations": str(world / "boxes.csv")}
    with pytest.warns(UserWarning, match="left out: 1 of 2 images, 2 of 3 boxes"):
        opened(world, format="csv", **source)


def test_shards_that_the_manifest_does_not_have_are_warned_about(world):
    folder = opened(world, format="voc", root=str(world)).annotations[0].parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_dataset(folder).index) == 2
        shards = sorted(folder.glob("*.tfrecord"))
        assert len(open_dataset(str(shards[0])).index) == 1  # a part is chosen
    shards[1].rename(folder / "other.tfrecord")
    with pytest.warns(UserWarning) as told:
        open_dataset(folder)
    missing, unlisted = (str(one.message) for one in told)
    assert f"the shard {shards[1].name} is missing" in missing
    assert "the shard other.tfrecord is not listed there" in unlisted


def test_records_without_images_are_rejected(tmp_path):
    file = real_data.folder("voc100", "other_formats", "tfrecord") / "default.tfrecord"
    with pytest.raises(UserError, match="holds no image"):
        opened(tmp_path, glob=str(file))


def test_commas_and_spaces_in_the_names_of_folders(world):
    folder = opened(world, format="voc", root=str(world)).annotations[0].parent
    one, two = world / "a, b", world / "c"
    for name in (one, two):
        shutil.copytree(folder, name)
    for pattern, count in ((f"{one}", 2), (f"{one},{two}", 4), (f"{two}, {one}/*.tfrecord", 4)):
        assert len(open_dataset(pattern).index) == count, pattern


def test_own_shards_reject_labels(world):
    folder = opened(world, format="voc", root=str(world)).annotations[0].parent
    assert len(open_dataset(folder).index) == 2
    (world / "names.txt").write_text("dog\n")
    with pytest.raises(UserError, match="remove labels"):
        opened(world, glob=str(folder), labels=str(world / "names.txt"))


def test_the_recipe_of_voc_2007_leaves_difficult_objects_out(tmp_path):
    root = str(real_data.folder("voc100"))
    places = {"data.train.root": root, "data.train.split": "train", "data.val.root": root}
    recipe = load_recipe("double_head_voc07", {**places, "data.val.split": "val", "data.batch_size": 1})
    assert recipe.evaluate.metrics == ("coco",)
    data = prepare_data(recipe, tmp_path)
    tree = json.loads(data.annotations.read_text())
    difficult = [bool(one["difficult"]) for one in tree["annotations"]]
    assert len(data.categories) == 20 and len(difficult) == 69 and 0 < sum(difficult) < 38
    # Found objects alone are a perfect answer; so are those with every difficult one beside them.
    for kept in ([one for one in tree["annotations"] if not one["difficult"]], tree["annotations"]):
        results = [{**{k: one[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5} for one in kept]
        assert measure(recipe.evaluate.metrics, tree, results)["metrics"]["ap"] == pytest.approx(100)
    [path] = data.train[0].annotations
    learned = [one for one in json.loads(path.read_text())["annotations"] if not one["difficult"]]
    assert len(learned) == 204 - (38 - sum(difficult))
    pictures = {one["image_id"] for one in learned}
    seen = [truth_is_valid(y).numpy().sum() for _, y in data.train_batches().take(len(pictures))]
    assert sum(seen) == len(learned) and min(seen) > 0
