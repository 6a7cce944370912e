"""CSV converter: a folder of images and a table with one line per box."""

import csv
import io
import pathlib
from typing import NamedTuple

from tfrecords.conversion_report import Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.files import read_text
from tfrecords.schema import DataError
from tfrecords.values import as_hw, as_numbers, text

# accepted column names, in lower case and with _ between words
SYNONYMS = {
    "file": {"filename", "file_name", "file", "image", "img", "path", "image_path", "filepath", "image_name"},
    "class": {"class", "label", "name", "category", "class_name", "label_name", "category_name"},
    "xmin": {"xmin", "x_min", "x1", "left", "bbox_xmin"},
    "ymin": {"ymin", "y_min", "y1", "top", "bbox_ymin"},
    "xmax": {"xmax", "x_max", "x2", "right", "bbox_xmax"},
    "ymax": {"ymax", "y_max", "y2", "bottom", "bbox_ymax"},
    "width": {"width", "image_width", "img_width"},
    "height": {"height", "image_height", "img_height"},
}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
NEEDED = ("file", "class", *CORNERS)
WITHOUT_HEADER = ("file", *CORNERS, "class")  # as keras-retinanet has it
DELIMITERS = ",;\t"


def build(
    to,
    *,
    images,
    annotations,
    classes=None,
    rename=None,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a CSV data set.

    The header names the columns: filename, class, xmin, ymin, xmax, ymax, optionally width and height, in
    any order and under their usual synonyms. Without a header every line is path,xmin,ymin,xmax,ymax,class.
    Boxes are px from 0. A line with an empty box is an image without objects. Image ids are 1, 2, ... in the
    order of the table.

    Args:
        to:          directory to make.
        images:      folder that the file names in the table are relative to.
        annotations: the csv file.
        classes, rename: see `tfrecords.converters.classes.Classes`. Without a list: all that occur in the
                     table, in alphabetical order.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    path = pathlib.Path(annotations)
    table, faults = read_table(path), Faults()
    of_file, boxes_total = _by_file(table.columns, table.rows, faults)
    things = [thing for job in of_file.values() for thing in job["objects"]]
    found = {thing["category"] for thing in things}
    categories, number_of = Classes(classes, rename).of_names(found, path, faults)
    if not categories:
        raise DataError(f"{path}: no line has a box with a class")
    for job in of_file.values():
        job["objects"] = list(_with_ids(job["objects"], number_of, faults))
    return common.convert(
        to,
        [{"id": number, **job} for number, job in enumerate(of_file.values(), 1)],
        categories,
        folder=images,
        source={"format": "csv", "annotations": path.name},
        boxes_total=boxes_total,
        before=faults,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


class Table(NamedTuple):
    """A table as it was read.

    columns:   canonical name of each column, "" for an unknown one.
    rows:      [(line number, values), ...] without the header.
    header:    values of the first line, or None without a header.
    delimiter: between values.
    """

    columns: list
    rows: list
    header: list | None
    delimiter: str


def read_table(path):
    """Read a CSV file of boxes -> Table.

    Raises:
        DataError: it cannot be read, or has not the columns.
    """
    content = read_text(path)
    for delimiter in DELIMITERS:
        rows = _rows(path, content, delimiter)
        columns = _columns(rows[0][1]) if rows else []
        if set(NEEDED) <= set(columns):
            return Table(columns, rows[1:], header=rows[0][1], delimiter=delimiter)
    rows = _rows(path, content, ",")
    if not any(len(row) == len(WITHOUT_HEADER) for _, row in rows):
        raise DataError(
            f"{path}: no header with the columns {', '.join(NEEDED)} (or synonyms), "
            "and the lines are not path,xmin,ymin,xmax,ymax,class"
        )
    return Table(list(WITHOUT_HEADER), rows, header=None, delimiter=",")


def _columns(header):
    """Canonical name of each column, "" for an unknown one."""
    words = ["_".join(one.strip(" \"'").lower().replace("-", " ").split()) for one in header]
    return [next((name for name, known in SYNONYMS.items() if word in known), "") for word in words]


def _rows(path, content, delimiter):
    """[(line number, values), ...] without empty lines."""
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        return [(lines.line_num, row) for row in lines if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}: not a csv file: {error}") from None


def _by_file(columns, rows, faults):
    """({file name: job without id}, number of boxes); lines that cannot be used become faults."""
    of_file, boxes = {}, 0
    for number, row in rows:
        where = f"line {number}"
        values = dict(zip(columns, map(text, row), strict=False))
        empty = len(row) == len(columns) and not any(values[side] for side in CORNERS)
        boxes += not empty
        try:
            if len(row) != len(columns):
                raise DataError(f"the line has {len(row)} columns, not {len(columns)}")
            job = _job_of(values, of_file)
            if not empty:
                job["objects"].append(_object(values, where))
        except DataError as error:
            (faults.remarks if empty else faults.boxes).append(Fault(where, str(error)))
    return of_file, boxes


def _job_of(values, of_file):
    hw = as_hw(values.get("height"), values.get("width"))
    if not values["file"]:
        raise DataError("the line names no image")
    job = of_file.setdefault(values["file"], {"file_name": values["file"], "hw": hw, "objects": []})
    if job["hw"] != hw:
        raise DataError("the line gives the image another size than a line before")
    return job


def _object(values, where):
    corners = as_numbers([values[side] for side in CORNERS], 4)
    if corners is None:
        raise DataError("its box is not four finite numbers")
    if not values["class"]:
        raise DataError("the line names no class")
    x0, y0, x1, y1 = corners
    return {"where": where, "category": values["class"], "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _with_ids(things, number_of, faults):
    for thing in things:
        category = thing.pop("category")
        if category in number_of:
            yield {**thing, "category_id": number_of[category]}
        else:
            faults.boxes.append(Fault(thing["where"], NOT_LISTED))
