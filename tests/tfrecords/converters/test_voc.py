import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from tfrecords.converters import voc  # noqa: E402
from tfrecords.schema import DataError, parse  # noqa: E402
from tfrecords.write import read_manifest  # noqa: E402

BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>"""


def thing(corners, name="cat", extra=""):
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(voc.CORNERS, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


@pytest.fixture
def root(tmp_path):
    """VOC folder with images a, b, c of 40x30 px; `write(name, *objects)` writes one XML file."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{name}.jpg")
    return tmp_path


def write(root, name, *things, size="<size><width>40</width><height>30</height></size>", file_name=None):
    file_name = f"<filename>{file_name or name + '.jpg'}</filename>"
    content = f"<annotation><path>/home/x/{name}.jpg</path>{file_name}{size}{''.join(things)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(content)


def truth(root):
    tree = json.loads((root / "to/annotations.json").read_text())
    return {
        image["file_name"]: [a for a in tree["annotations"] if a["image_id"] == image["id"]]
        for image in tree["images"]
    }


def test_a_folder_becomes_records(root):
    write(root, "a", thing([2, 3, 12, 23], "dog"), thing([1, 1, 40, 30], extra="<difficult>1</difficult>"))
    write(root, "b")
    report = voc.build(root / "to", root=root, shards=1)
    assert (report.images, report.boxes, report.difficult, report.images_without_objects) == (2, 2, 1, 1)
    assert report.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    [first, _] = [parse(r) for r in tf.data.TFRecordDataset(str(root / "to/to-00000-of-00001.tfrecord"))]
    np.testing.assert_allclose(first["boxes"] * [40, 30, 40, 30], [[2, 3, 12, 23], [1, 1, 40, 30]], rtol=1e-6)
    np.testing.assert_array_equal(first["category_ids"], [2, 1])
    np.testing.assert_array_equal(first["difficult"], [False, True])
    assert [a["difficult"] for a in truth(root)["a.jpg"]] == [0, 1]


def test_swapped_corners_are_put_in_order(root):
    write(root, "a", thing([12, 3, 2, 23]))
    report = voc.build(root / "to", root=root)
    assert truth(root)["a.jpg"][0]["bbox"] == [2, 3, 10, 20]
    assert report.remarks == {"its corners were swapped: put in order": 1}


def test_difficult_objects_may_be_ignored(root):
    write(root, "a", thing([2, 3, 12, 23]), thing([1, 1, 40, 30], extra="<difficult>1</difficult>"))
    for ignore, crowd in ((False, [0, 0]), (True, [0, 1])):
        to = root / f"to{ignore}"
        report = voc.build(to, root=root, shards=1, ignore_difficult=ignore)
        tree = json.loads((to / "annotations.json").read_text())
        assert [a["iscrowd"] for a in tree["annotations"]] == crowd and report.difficult == 1
        assert [a["difficult"] for a in tree["annotations"]] == [0, 1]
        [record] = tf.data.TFRecordDataset(str(next(to.glob("*.tfrecord"))))
        np.testing.assert_array_equal(parse(record)["crowd"], crowd)
        assert read_manifest(to)["source"]["ignore_difficult"] is ignore


def test_one_based_coordinates(root):
    """Pascal: a box of the whole image is 1, 1, width, height, its last pixel inside."""
    write(root, "a", thing([1, 1, 40, 30]), thing([5, 5, 5, 5]))
    voc.build(root / "to", root=root, one_based=True)
    assert [a["bbox"] for a in truth(root)["a.jpg"]] == [[0, 0, 40, 30], [4, 4, 1, 1]]


def test_a_split_and_two_folders(root):
    for name in "abc":
        write(root, name, thing([1, 1, 5, 5], name))
    (root / "ImageSets/Main/val.txt").write_text("c  1\nb -1\n\nc\n")
    report = voc.build(root / "to", root=root, split="val")
    assert list(truth(root)) == ["c.jpg", "b.jpg"]
    assert [c["name"] for c in report.categories] == ["a", "b", "c"]  # of all splits
    report = voc.build(
        root / "again/to",
        images=root / "JPEGImages",
        annotations=root / "Annotations",
        split=root / "ImageSets/Main/val.txt",
    )
    assert report.images == 2


def test_the_order_of_a_list_of_classes(root):
    write(root, "a", thing([1, 1, 5, 5], "dog"), thing([1, 1, 5, 6], "bird"))
    (root / "names.txt").write_text("dog\ncat\n")
    report = voc.build(root / "to", root=root, classes=root / "names.txt")
    assert report.categories == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert report.boxes == 1 and report.dropped == {"its class is not in the list": 1}


def test_numeric_names_become_image_ids(root):
    for name, number in [("a", "000005"), ("b", "000012")]:
        (root / f"JPEGImages/{name}.jpg").rename(root / f"JPEGImages/{number}.jpg")
        write(root, number, thing([1, 1, 5, 5]))
    voc.build(root / "to", root=root)
    assert [i["id"] for i in json.loads((root / "to/annotations.json").read_text())["images"]] == [5, 12]


