"""Open Images converter: tables of boxes and verified image-level labels, class descriptions, class tree.

The files of versions 4 to 7 and of the challenges, under any name:

    boxes               ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,...,IsGroupOf,...
    image-level labels  ImageID,Source,LabelName,Confidence    1: verified in the image, 0: verified not in it
    class descriptions  /m/code,name                           or with the header LabelName,DisplayName
    class tree          {"LabelName", "Subcategory": [...], "Part": [...]}

Columns are found by their names; others, such as the clicks of version 6, are not read.
"""

import csv
import json
import pathlib
import re

from tfrecords.conversion_report import Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.files import read_text
from tfrecords.image_names import ImageFolder
from tfrecords.schema import DataError
from tfrecords.values import as_int, as_numbers, text

CODE = re.compile(r"/[a-z]/\w+")  # /m/01g317
BOX = ("XMin", "YMin", "XMax", "YMax")
BOX_COLUMNS = ("ImageID", "LabelName", *BOX)
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
GROUP = "IsGroupOf"  # 1 yes, 0 no, -1 unknown
ENDING = ".jpg"

UNKNOWN_CLASS = "its class is not in the class descriptions"
BOTH = "an image-level label says both present and absent: taken for present"
NOT_VERIFIED = "an image-level label of another confidence than 0 and 1 is not verified: left out"
NO_FILE = "images with image-level labels alone are not in the folder: no part of the data set"


