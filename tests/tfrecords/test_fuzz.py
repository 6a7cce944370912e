"""Annotation files with mistakes nobody thought of: one clear line, or an account that comes out.

Files are mutated by hypothesis, always in the same way. Whatever comes of it, there is no error but
DataError, kept + dropped = all, and what was written holds what it says.
"""

import contextlib
import copy
import csv
import io
import json
import shutil
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image
from support import real_data

pytest.importorskip("tensorflow")

from tfrecords import check  # noqa: E402
from tfrecords.converters import coco, csv_table, voc  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

ODD = [None, True, -1, 0, 0.5, 7.0, 1e308, -1e308, float("nan"), float("inf"), 2**63, 10**400]
ODD += ["", "7", "cat", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "é", "x" * 5000]
ODD += [
    [],
    {},
    [[]],
    [1, 2, 3, 4],
    {"size": [1, 1], "counts": "00"},
    {"size": [30, 40], "counts": [-1, 1201]},
]
SCRAPS = [
    "",
    "<",
    "</object>",
    "<object>",
    "&amp;",
    "<!DOCTYPE x>",
    ",",
    '"',
    "\n",
    "\r",
    ";",
    "nan",
    "-",
    "1e999",
]
SCRAPS += ["\0", "\ufeff", "é", "0", "99999", "{", "}", "[", "]"]
WORDS = [
    "",
    "7",
    "-3",
    "0",
    "2.5",
    "1e999",
    "nan",
    "cat",
    "../../etc/passwd",
    "/etc/passwd",
    "é",
    " ",
    "9" * 30,
]
SETTINGS = hypothesis.settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)

POLYGON = [[4.0, 3, 20, 3, 4, 25]]
SMALL = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (1, 2, 3)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 90.5, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [4, 3, 16, 22], "segmentation": POLYGON},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [30, 20, 20, 20], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}
SMALL_XML = """<annotation><filename>1.png</filename><size><width>40</width><height>30</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax>
</bndbox></object><object><name>dog</name><bndbox><xmin>5</xmin><ymin>2</ymin><xmax>41</xmax><ymax>22</ymax></bndbox>
</object></annotation>"""
SMALL_CSV = """filename,width,height,class,xmin,ymin,xmax,ymax
1.png,40,30,cat,1,2,11,22
1.png,40,30,dog,5,2,41,22
2.png,40,30,,,,,
"""


def small_pictures(folder):
    for n in (1, 2, 3):
        Image.new("RGB", (40, 30)).save(folder / f"{n}.png")


@pytest.fixture(scope="module", params=["small", "real"])
def origin(request, tmp_path_factory):
    """{form: (folder of images, the text of its annotations)}."""
    if request.param == "small":
        folder = tmp_path_factory.mktemp("small")
        small_pictures(folder)
        return {"json": (folder, json.dumps(SMALL)), "xml": (folder, SMALL_XML), "csv": (folder, SMALL_CSV)}
    photos = real_data.folder("coco_samples", "val2017_6_photos")
    [path] = (photos / "coco").glob("*.json") if (photos / "coco").is_dir() else photos.glob("*.json")
    tree = json.loads(path.read_text())
    tree["images"] = tree["images"][:2]  # reading photos is most of the time
    ids = [one["id"] for one in tree["images"]]
    tree["annotations"] = [one for one in tree["annotations"] if one["image_id"] in ids]
    raccoons, pascal = real_data.folder("raccoon"), real_data.folder("voc100")
    lines = (raccoons / "data/test_labels.csv").read_text().splitlines(keepends=True)
    crowded = max((pascal / "Annotations").iterdir(), key=lambda path: path.stat().st_size)
    return {
        "json": (photos / "images", json.dumps(tree)),
        "xml": (pascal / "JPEGImages", crowded.read_text()),
        "csv": (raccoons / "images", "".join(lines[:8])),
    }


@st.composite
def mutated_trees(draw, tree):
    """A JSON tree with one to four parts replaced, taken out or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 4))):
        parent, key = None, None
        here = tree
        while isinstance(here, dict | list) and here and (parent is None or draw(st.integers(0, 4))):
            keys = list(here) if isinstance(here, dict) else range(len(here))
            parent, key = here, draw(st.sampled_from(keys))
            here = here[key]
        if parent is None:
            continue
        action = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if action == "replace":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif action == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(here))
    return tree


@st.composite
def mutated_texts(draw, text):
    """A text with one to four scraps put in, taken out or over others, or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 20])))
        text = text[:start] + draw(st.sampled_from(SCRAPS)) + text[end:]
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


