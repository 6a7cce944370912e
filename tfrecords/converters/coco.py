"""COCO converter: JSON of images, annotations and categories, and a folder of images."""

import collections
import json
import pathlib

from tfrecords import ground_truth
from tfrecords.conversion_report import Fault
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.schema import DataError
from tfrecords.values import as_hw

OBJECT_KEYS = ("bbox", "iscrowd", "area", "segmentation", "difficult")


def build(
    to,
    *,
    images,
    annotations,
    classes=None,
    rename=None,
    with_masks=True,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a COCO data set.

    Labels follow the category ids, ascending; if one of them is not an integer, all become 1, 2, ... in
    alphabetical order, and the manifest keeps the original as "source_id". Image ids that are not integers
    become running numbers from 1. What is left out or repaired in the annotations: `tfrecords.ground_truth`.
    Boxes are clipped to the image, and dropped and counted if they are then empty. An image is left out and
    counted if it is missing, damaged, of another size than in the json, or listed before.

    Args:
        to:          directory to make.
        images:      folder that the file names in the json are relative to.
        annotations: the json file.
        classes, rename: see `tfrecords.converters.classes.Classes`.
        with_masks:  store masks in the records, where the json has them.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    path = pathlib.Path(annotations)
    read = _read(path)
    boxes_total = len(read.annotations) + len(read.faults.boxes)
    categories, number_of = read.numbered_categories()
    categories, chosen = Classes(classes, rename).of_categories(categories, path, read.faults)
    jobs = _jobs(read, {key: chosen.get(number) for key, number in number_of.items()})
    return common.convert(
        to,
        jobs,
        categories,
        folder=images,
        with_masks=with_masks,
        source={"format": "coco", "annotations": path.name, "masks": with_masks},
        boxes_total=boxes_total,
        before=read.faults,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def categories_of(annotations, classes=None, rename=None):
    """The classes that `build` gives a data set -> [{"id", "name"}, ...] in label order; reads no image."""
    read = _read(pathlib.Path(annotations))
    categories, _ = read.numbered_categories()
    return Classes(classes, rename).of_categories(categories, annotations, read.faults)[0]


def _read(path):
    """The ground truth of a JSON file; errors name the file."""
    try:
        return ground_truth.read(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def _jobs(read, number_of):
    """One job for every image that is not left out; `number_of` is None for classes that are not chosen."""
    of_image = collections.defaultdict(list)
    for where, annotation in read.annotations:
        category = number_of[annotation["category_id"]]
        if category is None:
            read.faults.boxes.append(Fault(where, NOT_LISTED))
        else:
            of_image[annotation["image_id"]].append(_object(annotation, where, category))
    kept = {key: image for key, image in read.images.items() if image is not None}
    numbered = all(isinstance(key, int) and key >= 0 for key in kept)
    return [
        {
            "id": key if numbered else number,
            "file_name": str(image.get("file_name") or ""),
            "hw": as_hw(image.get("height"), image.get("width")),
            "objects": of_image[key],
        }
        for number, (key, image) in enumerate(kept.items(), 1)
    ]


def _object(annotation, where, category):
    """An annotation -> object, in the form of `common`."""
    kept = {key: annotation[key] for key in OBJECT_KEYS if key in annotation}
    return {"where": where, "iscrowd": 0, **kept, "category_id": category}
