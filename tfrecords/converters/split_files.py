"""Splits raw data sets of each format into train and val, as two files of annotations or lists."""

import collections
import csv
import io
import json
import os
import pathlib

import yaml

from tfrecords.conversion_report import Faults
from tfrecords.converters import csv_table, voc, yolo
from tfrecords.converters.yolo_files import YAML, label_of, load
from tfrecords.files import replacing, writing
from tfrecords.raw_data import recognise
from tfrecords.schema import DataError
from tfrecords.split import PARTS, split
from tfrecords.values import as_id, as_int, text


def split_data(annotations, to, *, images=None, part=None, val=0.2, seed=0, group=None):
    """Split a raw data set; what is written is what `kgarden data build` reads.

    COCO: train.json, val.json. CSV: train.csv, val.csv. Pascal VOC: train.txt, val.txt, lists of names. YOLO:
    train.txt, val.txt, lists of images, and for a data.yaml another one with them.

    Args:
        annotations: COCO JSON, CSV table, folder of XML files or root of VOC, data.yaml, or a folder of
                     YOLO's label files (with `images`).
        to:          directory for the files; none of them may exist.
        images:      folder of images, for a folder of label files.
        part:        which part of the data set is split: a list of VOC, the train, val or test of data.yaml.
                     None: all, of data.yaml its train.
        val, seed, group: see `tfrecords.split.split`.
    Returns:
        (tfrecords.split.Parts, [path of each file])
    Raises:
        DataError: the data cannot be read or split, or a file exists.
    """
    annotations, to = pathlib.Path(annotations), pathlib.Path(to)
    raw = recognise(annotations)
    if raw is None:
        found = "no annotations of a known format" if annotations.exists() else "no such file or folder"
        raise DataError(f"{annotations}: {found}")
    if annotations.is_dir() and raw.format in ("coco", "csv"):
        raise DataError(f"{annotations}: name the file, for example {raw.arguments['annotations']}")
    if raw.format not in FORMATS:
        raise DataError(f"{annotations}: Open Images comes divided into train, validation and test")
    classes_of, contents = FORMATS[raw.format](raw.arguments, to, images=images, part=part)
    parts = split(classes_of, val=val, seed=seed, group=group)
    files = contents(parts.part_of)
    paths = [to / name for name in files]
    if taken := [path for path in paths if path.exists()]:
        raise DataError(f"{taken[0]}: already exists: delete it or choose another directory")
    with writing(to):
        to.mkdir(parents=True, exist_ok=True)
        with replacing(*paths) as temporary:
            for path, content in zip(temporary, files.values(), strict=True):
                path.write_text(content, encoding="utf-8", newline="")
    return parts, paths


def _coco(arguments, _, images, part):
    """({name: classes}, function of {name: part} -> {file: content}) of a COCO JSON; so for all formats."""
    path = pathlib.Path(arguments["annotations"])
    _refuse(path, images=images, split=part)
    tree = _json(path)
    names = {as_id(one.get("id")): text(one.get("name")) for one in _dictionaries(tree["categories"])}
    name_of, classes_of = {}, {}
    for image in _dictionaries(tree["images"]):
        name = name_of[as_id(image.get("id"))] = str(image.get("file_name") or image.get("id"))
        classes_of.setdefault(name, set())
    for annotation in _dictionaries(tree["annotations"]):
        if (image := name_of.get(as_id(annotation.get("image_id")))) is not None:
            number = as_id(annotation.get("category_id"))
            classes_of[image].add(names.get(number, str(number)))

    def contents(part_of):
        def where(one, key):  # what belongs to no image stays in train, where the conversion counts it
            image = name_of.get(as_id(one.get(key))) if isinstance(one, dict) else None
            return part_of.get(image, "train")

        return {
            f"{part}.json": json.dumps(
                {
                    **tree,
                    "images": [one for one in tree["images"] if where(one, "id") == part],
                    "annotations": [one for one in tree["annotations"] if where(one, "image_id") == part],
                }
            )
            for part in PARTS
        }

    return classes_of, contents


def _json(path):
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), list) for key in keys):
        raise DataError(f"{path}: not COCO instances: it needs the lists {', '.join(keys)}")
    return tree