@st.composite
def mutated_elements(draw, text):
    """XML with one to four elements given another text, taken out, emptied, renamed or doubled."""
    root = ElementTree.fromstring(text)
    for _ in range(draw(st.integers(1, 4))):
        parent = draw(st.sampled_from([one for one in root.iter() if len(one)] or [root]))
        if not len(parent):
            continue
        child = draw(st.sampled_from(list(parent)))
        action = draw(st.sampled_from(["text", "text", "remove", "empty", "rename", "double"]))
        if action == "text":
            child.text = draw(st.sampled_from(WORDS))
        elif action == "remove":
            parent.remove(child)
        elif action == "empty":
            child.clear()
        elif action == "rename":
            child.tag = draw(st.sampled_from(["object", "bndbox", "xmin", "name", "size", "other"]))
        else:
            parent.append(copy.deepcopy(child))
    return ElementTree.tostring(root, encoding="unicode")


def build(converter, folder, **arguments):
    """The report, or None if the source was refused in one line; what was written is sound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            report = converter(folder / "to", shards=1, **arguments)
        except DataError as error:
            assert "\n" not in str(error).strip() and str(error)
            return None
        assert report.images + report.faulty_pictures == report.images_total
        assert report.boxes + sum(report.dropped.values()) == report.boxes_total
        assert sum(report.boxes_per_category.values()) == report.boxes
        found = check.check(folder / "to")
        assert not found.faults and (found.records, found.objects) == (report.images, report.boxes)
        return report


@contextlib.contextmanager
def scratch():
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_json(origin):
    pictures, text = origin["json"]
    outcomes = []

    @SETTINGS
    @hypothesis.given(mutated_trees(json.loads(text)))
    def holds(tree):
        with scratch() as folder:
            (folder / "a.json").write_text(json.dumps(tree))
            report = build(coco.build, folder, images=pictures, annotations=folder / "a.json")
            outcomes.append(report is not None)
            if report is not None:
                assert report.images_total == len(tree["images"])
                assert report.boxes_total == len(tree["annotations"])

    holds()
    assert outcomes.count(True) > 10


def test_text_of_json(origin):
    pictures, text = origin["json"]

    @hypothesis.settings(SETTINGS, max_examples=20)
    @hypothesis.given(mutated_texts(text))
    def holds(changed):
        with scratch() as folder:
            (folder / "a.json").write_text(changed, encoding="utf-8", errors="replace")
            build(coco.build, folder, images=pictures, annotations=folder / "a.json")

    holds()


def test_xml(origin):
    pictures, text = origin["xml"]
    name = ElementTree.fromstring(text).findtext("filename").rpartition(".")[0]
    outcomes = []

    @SETTINGS
    @hypothesis.given(mutated_elements(text) | mutated_texts(text))
    def holds(changed):
        with scratch() as folder:
            (folder / "xml").mkdir()
            (folder / f"xml/{name}.xml").write_text(changed, encoding="utf-8", errors="replace")
            report = build(voc.build, folder, images=pictures, annotations=folder / "xml")
            outcomes.append(report is not None)
            if report is not None:
                assert report.boxes_total == len(ElementTree.fromstring(changed).findall("object"))

    holds()
    assert outcomes.count(True) > 5


def test_csv(origin):
    pictures, text = origin["csv"]
    outcomes = []

    @SETTINGS
    @hypothesis.given(mutated_texts(text))
    def holds(changed):
        with scratch() as folder:
            (folder / "a.csv").write_text(changed, encoding="utf-8", errors="replace", newline="")
            report = build(csv_table.build, folder, images=pictures, annotations=folder / "a.csv")
            outcomes.append(report is not None)
            if report is not None:
                lines = csv.reader(io.StringIO(changed, newline=""))
                assert report.boxes_total <= len([row for row in lines if any(row)])

    holds()
    assert outcomes.count(True) > 5


def test_mutations_cause_faults():
    """Most of them change the file, and those of a tree reach every level."""
    seen = set()

    @SETTINGS
    @hypothesis.given(mutated_trees(SMALL))
    def look(tree):
        for key in ("images", "annotations", "categories"):
            seen.add((key, json.dumps(tree.get(key)) == json.dumps(SMALL[key])))

    look()
    assert len(seen) == 6