def build(
    to,
    *,
    images,
    annotations,
    descriptions,
    image_labels=None,
    hierarchy=None,
    classes=None,
    rename=None,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a part of Open Images: train, validation or test.

    An image is the file ImageID.jpg in the folder or below it. The images are those with boxes, and those
    with image-level labels that are in the folder. Image ids are 1, 2, ... in this order; ImageID is the
    name of the file. Groups (IsGroupOf) are ordinary objects with a flag. Categories have the code of their
    class as "source_id" and, with a tree, the ids of the classes above them as "ancestors": those that
    "Subcategory" leads through; a "Part" is no subclass, and the root is no class.

    Args:
        to:           directory to make.
        images:       folder of images.
        annotations:  table of boxes.
        descriptions: class descriptions.
        image_labels: table of image-level labels verified by people. None: none are known.
        hierarchy:    class tree, JSON. None: no class is above another.
        classes:      class list: a table with a column of codes (as class-descriptions-boxable.csv, and the
                      list of the challenge, with or without a column of ids), or one of names, see
                      `tfrecords.converters.classes.Classes`. None: all classes of the descriptions that the
                      tree has, in the order of the descriptions, with ids from 1.
        rename:       see `tfrecords.converters.classes.Classes`.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    path, faults = pathlib.Path(annotations), Faults()
    categories, number_of = _categories(descriptions, hierarchy, classes, rename, faults=faults)
    images_of, boxes_total = _boxes(path, number_of, faults)
    folder = ImageFolder(images)
    if image_labels is not None:
        _add_image_labels(pathlib.Path(image_labels), images_of, number_of, folder=folder, faults=faults)
    jobs = [
        {"id": number, "file_name": _file_of(name, folder) or name + ENDING, "hw": None, **job}
        for number, (name, job) in enumerate(images_of.items(), 1)
    ]
    tables = {"descriptions": descriptions, "image_labels": image_labels, "hierarchy": hierarchy}
    return common.convert(
        to,
        jobs,
        categories,
        folder=folder,
        object_of=_object,
        source={
            "format": "openimages",
            "annotations": path.name,
            **{key: value and pathlib.Path(value).name for key, value in tables.items()},
        },
        boxes_total=boxes_total,
        before=faults,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def categories_of(descriptions, hierarchy=None, classes=None, rename=None):
    """The classes that `build` gives a data set -> [{"id", "name", ...}, ...] in label order."""
    return _categories(descriptions, hierarchy, classes, rename, faults=Faults())[0]


# --- classes --------------------------------------------------------------------------------------


def _categories(descriptions, hierarchy, classes, rename, *, faults):
    """([{"id", "name", "source_id", "ancestors"}, ...], {code: category id, None if it is not chosen})."""
    path = pathlib.Path(descriptions)
    name_of = {code: name for code, name, _ in _coded(path)}
    if not all(name_of.values()):
        raise DataError(f"{path}: not class descriptions: a line is not /m/code,name")
    above = _ancestors(pathlib.Path(hierarchy)) if hierarchy else None
    listed = _coded(pathlib.Path(classes)) if classes and _has_codes(pathlib.Path(classes)) else None
    if listed is None:
        known = [code for code in name_of if above is None or code in above]
        source = [{"id": n, "name": name_of[code], "source_id": code} for n, code in enumerate(known, 1)]
        choice = Classes(classes, rename)
    else:
        source, choice = _numbered(listed, name_of, classes), Classes(None, rename)
    categories, chosen = choice.of_categories(source, path, faults)
    if not categories:
        raise DataError(f"{path}: none of its classes is in {hierarchy}")
    code_of = {}
    for one in source:
        code_of.setdefault(chosen.get(one["id"]), one["source_id"])
    number_of = dict.fromkeys(name_of) | {one["source_id"]: chosen.get(one["id"]) for one in source}
    return [_category(one, code_of, number_of, above=above) for one in categories], number_of


def _category(category, code_of, number_of, above):
    """The entry of a category with its code, and with the categories above it if there is a tree."""
    code = code_of.get(category["id"])  # None: a listed name that no class has
    category = {"id": category["id"], "name": category["name"], **({"source_id": code} if code else {})}
    if above is None:
        return category
    ancestors = {number_of.get(one) for one in above.get(code, ())} - {None, category["id"]}
    return {**category, "ancestors": sorted(ancestors)}


def _numbered(listed, name_of, path):
    """Categories of a list with codes: with its ids, or in its order from 1; with the described names."""
    ids = [number for _, _, number in listed]
    ids = range(1, len(ids) + 1) if None in ids else ids
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: two classes have one id")
    unknown = [code for code, name, _ in listed if not (name or code in name_of)]
    if unknown:
        raise DataError(f"{path}: {unknown[0]} is not in the class descriptions")
    categories = [
        {"id": number, "name": name_of.get(code) or name, "source_id": code}
        for number, (code, name, _) in zip(ids, listed, strict=True)
    ]
    return sorted(categories, key=lambda one: one["id"])


def _has_codes(path):
    """Whether most lines of a class list have the code of a class."""
    lines = read_text(path).splitlines()
    found = sum(any(CODE.fullmatch(one.strip()) for one in line.split(",")) for line in lines)
    return found > len(lines) / 2


def _coded(path):
    """A table with a column of codes -> [(code, name or "", id or None), ...], without its header."""
    listed, codes = [], set()
    for number, row in enumerate(csv.reader(read_text(path).splitlines()), 1):
        row = [one for one in map(text, row) if one]
        code = next((one for one in row if CODE.fullmatch(one)), None)
        if code is None and row and listed:
            raise DataError(f"{path}, line {number}: no code of a class, such as /m/01g317")
        if code in codes:
            raise DataError(f"{path}, line {number}: {code} is listed twice")
        if code is None:  # the header, an empty line
            continue
        codes.add(code)
        others = [one for one in row if one != code]
        ids = [one for one in others[1:] if as_int(one) is not None]
        listed.append((code, others[0] if others else "", as_int(ids[0]) if ids else None))
    if not listed:
        raise DataError(f"{path}: no line has the code of a class, such as /m/01g317")
    return listed


def _ancestors(path):
    """{code: codes of all classes above it}, of the classes of a tree without its root."""
    try:
        tree = json.loads(read_text(path))
        root, parents = tree["LabelName"], {}
        _collect(tree, parents)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DataError(f"{path}: not a class tree of LabelName, Subcategory and Part") from None
    parents.pop(root, None)
    found = {code: set(direct) - {root} for code, direct in parents.items()}
    for code in found:
        waiting = list(found[code])
        while waiting:
            more = found.get(waiting.pop(), set()) - found[code]
            found[code] |= more
            waiting += more
    return found


def _collect(node, parents):
    """Adds the classes below a node to {code: parents}; a part is a class, but the whole is not above it."""
    for key in ("Subcategory", "Part"):
        for child in node.get(key, ()):
            above = parents.setdefault(child["LabelName"], set())
            if key == "Subcategory":
                above.add(node["LabelName"])
            _collect(child, parents)


# --- tables ---------------------------------------------------------------------------------------


def _rows(path, needed):
    """(line number, {column: value}) of every line of a table, streaming; None for a line of other length."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            columns = [one.strip() for one in next(lines, [])]
            if missing := [one for one in needed if one not in columns]:
                raise DataError(f"{path}: no column {', '.join(missing)} in its first line")
            for row in lines:
                if row:
                    is_whole = len(row) == len(columns)
                    yield lines.line_num, dict(zip(columns, row, strict=True)) if is_whole else None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _boxes(path, number_of, faults):
    """({ImageID: {"objects": [packed, ...]}}, number of boxes); what cannot be used becomes a fault.

    An object is packed as `_object` reads it: as a dictionary, the 15 million boxes of train take 10 GB.
    """
    images_of, total = {}, 0
    for line, row in _rows(path, BOX_COLUMNS):
        total += 1
        if row is None or not row["ImageID"]:
            faults.boxes.append(Fault(f"line {line}", "the line names no image, or has other columns"))
            continue
        job = images_of.setdefault(row["ImageID"], {"objects": []})
        category = number_of.get(row["LabelName"])
        corners = as_numbers([row[side] for side in BOX], 4)
        if category is None:
            reason = NOT_LISTED if row["LabelName"] in number_of else UNKNOWN_CLASS
            faults.boxes.append(Fault(f"line {line}", reason))
        elif corners is None:
            faults.boxes.append(Fault(f"line {line}", "its box is not four finite numbers"))
        else:
            group = int(row[GROUP] == "1") if GROUP in row else None
            job["objects"].append((line, category, *corners, group))
    return images_of, total


def _object(packed):
    """A packed object -> object, in the form of `common`."""
    line, category, x0, y0, x1, y1, group = packed
    flag = {} if group is None else {"is_group_of": group}
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"where": f"line {line}", "category_id": category, "bbox": box, "fractions": True, **flag}


def _add_image_labels(path, images_of, number_of, *, folder, faults):
    """Adds "verified" to every image, and the images of the folder that have image-level labels alone."""
    present, absent, elsewhere = {}, {}, set()
    for line, row in _rows(path, LABEL_COLUMNS):
        if row is None or row["Confidence"] not in ("0", "1", "0.0", "1.0"):
            faults.remarks.append(Fault(f"{path.name}, line {line}", NOT_VERIFIED))
            continue
        name, category = row["ImageID"], number_of.get(row["LabelName"])
        if name not in images_of and name not in elsewhere:
            if not name or _file_of(name, folder) is None:
                elsewhere.add(name)
            else:
                images_of[name] = {"objects": []}
        if category is not None and name not in elsewhere:
            (present if as_int(row["Confidence"]) else absent).setdefault(name, set()).add(category)
    for name, job in images_of.items():
        both = present.get(name, set()) & absent.get(name, set())
        if both:
            faults.remarks.append(Fault(f"{path.name}, {name}", BOTH))
        job["verified"] = [sorted(present.get(name, ())), sorted(absent.get(name, set()) - both)]
    if elsewhere:
        faults.remarks.append(Fault(f"{path.name}: {len(elsewhere)} images", NO_FILE))


def _file_of(name, folder):
    """The path of an image in the folder, or None."""
    try:
        return folder.find(name + ENDING).name
    except DataError:
        return None
