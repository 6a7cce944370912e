import json

import pytest
from PIL import Image

pytest.importorskip("tensorflow")

from tfrecords.converters import csv_table  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.fixture
def build(tmp_path):
    """build(text) on a folder with images a.jpg, b.jpg of 40x30 px."""
    (tmp_path / "images/deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{name}.jpg")

    def of(text, **options):
        (tmp_path / "a.csv").write_text(text)
        return csv_table.build(
            tmp_path / "to", images=tmp_path / "images", annotations=tmp_path / "a.csv", **options
        )

    return of


def truth(tmp_path):
    tree = json.loads((tmp_path / "to/annotations.json").read_text())
    names = {c["id"]: c["name"] for c in tree["categories"]}
    return {
        image["file_name"]: [
            (names[a["category_id"]], *a["bbox"]) for a in tree["annotations"] if a["image_id"] == image["id"]
        ]
        for image in tree["images"]
    }


WANTED = {
    "a.jpg": [("cat", 1, 2, 10, 20), ("dog", 0, 0, 40, 30)],
    "b.jpg": [],
    "deep/c.jpg": [("cat", 5, 5, 5, 5)],
}
FORMS = {
    "header": HEADER
    + "a.jpg,40,30,cat,1,2,11,22\ndeep/c.jpg,40,30,cat,5,5,10,10\n"
    + "a.jpg,40,30,dog,0,0,40,30\nb.jpg,40,30,,,,,\n",
    "synonyms": "Label;Image Path;x1;y1;x2;y2;confidence\n"
    "cat;a.jpg;1;2;11;22;1\ndog;a.jpg;0;0;40;30;1\n;b.jpg;;;;;\ncat;deep/c.jpg;5.0;5.0;10;10;1\n",
    "no header": "a.jpg,1,2,11,22,cat\r\na.jpg,0,0,40,30,dog\r\n"
    "b.jpg,,,,,\r\n\r\ndeep/c.jpg,5,5,10,10,cat\r\n",
    "quoted": '\ufefffilename,"class","xmin","ymin","xmax","ymax"\n"a.jpg","cat",1,2,11,22\n'
    '"a.jpg","dog",0,0,40,30\n"b.jpg","","","","",""\n"deep/c.jpg","cat",5,5,10,10\n',
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(build, tmp_path, form):
    report = build(FORMS[form])
    assert truth(tmp_path) == WANTED
    assert report.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert (report.images, report.boxes, report.boxes_total, report.images_without_objects) == (3, 3, 3, 1)


def test_faulty_lines_are_counted_by_reason(build):
    report = build(
        HEADER
        + "a.jpg,40,30,cat,1,2,11,22\n"
        + "a.jpg,40,30,cat,1,2,11\n"
        + "a.jpg,40,30,cat,1,2,eleven,22\n"
        + "a.jpg,40,30,cat,1,2,nan,22\n"
        + "a.jpg,40,30,,1,2,11,22\n"
        + "a.jpg,41,30,cat,1,2,11,22\n"
        + "a.jpg,40,30,cat,30,2,30,22\n"
        + ",40,30,cat,1,2,11,22\n"
        + "../a.jpg,40,30,cat,1,2,11,22\n"
        + "none.jpg,40,30,cat,1,2,11,22\n"
    )
    assert (report.images, report.images_total, report.boxes, report.boxes_total) == (1, 3, 1, 10)
    assert report.dropped == {
        "the line has 7 columns, not 8": 1,
        "its box is not four finite numbers": 2,
        "the line names no class": 1,
        "the line gives the image another size than a line before": 1,
        "box without area": 1,
        "the line names no image": 1,
        "its image is left out": 2,
    }
    named = [str(fault) for fault in report.faults]
    assert named[0] == "none.jpg: no such file" and named[1].startswith("line 3: ")  # missing files first


def test_the_order_of_a_list_of_classes(build, tmp_path):
    (tmp_path / "names.csv").write_text("id,name\n2,cat\n1,dog\n")
    report = build(FORMS["header"], classes=tmp_path / "names.csv")
    assert [c["name"] for c in report.categories] == ["dog", "cat"]


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "no header with the columns"),
        ("filename,class,xmin,ymin,xmax\na.jpg,cat,1,2,3\n", "no header with the columns"),
        (HEADER, "no line has a box"),
        (HEADER + "none.jpg,40,30,cat,1,2,11,22\n", "no usable image"),
    ],
)
def test_what_is_no_data_set(build, text, message):
    with pytest.raises(DataError, match=message) as caught:
        build(text)
    assert "\n" not in str(caught.value)
