"""YOLO converter: one text file of boxes or polygons per image, in fractions of the image; data.yaml."""

import os
import pathlib

from tfrecords.conversion_report import Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.converters.yolo_files import (
    BOX,
    YAML,
    Description,
    Labels,
    description_near,
    images_of,
    label_of,
    read_description,
)
from tfrecords.image_lists import images_in, listed_images
from tfrecords.labels import read_labels
from tfrecords.schema import DataError
from tfrecords.values import as_int, as_numbers

POLYGON = 7  # fields of a line with a polygon, at least: class and three points


def build(
    to,
    *,
    annotations,
    images=None,
    split=None,
    classes=None,
    rename=None,
    with_masks=True,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a data set in the text format of YOLO.

    A line of a label file is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which box and
    mask are made; all in fractions of the image as it is displayed. Category ids are those of the files, from
    0. An image whose label file is empty or missing has no objects. Image ids are the names if all of them
    are numbers, else 1, 2, ...

    Args:
        to:          directory to make.
        annotations: data.yaml (with `split`), the folder of data.yaml, or a folder of label files (with
                     `images`). The labels of data.yaml's images lie where Ultralytics has them: in labels/
                     for images in images/, else beside the images.
        images:      folder of images.
        split:       train, val or test of data.yaml; with a folder of label files, a list of images.
        classes, rename: see `tfrecords.converters.classes.Classes`. For a folder of label files without a
                     data.yaml or classes.txt in or above it, the list gives the names of the ids 0, 1, ...
        with_masks:  store masks in the records, where the labels are polygons.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    faults = Faults()
    description, found, folder, labels = places(annotations, images, split, faults)
    names, categories, number_of = _classes(description, annotations, classes, rename, faults=faults)
    reader = _Reader({number: number_of.get(number) for number in names}, description.keypoints, faults)
    stems = {place: pathlib.PurePath(image.path).stem for place, image in enumerate(found)}
    jobs = [reader.job(number, found[place], folder, labels) for place, number in common.numbered(stems)]
    if not labels.found:
        raise DataError(f"{annotations}: no label file belongs to an image in {folder}")
    return common.convert(
        to,
        jobs,
        categories,
        folder=folder,
        with_masks=with_masks,
        source={"format": "yolo", "split": split and pathlib.Path(split).name, "masks": with_masks},
        boxes_total=reader.lines,
        before=faults,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def inputs(*, annotations, images=None, split=None, **_):
    """What a conversion with these arguments reads -> [(path of an image, of its label file or None)]."""
    faults = Faults()
    _, found, _, labels = places(annotations, images, split, faults)
    return [(image.path, label_of(image, labels, faults)) for image in found]


def categories_of(*, annotations, images=None, classes=None, rename=None, **_):
    """The classes that `build` gives a data set -> [{"id", "name"}, ...] in label order; reads no labels."""
    faults = Faults()
    description, _ = _description(annotations, images, faults)
    return _classes(description, annotations, classes, rename, faults=faults)[1]


def _classes(description, annotations, classes, rename, *, faults):
    """({class id: name}, categories in label order, {class id: category id})."""
    names = description.names
    if names is None:
        if not classes:
            where = f"{annotations}: no data.yaml or classes.txt names the classes"
            raise DataError(f"{where}: give a list (classes)")
        names, classes = {n: one["name"] for n, one in enumerate(read_labels(classes))}, None
    listed = [{"id": number, "name": name} for number, name in names.items()]
    return names, *Classes(classes, rename).of_categories(listed, description.path, faults)


def places(annotations, images, split, faults):
    """(Description, [Image, ...], folder of the images, Labels)."""
    description, labels = _description(annotations, images, faults)
    if images is None:
        return description, *images_of(description, split, faults), labels
    folder = pathlib.Path(images).absolute()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    if split is None:
        return description, images_in(folder, faults), folder, labels
    if not pathlib.Path(split).is_file():
        raise DataError(f"{split}: no such list of images; splits of data.yaml need no images")
    return description, listed_images(pathlib.Path(split), folder, faults), folder, labels


def _description(annotations, images, faults):
    """(Description, Labels)."""
    path = pathlib.Path(annotations)
    if path.is_dir() and images is None:
        inside = [path / name for name in ("data.yaml", "data.yml") if (path / name).is_file()]
        if not inside:
            raise DataError(f"{path}: has no data.yaml: for a folder of label files give images too")
        path = inside[0]
    if path.suffix.lower() in YAML:
        return read_description(path, faults), Labels()
    if not path.is_dir():
        raise DataError(f"{path}: no data.yaml and no folder of label files")
    return description_near(path, faults) or Description(path, path), Labels(images, path)


class _Reader:
    """Reads label files into jobs.

    number_of: {class id: category id, or None if it is not chosen}.
    keypoints: fields of a line with keypoints, or None.
    lines:     number of lines read.
    """

    def __init__(self, number_of, keypoints, faults):
        self.number_of, self.keypoints, self.faults, self.lines = number_of, keypoints, faults, 0

    def job(self, number, image, folder, labels):
        job = {"id": number, "file_name": os.path.relpath(image.path, folder), "hw": None, "objects": []}
        try:
            if image.fault:
                raise DataError(image.fault)
            path = labels.of(image.path, self.faults)
            if path is not None:
                job["objects"] = self._objects(
                    path, os.path.relpath(path, os.path.commonpath([path, folder]))
                )
        except DataError as error:
            job["fault"] = str(error)
        return job

    def _objects(self, path, shown):
        """The objects of a label file; unusable lines become faults."""
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{shown}: cannot be read: {error}") from None
        objects, seen = [], set()
        for number, line in enumerate(lines, 1):
            fields = tuple(line.split())
            if not fields:
                continue
            self.lines += 1
            where = f"{shown}:{number}"
            try:
                if fields in seen:
                    raise DataError("the annotation is listed twice")
                seen.add(fields)
                objects.append({"where": where, **self._object(fields)})
            except DataError as error:
                self.faults.boxes.append(Fault(where, str(error)))
        return objects

    def _object(self, fields):
        count, allowed = len(fields), self.keypoints or BOX
        is_polygon = self.keypoints is None and count >= POLYGON and count % 2
        if count != allowed and not is_polygon:
            raise DataError(
                f"the line has {count} fields, not {allowed}" + " or a polygon" * (count > POLYGON)
            )
        number, values = as_int(fields[0]), as_numbers(list(fields[1:]), count - 1)
        if values is None:
            raise DataError("its values are not finite numbers")
        if number is None:
            raise DataError("its class is not a whole number")
        if number not in self.number_of:
            raise DataError("its class id is beyond the names")
        if self.number_of[number] is None:
            raise DataError(NOT_LISTED)
        thing = {"category_id": self.number_of[number], "fractions": True}
        if is_polygon:
            x, y = values[::2], values[1::2]
            left, top = min(x), min(y)
            return {**thing, "bbox": [left, top, max(x) - left, max(y) - top], "segmentation": [values]}
        x, y, w, h = values[:4]
        return {**thing, "bbox": [x - w / 2, y - h / 2, w, h]}
