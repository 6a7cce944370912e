"""Objects365: folders of patches, corrected names, boxes over the border; the published samples."""

import csv
import json

import pytest
from PIL import Image
from support import real_data

pytest.importorskip("tensorflow")

from tfrecords.converters import objects365  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402


def truth(report):
    return json.loads((report.to / "annotations.json").read_text())


def blank(folder, name, width, height):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ("images/v2/patch16/objects365_v2_00900001.jpg", "images/v1/patch8/objects365_v1_00420917.jpg"),
        ("patch16/objects365_v2_00900001.jpg", "patch8/objects365_v1_00420917.jpg"),
        ("objects365_v2_00900001.jpg", "objects365_v1_00420917.jpg"),
    ],
    ids=["as written", "patches", "flat"],
)
def test_the_genuine_boxes(tmp_path, names):
    source = real_data.folder("objects365_samples")
    for name, size in zip(names, ((333, 500), (769, 512)), strict=True):
        blank(tmp_path / "images", name, *size)
    report = objects365.build(
        tmp_path / "to",
        images=tmp_path / "images",
        annotations=source / "objects365_sample.json",
        name_fixes=source / "Objects365_names_fix.csv",
        workers=0,
    )
    tree = truth(report)
    assert sorted(image["file_name"] for image in tree["images"]) == sorted(names)
    assert {image["id"] for image in tree["images"]} == {900001, 420917}
    assert not report.faults and not report.remarks  # found without searching
    assert len(tree["annotations"]) == 6 and report.clipped == 2  # by under a pixel
    for one in tree["annotations"]:
        width, height = (333, 500) if one["image_id"] == 900001 else (769, 512)
        x, y, w, h = one["bbox"]
        assert 0 <= x and 0 <= y and x + w <= width and y + h <= height
    assert [one["id"] for one in tree["categories"]] == list(range(1, 366))
    ours = {one["id"]: one["name"] for one in tree["categories"]}
    assert ours[1] == "Person" and not any(name != name.strip() for name in ours.values())
    table = (source / "Objects365_names_fix.csv").read_text().splitlines()
    assert ours == {int(row[0]): row[2] for row in csv.reader(table)}


def test_edge_cases(tmp_path):
    """Categories out of order, a crowd, a box without width, a category that does not exist."""
    source = real_data.folder("objects365_samples") / "edge_cases_unsorted.json"
    for number, side in ((1, 800), (2, 800), (3, 800), (4, 20)):
        blank(tmp_path, f"fake{number}.jpg", side, side)
    report = objects365.build(tmp_path / "to", images=tmp_path, annotations=source, workers=0)
    tree = truth(report)
    assert tree["categories"] == [{"id": 1, "name": "bus"}, {"id": 2, "name": "car"}]
    assert [image["id"] for image in tree["images"]] == [0, 1, 2, 3]
    boxes = [(one["image_id"], one["category_id"], one["iscrowd"]) for one in tree["annotations"]]
    assert boxes == [(0, 1, 0), (0, 2, 1), (1, 1, 0), (1, 1, 0), (3, 1, 0), (3, 1, 0)]
    assert report.dropped == {"category_id is not among the categories": 1, "box without area": 1}


def test_tables_of_names_that_are_none(tmp_path):
    source = tmp_path / "zhiyuan.json"
    categories = [{"id": 1, "name": "Table Tennis "}, {"id": 2, "name": "Cup"}]
    source.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert [one["name"] for one in objects365.categories_of(source)] == ["Table Tennis", "Cup"]
    table = tmp_path / "fix.csv"
    table.write_text('2,"Cup","Cup, or mug"\n')
    assert [one["name"] for one in objects365.categories_of(source, table)] == ["Table Tennis", "Cup, or mug"]
    for text in ("2,Cup\n", "two,Cup,Mug\n", "2,Cup, \n"):
        table.write_text(text)
        with pytest.raises(DataError, match="fix.csv, line 1: not id,name,corrected name"):
            objects365.categories_of(source, table)