def _dictionaries(entries):
    return (one for one in entries if isinstance(one, dict))


def _csv(arguments, _, images, part):
    path = pathlib.Path(arguments["annotations"])
    _refuse(path, images=images, split=part)
    table, classes_of = csv_table.read_table(path), collections.defaultdict(set)
    file, name = table.columns.index("file"), table.columns.index("class")

    def image_of(row):
        return text(row[file]) if len(row) > file else None

    for _, row in table.rows:
        if image_of(row):
            classes_of[image_of(row)] |= {text(row[name])} - {""} if len(row) > name else set()

    def contents(part_of):
        files = {}
        for part in PARTS:
            lines = io.StringIO(newline="")
            writer = csv.writer(lines, delimiter=table.delimiter, lineterminator="\n")
            writer.writerows([table.header] if table.header else [])
            writer.writerows(row for _, row in table.rows if part_of.get(image_of(row), "train") == part)
            files[f"{part}.csv"] = lines.getvalue()
        return files

    return classes_of, contents


def _voc(arguments, _, images, part):
    annotations = arguments.get("annotations")
    _refuse(pathlib.Path(arguments.get("root") or annotations), images=images)
    _, folder, chosen = voc.places(arguments.get("root"), annotations, annotations, part)
    files = voc.xml_files(folder)
    classes_of = {}
    for name in voc.listed(chosen, files, Faults()) if chosen else files:
        try:
            tree = voc.read_xml(folder / files.get(name, f"{name}.xml"))
            classes_of[name] = {voc.name_of(thing) for thing in tree.findall("object")} - {""}
        except DataError:  # the conversion reports it
            classes_of[name] = set()

    def contents(part_of):
        return {f"{part}.txt": _lines(name for name in part_of if part_of[name] == part) for part in PARTS}

    return classes_of, contents


def _yolo(arguments, to, images, part):
    annotations = pathlib.Path(arguments["annotations"])
    has_description = annotations.suffix.lower() in YAML
    if has_description:
        _refuse(annotations, images=images)
    else:
        images = images or (arguments["images"] if arguments["images"] != "IMAGES" else None)
    chosen = (part or "train") if has_description else part
    description, found, folder, labels = yolo.places(annotations, images, chosen, Faults())
    classes_of = {}
    for image in found:
        label = label_of(image, labels, Faults())
        classes_of[os.path.relpath(image.path, folder)] = _classes_in(label, description.names or {})

    def contents(part_of):
        top = to.absolute()
        files = {
            f"{part}.txt": _lines(
                _from_list(os.path.abspath(folder / image), top)
                for image in part_of
                if part_of[image] == part
            )
            for part in PARTS
        }
        if has_description:
            root = description.root.absolute()
            lists = {
                part: pathlib.PurePath(os.path.relpath(top / f"{part}.txt", root)).as_posix()
                for part in PARTS
            }
            tree = {**load(description.path), "path": str(root), **lists}
            files["data.yaml"] = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return files

    return classes_of, contents


def _from_list(image, top):
    """The path of an image as a line of a list in the folder `top`: relative to it, else absolute.

    "./" is relative to the list for Ultralytics as well, which takes every "./" of the line for that folder:
    "./../images/a.jpg" would lead nowhere.
    """
    relative = pathlib.PurePath(os.path.relpath(image, top)).as_posix()
    return pathlib.PurePath(image).as_posix() if "./" in relative else f"./{relative}"


def _classes_in(label, names):
    """The classes in a label file."""
    try:
        lines = pathlib.Path(label).read_text(encoding="utf-8-sig").splitlines() if label else ()
    except (OSError, UnicodeDecodeError):  # the conversion reports it
        return set()
    numbers = {as_int(line.split()[0]) for line in lines if line.strip()} - {None}
    return {names.get(number, str(number)) for number in numbers}


def _lines(names):
    return "".join(f"{name}\n" for name in names)


def _refuse(path, **options):
    used = [name for name, value in options.items() if value]
    if used:
        raise DataError(f"{path}: {', '.join(used)} does not apply to this format")


FORMATS = {"coco": _coco, "csv": _csv, "voc": _voc, "yolo": _yolo}
