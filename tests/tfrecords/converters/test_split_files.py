"""Splitting each format: nothing is lost or in both parts, and the converters read what is written."""

import json
import pathlib

import pytest
import yaml
from PIL import Image

pytest.importorskip("tensorflow")

from tfrecords.converters.formats import FORMATS  # noqa: E402
from tfrecords.converters.split_files import split_data  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

NAMES = [f"{'cup' if n < 6 else 'plate'} {n}" for n in range(8)]  # 6 images of cups, 2 of plates
XML = """<annotation><object><name>{}</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object></annotation>"""


def class_of(name):
    return name.split()[0]


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def coco(root):
    tree = {
        "info": {"year": 2026},
        "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": n, "image_id": str(n), "category_id": 1 + (n >= 6), "bbox": [1, 2, 10, 20]}
            for n in range(8)
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}],
    }
    write(root, {"a.json": json.dumps(tree)})
    return root / "a.json", lambda to, part: {"images": root / "images", "annotations": to / f"{part}.json"}


def csv(root):
    lines = [f'"{name}.jpg";1;2;11;22;{class_of(name)}' for name in NAMES]
    write(root, {"a.csv": "\n".join(["file;x1;y1;x2;y2;label", *lines])})
    return root / "a.csv", lambda to, part: {"images": root / "images", "annotations": to / f"{part}.csv"}


def voc(root):
    write(root, {f"xml/{name}.xml": XML.format(class_of(name)) for name in NAMES})
    folders = {"images": root / "images", "annotations": root / "xml"}
    return root / "xml", lambda to, part: {**folders, "split": to / f"{part}.txt"}


def voc_full_names(root):
    """The XML files are named after the images, endings included."""
    annotations, arguments = voc(root)
    for name in NAMES:
        (root / f"xml/{name}.xml").rename(root / f"xml/{name}.jpg.xml")
    return annotations, arguments


def yolo(root):
    write(root, {f"labels/{name}.txt": f"{int(class_of(name) == 'plate')} 0.5 0.5 0.2 0.2" for name in NAMES})
    write(root, {"data.yaml": "train: images\nnames: [cup, plate]\n"})
    return root / "data.yaml", lambda to, part: {"annotations": to / "data.yaml", "split": part}


def yolo_folders(root):
    yolo(root)
    folders = {"images": root / "images", "annotations": root / "labels"}
    return root / "labels", lambda to, part: {**folders, "split": to / f"{part}.txt"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for name in NAMES:
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{name}.jpg")
    return tmp_path


@pytest.mark.parametrize("form", [coco, csv, voc, voc_full_names, yolo, yolo_folders])
def test_every_image_is_in_one_part(root, form):
    annotations, arguments = form(root)
    options = {"images": root / "images"} if form is yolo_folders else {}
    parts, paths = split_data(annotations, root / "to", val=0.5, **options)
    assert parts.classes == {"cup": {"train": 3, "val": 3}, "plate": {"train": 1, "val": 1}}
    assert all(path.is_file() for path in paths)
    found = []
    for part in ("train", "val"):
        report = FORMATS[form.__name__.split("_")[0]](root / part, **arguments(root / "to", part))
        assert (report.images, report.boxes) == (4, 4) and not report.faults
        assert report.boxes_per_category == {"cup": 3, "plate": 1}
        images = json.loads((root / part / "annotations.json").read_text())["images"]
        found += [pathlib.PurePath(image["file_name"]).stem for image in images]
    assert sorted(found) == NAMES


@pytest.mark.parametrize("to", [".", "to"])
def test_lists_of_yolo_are_read_by_ultralytics_too(root, to):
    """Its rule: in a line that starts with "./", every "./" is the folder of the list."""
    annotations, _ = yolo_folders(root)
    _, paths = split_data(annotations, root / to, images=root / "images")
    lines = [line for path in paths for line in path.read_text().splitlines()]
    assert all(line.startswith("./images/") == (to == ".") for line in lines)
    read = [line.replace("./", f"{root / to}/") if line.startswith("./") else line for line in lines]
    assert sorted(pathlib.Path(line).stem for line in read) == NAMES
    assert all(pathlib.Path(line).is_file() for line in read)


def test_a_json_keeps_what_it_has(root):
    annotations, _ = coco(root)
    tree = json.loads(annotations.read_text())
    stray = [{"id": 90, "image_id": 77, "category_id": 1, "bbox": [1, 1, 2, 2]}, None]
    annotations.write_text(json.dumps({**tree, "annotations": tree["annotations"] + stray}))
    split_data(annotations, root / "to")
    train, val = (json.loads((root / f"to/{part}.json").read_text()) for part in ("train", "val"))
    assert train["info"] == val["info"] == {"year": 2026} and train["categories"] == tree["categories"]
    assert train["annotations"][-2:] == stray  # of no image: the conversion of train counts them
    assert len(val["images"]) == 2 and len(val["annotations"]) == 2


def test_groups_are_found_in_names_not_in_folders_above(root):
    annotations, _ = yolo(root)
    parts, _ = split_data(annotations, root / "to", group=r"[0-9]")
    assert parts.images("val") == 2 and parts.ungrouped == 0


def test_a_data_yaml_keeps_what_it_has(root):
    annotations, _ = yolo(root)
    annotations.write_text("train: images\ntest: images\nnames: [cup, plate]\nkpt_shape: [1, 2]\n")
    split_data(annotations, root / "to")
    written = yaml.safe_load((root / "to/data.yaml").read_text())
    assert written["kpt_shape"] == [1, 2] and written["names"] == ["cup", "plate"]
    assert written["test"] == "images" and written["path"] == str(root)
    assert (root / written["train"]).samefile(root / "to/train.txt")


@pytest.mark.parametrize("taken", ["train.json", "val.json"])
def test_nothing_is_overwritten(root, taken):
    annotations, _ = coco(root)
    write(root, {f"to/{taken}": "mine"})
    with pytest.raises(DataError, match=f"{taken}: already exists"):
        split_data(annotations, root / "to")
    assert {path.name: path.read_text() for path in (root / "to").iterdir()} == {taken: "mine"}


@pytest.mark.parametrize(
    "path,options,message",
    [
        ("none.json", {}, "no such file or folder"),
        ("images", {}, "no annotations of a known format"),
        ("a.json", {"part": "train"}, "split does not apply to this format"),
        ("bad.json", {}, "cannot be read"),
        (".", {}, "name the file, for example .*a.json"),
        ("list.json", {}, "not COCO instances"),
        ("annotations-bbox.csv", {}, "comes divided into train, validation and test"),
    ],
)
def test_what_cannot_be_split(root, path, options, message):
    coco(root)
    write(root, {"bad.json": "{", "list.json": "[]", "annotations-bbox.csv": ""})
    with pytest.raises(DataError, match=message):
        split_data(root / path, root / "to", **options)
    assert not (root / "to").exists()
