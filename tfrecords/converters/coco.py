"""COCO converter: JSON of images, annotations and categories, and a folder of images."""

import collections
import json
import pathlib

from tfrecords import ground_truth
from tfrecords.conversion_report import Fault
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.image_names import ImageFolder
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
    return convert(
        to,
        Dialect(),
        images=images,
        annotations=annotations,
        classes=classes,
        rename=rename,
        with_masks=with_masks,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


class Dialect:
    """What a JSON in COCO form has besides, or says otherwise: here nothing; the base class of other formats.

    Attributes:
        format: its name.
    """

    format = "coco"

    def source(self):
        """Further entries of "source" of the manifest."""
        return {}

    def named(self, categories):
        """The categories with the names by which classes are chosen and renamed."""
        return categories

    def described(self, category, entries):
        """A category of the data set with what the JSON knows of it.

        Args:
            category: {"id", "name"}.
            entries:  entries of the JSON that became this category.
        """
        return category

    def completed(self, job, entry, number_of, folder):
        """A job with what the entry of its image says besides.

        Args:
            job:       in the form of `common`.
            entry:     of the image in the JSON.
            number_of: {category id in the JSON: in the data set, None if it is not chosen}.
            folder:    ImageFolder.
        """
        return job


def convert(to, dialect, *, images, annotations, classes, rename, with_masks, **options):
    """Convert a JSON in COCO form; see `build`."""
    path, folder = pathlib.Path(annotations), ImageFolder(images)
    read = _read(path)
    boxes_total = len(read.annotations) + len(read.faults.boxes)
    categories, number_of = _categories(read, path, dialect, classes, rename=rename)
    return common.convert(
        to,
        _jobs(read, number_of, dialect, folder),
        categories,
        folder=folder,
        with_masks=with_masks,
        source={
            "format": dialect.format,
            "annotations": path.name,
            "masks": with_masks,
            **dialect.source(),
        },
        boxes_total=boxes_total,
        before=read.faults,
        **options,
    )


def categories_of(annotations, classes=None, rename=None, dialect=None):
    """The classes that `build` gives a data set -> [{"id", "name"}, ...] in label order; reads no image."""
    path = pathlib.Path(annotations)
    return _categories(_read(path), path, dialect or Dialect(), classes, rename=rename)[0]


def _categories(read, path, dialect, classes, rename):
    """(categories of the data set, {id in the JSON: id in the data set, None if it is not chosen})."""
    categories, number_of = read.numbered_categories()
    categories = dialect.named(categories)
    categories, chosen = Classes(classes, rename).of_categories(categories, path, read.faults)
    number_of = {key: chosen.get(number) for key, number in number_of.items()}
    entries = collections.defaultdict(list)
    for key, number in number_of.items():
        entries[number].append(read.categories[key])
    return [dialect.described(one, entries[one["id"]]) for one in categories], number_of


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


def _jobs(read, number_of, dialect, folder):
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
    jobs = []
    for number, (key, image) in enumerate(kept.items(), 1):
        job = {
            "id": key if numbered else number,
            "file_name": str(image.get("file_name") or ""),
            "hw": as_hw(image.get("height"), image.get("width")),
            "objects": of_image[key],
        }
        jobs.append(dialect.completed(job, image, number_of, folder))
    return jobs


def _object(annotation, where, category):
    """An annotation -> object, in the form of `common`."""
    kept = {key: annotation[key] for key in OBJECT_KEYS if key in annotation}
    return {"where": where, "iscrowd": 0, **kept, "category_id": category}
