"""YOLO label files and data.yaml; boxes are by hand for images of 40x30 px."""

import json

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from tfrecords.converters import yolo  # noqa: E402
from tfrecords.converters.split_files import split_data  # noqa: E402
from tfrecords.schema import DataError, parse  # noqa: E402

BOX = "0 0.25 0.5 0.5 0.2"  # x 0 to 20, y 12 to 18
TRIANGLE = "1 0.1 0.1 0.5 0.1 0.5 0.7"  # x 4 to 20, y 3 to 21


@pytest.fixture
def place(tmp_path):
    """place(files) writes label files, lists and data.yaml, and an image for each name that ends as one."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".jpg", ".png"):
                Image.new("RGB", content or (40, 30)).save(path, "png" if path.suffix == ".png" else "jpeg")
            else:
                path.write_text(content)
        return tmp_path

    return write


def truth(folder):
    """{file name: [(class name, bbox), ...]}."""
    tree = json.loads((folder / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in tree["categories"]}
    return {
        image["file_name"]: [
            (names[a["category_id"]], [round(side, 6) for side in a["bbox"]])
            for a in tree["annotations"]
            if a["image_id"] == image["id"]
        ]
        for image in tree["images"]
    }


def test_boxes_and_polygons(place):
    root = place(
        {
            "data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames: {0: cup, 1: plate}\n",
            "images/train/a.jpg": None,
            "images/train/b.jpg": None,
            "images/train/deep/c.png": None,
            "images/val/a.jpg": None,
            "labels/train/a.txt": f"{BOX}\n\n{TRIANGLE}\n",
            "labels/train/deep/c.txt": "",
            "labels/val/a.txt": "1 0.5 0.5 1 1\n",
        }
    )
    report = yolo.build(root / "to", annotations=root / "data.yaml", split="train", shards=1)
    assert truth(root / "to") == {
        "a.jpg": [("cup", [0, 12, 20, 6]), ("plate", [4, 3, 16, 18])],
        "b.jpg": [],
        "deep/c.png": [],
    }
    assert report.categories == [{"id": 0, "name": "cup"}, {"id": 1, "name": "plate"}]
    assert (report.images, report.images_without_objects, report.boxes, report.masks) == (3, 2, 2, 1)
    assert not report.faults and report.clipped == 0
    first = parse(next(iter(tf.data.TFRecordDataset(str(root / "to/to-00000-of-00001.tfrecord")))))
    np.testing.assert_allclose(first["boxes"][0] * [40, 30, 40, 30], [0, 12, 20, 18], atol=1e-5)
    np.testing.assert_array_equal(first["category_ids"], [0, 1])
    [_, outline] = json.loads((root / "to/annotations.json").read_text())["annotations"]
    np.testing.assert_allclose(outline["segmentation"], [[4, 3, 20, 3, 20, 21]])
    assert outline["area"] == pytest.approx(16 * 18 / 2, abs=16)  # half of its box, give or take its rim
    yolo.build(root / "val", annotations=root, split="val")  # the folder of data.yaml
    assert truth(root / "val") == {"a.jpg": [("plate", [0, 0, 40, 30])]}


@pytest.mark.parametrize("where", ["labels/data.yaml", "data.yaml", "labels/classes.txt", "names.txt"])
def test_a_folder_of_label_files(place, where):
    names = "names: [cup, plate]\n" if where.endswith(".yaml") else "cup\nplate\n"
    root = place({"p/a.JPG": None, "p/b.jpg": None, "labels/A.TXT": BOX, where: names})
    arguments = {"annotations": root / "labels", "images": root / "p"}
    if where == "names.txt":
        with pytest.raises(DataError, match="give a list"):
            yolo.build(root / "to", **arguments)
        arguments["classes"] = root / where
    report = yolo.build(root / "to", **arguments)
    assert truth(root / "to") == {"a.JPG": [("cup", [0, 12, 20, 6])], "b.jpg": []}
    assert [c["name"] for c in report.categories] == ["cup", "plate"]


def test_faulty_lines_are_counted_by_reason(place):
    lines = [
        BOX,
        "0 0.9 0.5 0.4 0.2",  # x 28 to 44: clipped at 40
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 0.1 0.1 0.9",
        "0 0.5 0.5 0.1 0.1 0.9 0.9 0.9",
        "2 0.5 0.5 0.1 0.1",
        "-1 0.5 0.5 0.1 0.1",
        "cup 0.5 0.5 0.1 0.1",
        "0 0.5 nan 0.1 0.1",
        "0 0.5 0.5 0 0.1",
        "0 1.5 0.5 0.1 0.1",
        "0.0 0.25 0.5 -0.5 0.4",  # swapped corners are put in order
        BOX,
    ]
    root = place(
        {"a.jpg": None, "a.txt": "\n".join(lines), "data.yaml": "train: .\nnames: [cup, plate]\nnc: 2"}
    )
    report = yolo.build(root / "to", annotations=root / "data.yaml", split="train")
    assert (report.boxes, report.boxes_total, report.clipped) == (3, 13, 1)
    assert report.dropped == {
        "the line has 4 fields, not 5": 1,
        "the line has 6 fields, not 5": 1,
        "the line has 8 fields, not 5 or a polygon": 1,
        "its class id is beyond the names": 2,
        "its class is not a whole number": 1,
        "its values are not finite numbers": 1,
        "the annotation is listed twice": 1,
        "box without area": 1,
        "box outside the image": 1,
    }
    assert report.remarks == {"its corners were swapped: put in order": 1}
    assert truth(root / "to")["a.jpg"][2] == ("cup", [0, 9, 20, 12])
    assert str(report.faults[0]) == "a.txt:3: the line has 4 fields, not 5"
    assert "a.txt:10 of a.jpg: box without area" in map(str, report.faults)
    assert truth(root / "to")["a.jpg"][1] == ("cup", [28, 12, 12, 6])


def test_classes_are_chosen_and_renamed(place):
    root = place({"a.jpg": None, "a.txt": f"{BOX}\n{TRIANGLE}", "data.yaml": "val: .\nnames: [cup, plate]"})
    (root / "names.txt").write_text("dish\n")
    arguments = {"annotations": root / "data.yaml", "split": "val", "rename": {"plate": "dish"}}
    assert yolo.build(root / "one", **arguments).categories == [
        {"id": 0, "name": "cup"},
        {"id": 1, "name": "dish"},
    ]
    report = yolo.build(root / "two", **arguments, classes=root / "names.txt")
    assert report.categories == [{"id": 1, "name": "dish"}]
    assert report.dropped == {"its class is not in the list": 1} and report.boxes == 1


@pytest.mark.parametrize(
    "entry,remarks",
    [
        ("train: train/images", 0),
        ("train: ../train/images", 0),  # Roboflow
        ("path: ..\ntrain: set\\train\\images", 0),
        ("train: [train/images]", 0),
        ("path: C:\\data\\set\ntrain: train/images", 1),
        ("path: /content/set\ntrain: /content/set/train/images", 2),
        ("train: lists/train.txt", 0),
        ("train: lists/other.txt", 2),
        ("path: val\ntrain: ../train/images", 0),  # outside of path, in the folder of data.yaml
        ("train: ../aside/images", 1),  # outside of both
    ],
)
def test_where_the_images_of_a_split_are(place, entry, remarks):
    root = place(
        {
            "set/data.yaml": f"{entry}\nnames: [cup, plate]\n",
            "set/train/images/a, 1.jpg": None,
            "set/train/images/b.jpg": None,
            "set/train/labels/a, 1.txt": BOX,
            "set/val/images/b.jpg": None,
            "aside/images/a, 1.jpg": None,
            "aside/images/b.jpg": None,
            "aside/labels/a, 1.txt": BOX,
            "set/lists/train.txt": "../train/images/a, 1.jpg\ntrain\\images\\b.jpg\n",
            "set/lists/other.txt": "/content/train/images/a, 1.jpg\nC:\\x\\train\\images\\b.jpg\n",
        }
    )
    report = yolo.build(root / "to", annotations=root / "set/data.yaml", split="train")
    assert [len(boxes) for boxes in truth(root / "to").values()] == [1, 0]
    assert all(name.endswith(("a, 1.jpg", "b.jpg")) for name in truth(root / "to"))
    assert sum(report.remarks.values()) == remarks and report.images == 2


def test_lists_with_faults(place):
    """Missing, ambiguous, outside of the set (remarked), listed twice."""
    root = place(
        {
            "set/data.yaml": "train: train.txt\nnames: [cup]\n",
            "set/images/a.jpg": None,
            "set/images/one/b.jpg": None,
            "set/images/two/b.jpg": None,
            "set/labels/a.txt": BOX,
            "out/c.jpg": None,
            "set/train.txt": "./images/a.jpg\nimages/no.jpg\nb.jpg\n../out/c.jpg\nimages/a.jpg\n",
        }
    )
    report = yolo.build(root / "to", annotations=root / "set/data.yaml", split="train")
    assert list(truth(root / "to")) == ["set/images/a.jpg", "out/c.jpg"]
    assert report.remarks == {"outside of the folder of the data set: read as listed": 1}
    assert (report.faulty_pictures, report.boxes_total, report.dropped) == (
        3,
        2,
        {"its image is left out": 1},
    )
    assert report.missing_files == 1 and "no.jpg" in str(report.faults[0])
    named = "\n".join(map(str, report.faults))
    for part in (
        "train.txt:2: images/no.jpg: no such file",
        "train.txt:3: b.jpg: ambiguous: 2",
        "listed twice",
    ):
        assert part in named


def test_a_label_file_of_another_folder_is_not_taken(place):
    """val/a.jpg has no labels: those of train/a.jpg are not its own."""
    root = place(
        {
            "data.yaml": "val: images/val\nnames: [cup]\n",
            "images/val/a.jpg": None,
            "images/val/b.jpg": None,
            "labels/train/a.txt": BOX,
            "labels/val/b.txt": BOX,
        }
    )
    yolo.build(root / "to", annotations=root / "data.yaml", split="val")
    assert [len(boxes) for boxes in truth(root / "to").values()] == [0, 1]


def test_keypoints_are_skipped(place):
    """kpt_shape: 2 points of 2 numbers follow the box; nine fields would be a polygon otherwise."""
    root = place(
        {
            "a.jpg": None,
            "a.txt": f"{BOX} 0.1 0.1 0.2 0.2",
            "data.yaml": "val: .\nnames: [cup]\nkpt_shape: [2, 2]",
        }
    )
    report = yolo.build(root / "to", annotations=root / "data.yaml", split="val")
    assert truth(root / "to") == {"a.jpg": [("cup", [0, 12, 20, 6])]} and report.masks == 0


def test_image_ids_are_names_that_are_numbers(place):
    """Also nanoseconds, of 19 digits; 2^63 is no int64, and all images are numbered."""
    root = place({"0007.jpg": None, "1305031102175304000.jpg": None, "0007.txt": BOX})
    place({"data.yaml": "val: .\nnames: [cup]"})
    for name, ids in (("to", [7, 1305031102175304000]), ("more", [1, 2, 3])):
        yolo.build(root / name, annotations=root / "data.yaml", split="val")
        images = json.loads((root / name / "annotations.json").read_text())["images"]
        assert [image["id"] for image in images] == ids
        place({f"{2**63}.jpg": None})


def test_a_label_file_that_may_be_one_of_two(place):
    """The image is left out; what a conversion reads is told all the same."""
    root = place(
        {
            "images/a.jpg": None,
            "images/b.jpg": None,
            "labels/a.txt": BOX,
            "labels/one/b.txt": BOX,
            "labels/two/b.txt": BOX,
            "labels/classes.txt": "cup",
        }
    )
    arguments = {"annotations": root / "labels", "images": root / "images"}
    report = yolo.build(root / "to", **arguments)
    assert list(truth(root / "to")) == ["a.jpg"]
    assert str(report.faults[0]).startswith("b.jpg: ambiguous: 2 files")
    assert yolo.inputs(**arguments) == [
        (str(root / "images/a.jpg"), str(root / "labels/a.txt")),
        (str(root / "images/b.jpg"), None),
    ]
    parts, _ = split_data(root / "labels", root / "lists", images=root / "images", val=0.5)
    assert parts.part_of.keys() == {"a.jpg", "b.jpg"} and parts.classes[""] != parts.classes["cup"]


@pytest.mark.parametrize(
    "description,message",
    [
        ("names: [cup\ntrain: .", r"data.yaml:\d: not YAML"),
        ("- a", "not a data.yaml"),
        ("train: .\nnames: [cup]\nnc: 2", "nc is 2, but names has 1 classes"),
        ("train: .\nnames: {0: cup, a: plate}", "needs an id from 0 on and a name"),
        ("train: .\nnc: 100001", "nc is 100001, which is no number of classes"),
        ("train: .\nnc: -1", "nc is -1, which is no number of classes"),
        ("train: .\nnames: cup", "names must be a list or a dictionary"),
        ("train: .\nnames: [yes, no]", "names: True is no text: put the name in quotes"),
        ("train: .", "names the classes: give a list"),
        ("val: .\nnames: [cup]", "no split 'train'; it has: val"),
        ("train: none\nnames: [cup]", "train: no such folder or list of images: .*none"),
        (f"train: {'a' * 300}\nnames: [cup]", "train: no such folder or list of images"),
        ("train: 5\nnames: [cup]", "train must be a folder"),
        ("train: empty.txt\nnames: [cup]", "empty.txt: the list is empty"),
        ("train: labels\nnames: [cup]", "no images in"),
        ("train: images\nnames: [cup]", "no label file belongs to an image in"),
        ("train: .\nnames: [cup]\nkpt_shape: 17", "kpt_shape must be"),
    ],
)
def test_what_is_no_data_set(place, description, message):
    root = place({"images/a.jpg": None, "labels/z.txt": BOX, "data.yaml": description, "empty.txt": "\n"})
    with pytest.raises(DataError, match=message) as caught:
        yolo.build(root / "to", annotations=root / "data.yaml", split="train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"annotations": "none.yaml", "split": "train"}, "none.yaml: no such file"),
        ({"annotations": "none"}, "no data.yaml and no folder of label files"),
        ({"annotations": "labels"}, "has no data.yaml: .* give images too"),
        ({"annotations": "data.yaml"}, "choose a split; it has: val"),
        ({"annotations": "labels", "images": "none"}, "none: no such folder of images"),
        ({"annotations": "labels", "images": "images", "split": "none"}, "no such list of images"),
    ],
)
def test_arguments_that_name_no_data_set(place, monkeypatch, arguments, message):
    root = place({"images/a.jpg": None, "labels/a.txt": BOX, "data.yaml": "val: images\nnames: [cup]"})
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match=message):
        yolo.build("to", **arguments)
