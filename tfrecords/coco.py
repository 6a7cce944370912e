"""COCO: a json of images, annotations and categories, and a folder of pictures."""

import collections
import contextlib
import functools
import json
import math
import pathlib

from tfrecords import pictures, schema
from tfrecords.schema import DataError
from tfrecords.write import Fault, Record, write


def build(to, *, images, annotations, shards=None, workers=None, strict=False, progress=None):
    """Convert a COCO data set.

    Labels follow the ids of the categories, ascending. Image ids that are not integers become running
    numbers from 1. Boxes are cut at the border of the picture. A box is left out and counted if nothing
    of it remains, if it is not four finite numbers, or if its picture or category is unknown. A picture is
    left out and counted if it is missing, damaged or of another size than the json says.

    Args:
        to:          directory to make.
        images:      folder that the file names in the json are relative to.
        annotations: the json file.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.write.Report
    """
    folder, path = pathlib.Path(images), pathlib.Path(annotations)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures")
    tree = _load(path)
    categories = _categories(tree, path)
    known = {category["id"] for category in categories}
    image_ids = _image_ids(tree["images"], path)
    of_image, faults = _by_image(tree["annotations"], {_key(i["id"]) for i in tree["images"]}, known)
    jobs = [
        {
            "id": image_id,
            "file_name": str(image.get("file_name", "")),
            "hw": _size(image),
            "annotations": of_image[_key(image["id"])],
        }
        for image, image_id in zip(tree["images"], image_ids, strict=True)
    ]
    work = functools.partial(make_record, folder=folder, names={c["id"]: c["name"] for c in categories})
    source = {"format": "coco", "annotations": path.name}
    return write(
        to,
        jobs,
        work,
        categories,
        source=source,
        shards=shards,
        workers=workers,
        strict=strict,
        faults=faults,
        progress=progress,
    )


def make_record(job, *, folder, names):
    """One image of the json -> Record, or Fault if the picture cannot be used."""
    if not is_safe(job["file_name"]):
        return Fault(repr(job["file_name"]), "file_name must be a relative path that stays in the folder")
    try:
        picture = pictures.read(folder / job["file_name"], job["hw"])
    except DataError as error:
        return Fault(job["file_name"], str(error))
    kept, faults, clipped = [], [], 0
    for annotation in job["annotations"]:
        box = clip(annotation["bbox"], picture.height, picture.width)
        if box is None:
            faults.append(Fault(f"annotation {annotation['id']} of {job['file_name']}", "box without area"))
            continue
        clipped += box != annotation["bbox"]
        kept.append({**annotation, "bbox": box, "area": annotation.get("area") or box[2] * box[3]})
    serialized = schema.serialize(
        encoded=picture.encoded,
        image_format=picture.format,
        image_id=job["id"],
        file_name=job["file_name"],
        height=picture.height,
        width=picture.width,
        boxes=[[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in kept)],
        category_ids=[a["category_id"] for a in kept],
        names=[names[a["category_id"]] for a in kept],
        areas=[a["area"] for a in kept],
        crowd=[a["iscrowd"] for a in kept],
    )
    image = {"id": job["id"], "file_name": job["file_name"], "height": picture.height, "width": picture.width}
    truth = [{key: a[key] for key in ("category_id", "bbox", "area", "iscrowd")} for a in kept]
    return Record(serialized, image, truth, faults, clipped)


def clip(bbox, height, width):
    """xywh px -> xywh px inside the picture, or None if no area is left; untouched if it is inside."""
    x, y, w, h = bbox
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if not (w > 0 and h > 0 and x1 > x0 and y1 > y0):
        return None
    return bbox if (x0, y0, x1, y1) == (x, y, x + w, y + h) else [x0, y0, x1 - x0, y1 - y0]


def is_safe(file_name):
    """Does a file name of a data set stay inside its folder?"""
    path = pathlib.PurePosixPath(file_name.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def _load(path):
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(
                f"{path}: not COCO instances: there is no list {key!r} "
                "(a list of detections is a result, not a data set)"
            )
    for image in tree["images"]:
        if not isinstance(image, dict) or "id" not in image:
            raise DataError(f"{path}: an image has no id: {str(image)[:80]}")
    return tree


def _categories(tree, path):
    """[{"id", "name"}, ...] by ascending id."""
    found = {}
    for category in tree["categories"]:
        number = as_int(category.get("id"))
        if number is None or "name" not in category:
            raise DataError(f"{path}: a category needs an integer id and a name: {str(category)[:80]}")
        if number in found:
            raise DataError(f"{path}: two categories have the id {number}")
        found[number] = str(category["name"]).strip()
    if not found:
        raise DataError(f"{path}: the list of categories is empty")
    return [{"id": number, "name": found[number]} for number in sorted(found)]


def _image_ids(images, path):
    """Decimal ids, as records need them: the json's own if all are integers, else 1, 2, ..."""
    numbers = [as_int(image["id"]) for image in images]
    if None in numbers or min(numbers, default=0) < 0:
        numbers = list(range(1, len(images) + 1))
    twice = [number for number, count in collections.Counter(numbers).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two images have the id {twice[0]}: ids must differ")
    return numbers


def _by_image(annotations, image_ids, category_ids):
    """({image id as in the json: [cleaned annotation]}, [Fault])."""
    of_image, faults = collections.defaultdict(list), []
    for number, annotation in enumerate(annotations):
        name = f"annotation {annotation.get('id', f'number {number}')}"
        category_id, box = as_int(annotation.get("category_id")), _numbers(annotation.get("bbox"), 4)
        if _key(annotation.get("image_id")) not in image_ids:
            faults.append(Fault(name, "image_id is not among the images"))
        elif category_id not in category_ids:
            faults.append(Fault(name, "category_id is not among the categories"))
        elif box is None:
            faults.append(Fault(name, "bbox is not four finite numbers"))
        else:
            area = _numbers([annotation.get("area")], 1)
            of_image[_key(annotation["image_id"])].append(
                {
                    "id": annotation.get("id", number),
                    "category_id": category_id,
                    "bbox": box,
                    "area": area[0] if area and area[0] > 0 else None,
                    "iscrowd": int(annotation.get("iscrowd") or 0),
                }
            )
    return of_image, faults


def _size(image):
    """(height, width) as the json says, or None."""
    height, width = as_int(image.get("height")), as_int(image.get("width"))
    return (height, width) if height and width else None


def as_int(value):
    """An integer written as 7, 7.0 or "7" -> 7; anything else -> None."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return int(value) if isinstance(value, str) or float(value) == int(value) else None
    return None


def _key(image_id):
    """An image id under which its annotations find it: some files write 7 here and "7" there."""
    number = as_int(image_id)
    return str(image_id) if number is None else number


def _numbers(values, count):
    with contextlib.suppress(TypeError, ValueError):
        numbers = [float(value) for value in values]
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
    return None
