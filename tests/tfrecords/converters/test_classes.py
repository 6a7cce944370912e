"""Choosing, ordering, renaming and joining classes; expected ids and counts are by hand."""

import json

import pytest
from PIL import Image

pytest.importorskip("tensorflow")

from tfrecords.conversion_report import Faults  # noqa: E402
from tfrecords.converters.classes import Classes  # noqa: E402
from tfrecords.converters.formats import FORMATS  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

OBJECTS = [("mug", [1, 2, 11, 22]), ("cup", [3, 4, 13, 24]), ("plate", [5, 6, 15, 26])]
IDS = {"mug": 9, "cup": 4, "plate": 2}
XML = """<object><name>{}</name><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def coco(folder):
    boxes = [(name, [x0, y0, x1 - x0, y1 - y0]) for name, (x0, y0, x1, y1) in OBJECTS]
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": IDS[name], "bbox": box}
            for n, (name, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in IDS.items()],
    }
    (folder / "a.json").write_text(json.dumps(tree))
    return {"images": folder, "annotations": folder / "a.json"}


def csv(folder):
    lines = [",".join(map(str, ["a.jpg", *corners, name])) for name, corners in OBJECTS]
    (folder / "a.csv").write_text("\n".join(lines))
    return {"images": folder, "annotations": folder / "a.csv"}


def voc(folder):
    things = "".join(XML.format(name, *corners) for name, corners in OBJECTS)
    (folder / "a.xml").write_text(f"<annotation>{things}</annotation>")
    return {"images": folder, "annotations": folder}


SOURCES = {"coco": coco, "csv": csv, "voc": voc}


@pytest.fixture(params=SOURCES)
def build(request, tmp_path):
    """build(**options) -> (the report, [(class name, left side of its box), ...] of annotations.json)."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    places = SOURCES[request.param](tmp_path)

    def of(**options):
        report = FORMATS[request.param](tmp_path / "to", **places, **options)
        tree = json.loads((tmp_path / "to/annotations.json").read_text())
        names = {category["id"]: category["name"] for category in tree["categories"]}
        return report, [(names[one["category_id"]], one["bbox"][0]) for one in tree["annotations"]]

    return of


def test_a_list_chooses_and_orders(build, tmp_path):
    (tmp_path / "names.txt").write_text("plate\nmug\nspoon\n")
    report, boxes = build(classes=tmp_path / "names.txt")
    assert report.categories == [{"id": n, "name": m} for n, m in enumerate(["plate", "mug", "spoon"], 1)]
    assert boxes == [("mug", 1), ("plate", 5)]
    assert report.dropped == {"its class is not in the list": 1} and report.boxes_total == 3


def test_a_list_gives_its_ids(build, tmp_path):
    """A COCO json as the list: train and val agree in ids, whatever val has of its own."""
    (tmp_path / "train.json").write_text(
        json.dumps({"categories": [{"id": 30, "name": "cup"}, {"id": 7, "name": "plate"}]})
    )
    report, boxes = build(classes=tmp_path / "train.json")
    assert report.categories == [{"id": 7, "name": "plate"}, {"id": 30, "name": "cup"}]
    assert boxes == [("cup", 3), ("plate", 5)]


def test_two_old_names_to_one_new_are_joined(build):
    report, boxes = build(rename={"mug": "vessel", "cup": "vessel"})
    assert report.boxes_per_category == {"plate": 1, "vessel": 2} and not report.dropped
    assert boxes == [("vessel", 1), ("vessel", 3), ("plate", 5)]


def test_a_class_is_joined_with_a_standing_one(build):
    report, _ = build(rename={"mug": "cup"})
    assert report.boxes_per_category == {"cup": 2, "plate": 1}


def test_renaming_precedes_the_list(build, tmp_path):
    (tmp_path / "names.txt").write_text("vessel\n")
    report, boxes = build(rename={"mug": "vessel"}, classes=tmp_path / "names.txt")
    assert report.categories == [{"id": 1, "name": "vessel"}] and boxes == [("vessel", 1)]
    assert report.dropped == {"its class is not in the list": 2}


def test_renamings_apply_at_once(build):
    _, boxes = build(rename={"mug": "cup", "cup": "mug"})
    assert boxes == [("cup", 1), ("mug", 3), ("plate", 5)]


def test_a_name_that_does_not_occur_is_said(build):
    report, _ = build(rename={"spoon": "cup"})
    assert report.remarks == {"no class of the data set has this name": 1} and report.boxes == 3
    assert str(report.faults[0]).startswith("rename spoon=cup")


def test_a_list_without_a_class_of_the_source(build, tmp_path):
    (tmp_path / "names.txt").write_text("Cup\n")
    with pytest.raises(DataError, match="names.txt: none of its classes is in .*: cup, mug, plate"):
        build(classes=tmp_path / "names.txt")


def test_ids_of_joined_and_of_equally_named_classes():
    """Joined classes get the first id; classes that the source itself names alike stay apart."""
    listed = [{"id": n, "name": name} for n, name in [(1, "cup"), (3, "mug"), (5, "cup"), (8, "plate")]]
    categories, number_of = Classes(rename={"mug": "plate"}).of_categories(listed, "a.json", Faults())
    assert categories == [
        {"id": 1, "name": "cup"},
        {"id": 3, "name": "plate"},
        {"id": 5, "name": "cup"},
    ]
    assert number_of == {1: 1, 3: 3, 5: 5, 8: 3}


@pytest.mark.parametrize(
    "arguments,message",
    [(("names.txt",), "listed twice"), ((None, {"cup": " "}), "a new class name is empty")],
)
def test_what_is_no_choice(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("cup\ncup\n")
    with pytest.raises(DataError, match=message):
        Classes(*arguments)
