"""COCO converter: JSON of images, annotations and categories, and a folder of images."""

import collections
import json
import pathlib

from tfrecords import segmentations
from tfrecords.conversion_report import IMAGE_LEFT_OUT, Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.converters.common import as_hw, as_int, as_numbers, text
from tfrecords.schema import DataError

LARGEST_AREA = 1e12  # px^2; larger values are taken for mistakes


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
    become running numbers from 1. Boxes are clipped to the image. A box is dropped and counted if it is then
    empty, is not four finite numbers, or has an unknown image or category. An image is left out and counted
    if it is missing, damaged, of another size than in the json, or listed before.

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
    tree = _load(path)
    categories, number_of = _categories(tree["categories"], path)
    before = Faults()
    categories, chosen = Classes(classes, rename).of_categories(categories, path, before)
    number_of = {key: chosen.get(number) for key, number in number_of.items()}
    listed = _listed(tree["images"], path, before)
    of_image = _by_image(tree["annotations"], listed, number_of, before)
    jobs = _jobs(listed, of_image, before)
    return common.convert(
        to,
        jobs,
        categories,
        folder=images,
        with_masks=with_masks,
        source={"format": "coco", "annotations": path.name, "masks": with_masks},
        boxes_total=len(tree["annotations"]),
        before=before,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def _load(path):
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(
                f"{path}: not COCO instances: no list {key!r} (a file of detections is not a data set)"
            )
    if any(isinstance(a, dict) and as_int(a.get("score", 1)) != 1 for a in tree["annotations"]):
        raise DataError(f"{path}: its annotations have scores: these are detections, not ground truth")
    return tree


def _categories(listed, path):
    """([{"id", "name"}, ...] by ascending id, {id as `_key` has it: id})."""
    name_of = {}
    for category in listed:
        if not isinstance(category, dict) or category.get("id") is None or category.get("name") is None:
            raise DataError(f"{path}: a category needs an id and a name: {str(category)[:80]}")
        key = _key(category["id"])
        if key in name_of:
            raise DataError(f"{path}: two categories have the id {str(key)[:80]}")
        name_of[key] = text(category["name"])
    if not name_of:
        raise DataError(f"{path}: the list of categories is empty")
    if all(isinstance(key, int) for key in name_of):
        return [{"id": key, "name": name_of[key]} for key in sorted(name_of)], {key: key for key in name_of}
    number_of = {key: number for number, key in enumerate(sorted(name_of, key=str), 1)}
    categories = [{"id": n, "name": name_of[key], "source_id": text(key)} for key, n in number_of.items()]
    return categories, number_of


def _listed(images, path, before):
    """{id as `_key` has it: its entry} of every image that is listed once; duplicates become faults."""
    listed, files = {}, set()
    for number, image in enumerate(images):
        if not isinstance(image, dict) or image.get("id") is None:
            before.images.append(Fault(f"image number {number}", "it has no id"))
            continue
        key, name = _key(image["id"]), str(image.get("file_name", ""))
        if key in listed and str(listed[key].get("file_name", "")) != name:
            raise DataError(f"{path}: two images have the id {str(key)[:80]}: ids must differ")
        if key in listed or name in files:
            before.images.append(Fault(name or f"image {text(key)}", "the image is listed twice"))
        if key not in listed:
            listed[key] = image if name not in files or not name else None
        files.add(name)
    return listed


def _by_image(annotations, listed, number_of, before):
    """{image id as `_key` has it: [object]}; annotations that cannot be used become faults."""
    ids = collections.Counter(_key(a.get("id")) for a in annotations if isinstance(a, dict))
    contents = {key: set() for key, count in ids.items() if count > 1}
    of_image = collections.defaultdict(list)
    for number, annotation in enumerate(annotations):
        where = f"annotation number {number}"
        try:
            if not isinstance(annotation, dict):
                raise DataError("annotation is not an object")
            where = f"annotation {text(annotation['id'])}" if "id" in annotation else where
            thing = _object(annotation, where, listed, number_of)
            _check_id(annotation, contents, where, before)
        except DataError as error:
            before.boxes.append(Fault(where, str(error)))
            continue
        of_image[_key(annotation["image_id"])].append(thing)
    return of_image


def _object(annotation, where, listed, number_of):
    """An annotation -> object, in the form of `common`."""
    image, category = _key(annotation.get("image_id")), _key(annotation.get("category_id"))
    box, area = as_numbers(annotation.get("bbox"), 4), as_numbers([annotation.get("area")], 1)
    if image not in listed:
        raise DataError("image_id is not among the images")
    if listed[image] is None:
        raise DataError(IMAGE_LEFT_OUT)
    if category not in number_of:
        raise DataError("category_id is not among the categories")
    if number_of[category] is None:
        raise DataError(NOT_LISTED)
    if box is None:
        raise DataError("bbox is not four finite numbers")
    thing = {"where": where, "category_id": number_of[category], "bbox": box}
    thing["iscrowd"] = int(bool(as_int(annotation.get("iscrowd"))))
    if area and 0 < area[0] < LARGEST_AREA:
        thing["area"] = area[0]
    if segmentations.is_given(annotation.get("segmentation")):
        thing["segmentation"] = annotation["segmentation"]
    if "difficult" in annotation:
        thing["difficult"] = int(bool(as_int(annotation["difficult"])))
    return thing


def _check_id(annotation, contents, where, before):
    """Reject a repeated annotation; another annotation with the same id is kept under an id of its own."""
    hashes = contents.get(_key(annotation.get("id")))
    if hashes is None or annotation.get("id") is None:
        return
    content = hash(repr(sorted(annotation.items())))
    if content in hashes:
        raise DataError("the annotation is listed twice")
    if hashes:
        before.remarks.append(Fault(where, "another annotation has the same id: kept"))
    hashes.add(content)


def _jobs(listed, of_image, before):
    """One job for every image that is not left out."""
    kept = {key: image for key, image in listed.items() if image is not None}
    numbered = all(isinstance(key, int) and key >= 0 for key in kept)
    return [
        {
            "id": key if numbered else number,
            "file_name": str(image.get("file_name", "")),
            "hw": as_hw(image.get("height"), image.get("width")),
            "objects": of_image[key],
        }
        for number, (key, image) in enumerate(kept.items(), 1)
    ]


def _key(identifier):
    """Normalised id: some files write the same id as 7, "7" or 7.0."""
    number = as_int(identifier)
    return str(identifier) if number is None else number