def test_image_is_found_by_its_file_name(root):
    """Not by the name inside, which is often that of another computer; unless there is no other."""
    (root / "JPEGImages/b.jpg").rename(root / "JPEGImages/b.JPEG")
    write(root, "a", thing([1, 1, 5, 5]), file_name="elsewhere.jpg")
    write(root, "b", thing([1, 1, 5, 5]), file_name="b.jpg")
    write(root, "x", thing([1, 1, 5, 5]), file_name="c.jpg")
    voc.build(root / "to", root=root)
    assert list(truth(root)) == ["a.jpg", "b.JPEG", "c.jpg"]


@pytest.mark.parametrize(
    "bndbox,reason",
    [
        (thing([5, 5, 5, 9]), "box without area"),
        (thing(["x", 5, 5, 9]), "bndbox is not four finite numbers"),
        (thing(["inf", 5, 5, 9]), "bndbox is not four finite numbers"),
        ("<object><name>cat</name></object>", "bndbox is not four finite numbers"),
        ("<object><bndbox/></object>", "its class is not in the list"),
    ],
)
def test_faulty_boxes_are_counted(root, bndbox, reason):
    write(root, "a", bndbox, thing([1, 1, 5, 5]))
    report = voc.build(root / "to", root=root)
    assert report.dropped == {reason: 1} and (report.boxes, report.boxes_total) == (1, 2)


def test_files_and_lists_as_other_systems_write_them(root):
    """Endings in capitals, names with spaces, decomposed accents, lists of image paths."""
    names = ["my photo 1", "my photo", "Cafe\u0301", "p"]
    for name in names:
        write(root, name, thing([1, 1, 5, 5]))
        (root / f"Annotations/{name}.xml").rename(root / f"Annotations/{name}.XML")
        composed = unicodedata.normalize("NFC", name)
        Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{composed}.JPG", "jpeg")
    lines = ["my photo 1", "my photo -1", "Caf\u00e9.JPG", "C:\\VOC\\JPEGImages\\p.jpg", "/far/away/q.jpg"]
    (root / "ImageSets/Main/all.txt").write_text("\n".join(lines))
    report = voc.build(root / "to", root=root, split="all")
    assert list(truth(root)) == ["my photo 1.JPG", "my photo.JPG", "Caf\u00e9.JPG", "p.JPG"]
    assert report.remarks == {"not at this path: the one file of its name in the folder is taken": 1}
    assert [str(fault) for fault in report.faults if "annotation" in fault.reason] == [
        "q.xml: no such annotation file"
    ]
    assert voc.build(root / "whole", root=root).images == 4


def test_two_images_of_an_xml_file(root):
    """The one that it names; without that, neither is chosen."""
    write(root, "a", thing([1, 1, 5, 5]), file_name="a.png")
    write(root, "b", thing([1, 1, 5, 5]), file_name="elsewhere.jpg")
    for name in "ab":
        Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{name}.png")
    report = voc.build(root / "to", root=root)
    assert list(truth(root)) == ["a.png"] and "ambiguous: 2 files" in str(report.faults[0])


@pytest.mark.parametrize(
    "content,reason",
    [
        (BOMB, "DOCTYPE"),
        ("<annotation>", "not XML"),
        ("", "not XML"),
        ("\x00", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "not XML"),
        ("<annotation><filename>../../secret.jpg</filename></annotation>", "relative path"),
    ],
)
def test_invalid_xml_is_reported_and_skipped(root, content, reason):
    write(root, "a", thing([1, 1, 5, 5]))
    (root / "Annotations/z.xml").write_text(content)
    report = voc.build(root / "to", root=root)
    assert (report.images, report.faulty_pictures, report.images_total) == (1, 1, 2)
    assert reason in report.faults[0].reason
    with pytest.raises(DataError, match=reason):
        voc.build(root / "strict", root=root, strict=True)


def test_an_entity_bomb_in_another_encoding(root):
    (root / "Annotations/z.xml").write_bytes(
        BOMB.replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16")
    )
    with pytest.raises(DataError, match="DOCTYPE"):
        voc.read_xml(root / "Annotations/z.xml")


def test_listed_name_without_a_file(root):
    write(root, "a", thing([1, 1, 5, 5]))
    (root / "ImageSets/Main/train.txt").write_text("a\nq\n")
    report = voc.build(root / "to", root=root, split="train")
    assert report.faulty_pictures == 1 and str(report.faults[0]) == "q.xml: no such annotation file"


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "give root"),
        ({"images": "JPEGImages", "annotations": "none"}, "no such folder of XML"),
        ({"root": ".", "split": "none"}, "no such list"),
        ({"root": ".", "split": "empty"}, "the list is empty"),
        ({"root": ".", "split": "out"}, "stays in the folder"),
        ({"root": "."}, "no XML file contains a class"),
        ({"root": ".", "images": "none", "classes": "names.txt"}, "no such folder of images"),
    ],
)
def test_what_is_no_data_set(root, monkeypatch, arguments, message):
    monkeypatch.chdir(root)
    (root / "names.txt").write_text("cat")
    (root / "ImageSets/Main/empty.txt").write_text("\n")
    (root / "ImageSets/Main/out.txt").write_text("../a\n")
    with pytest.raises(DataError, match=message) as caught:
        voc.build("to", **arguments)
    assert "\n" not in str(caught.value)


def test_manifest_records_one_based(root):
    write(root, "a", thing([1, 1, 5, 5]))
    voc.build(root / "to", root=root, one_based=True)
    assert read_manifest(root / "to")["source"]["one_based"] is True
