"""Reader of COCO ground truth: one set of rules, for conversion and for scoring.

- Numbers may be text, and whole numbers may be written as 7.0; ids are compared as `values.as_id` has them.
- An image without a positive height and width has no annotated size. One that is listed twice, by id or by
  file, is kept once.
- A category without a name is called by its id.
- An annotation is left out if its image or category is not listed, if it is listed twice (same id, same
  content), or if it has neither four finite numbers as `bbox` nor a mask to take them from. Another
  annotation with the same id is kept.
- A `bbox` that is absent, empty or four zeros is taken from the `segmentation`. A negative width or height
  means that corners were swapped: they are put in order.
- An area that is not a positive number is absent; a flag is 0 or 1.
- Annotations with scores other than 1 are detections, and no ground truth.
"""

import collections
import dataclasses

from tfrecords import segmentations
from tfrecords.conversion_report import IMAGE_LEFT_OUT, Fault, Faults
from tfrecords.schema import DataError
from tfrecords.values import as_flag, as_hw, as_id, as_int, as_numbers, ordered, text

LISTS = ("images", "annotations", "categories")
FLAGS = ("iscrowd", "difficult", "is_group_of", "isgroupof")
LARGEST_AREA = 1e12  # px^2; larger values are taken for mistakes
LARGEST_SIDE = 1e6  # px of an image or box; a mask of such a size would fill the memory

FROM_MASK = "it has no bbox: taken from its polygons or mask"  # remarks: the annotation is kept
SWAPPED = "its corners were swapped: put in order"


@dataclasses.dataclass
class GroundTruth:
    """Ground truth in COCO form, all ids as `values.as_id` has them.

    images:      {id: entry of the image, or None: left out}; height and width are int or absent.
    categories:  {id: entry of the category}.
    annotations: [(where, annotation)] that can be used; `bbox` is xywh px.
    faults:      what was left out and repaired.
    """

    images: dict
    categories: dict
    annotations: list
    faults: Faults

    def numbered_categories(self):
        """Categories with integer ids -> ([{"id", "name"}, ...] by ascending id, {id: its integer}).

        If one id is a word, all become 1, 2, ... in alphabetical order, and "source_id" keeps the word.
        """
        keys = self.categories
        if all(isinstance(key, int) for key in keys):
            categories = [{"id": key, "name": keys[key]["name"]} for key in sorted(keys)]
            return categories, {key: key for key in keys}
        number_of = {key: number for number, key in enumerate(sorted(keys, key=str), 1)}
        categories = [
            {"id": n, "name": keys[key]["name"], "source_id": text(key)} for key, n in number_of.items()
        ]
        return categories, number_of


def read(content):
    """Read the content of a JSON file in COCO form -> GroundTruth.

    Raises:
        DataError: it is no ground truth, or its ids contradict each other; the message is the reason alone.
    """
    _check_form(content)
    faults = Faults()
    categories = _categories(content["categories"], faults)
    images = _images(content["images"], faults)
    annotations = _annotations(content["annotations"], images, categories, faults)
    return GroundTruth(images, categories, annotations, faults)


def _check_form(content):
    if isinstance(content, list):
        raise DataError(
            "a list is not ground truth (a file of detections is not a data set): give a COCO file with "
            "images, annotations and categories"
        )
    missing = [
        key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise DataError(f"not ground truth in COCO form: it has no list of {', '.join(missing)}")
    scores = (a.get("score") for a in content["annotations"] if isinstance(a, dict))
    if any(score is not None and as_int(score) != 1 for score in scores):
        raise DataError("its annotations have scores: these are detections, not ground truth")


def _categories(listed, faults):
    categories = {}
    for category in listed:
        if not isinstance(category, dict) or category.get("id") is None:
            raise DataError(f"categories: an entry has no id: {str(category)[:80]}")
        key = as_id(category["id"])
        if key in categories:
            raise DataError(f"categories: id {str(key)[:80]} is not unique: two categories have it")
        name = text(category["name"]) if category.get("name") is not None else text(key)
        if category.get("name") is None:
            faults.remarks.append(Fault(f"category {name}", "it has no name: called by its id"))
        categories[key] = {**category, "id": key, "name": name}
    if not categories:
        raise DataError("the list of categories is empty")
    return categories


def _images(listed, faults):
    images, name_of, files = {}, {}, set()
    for number, image in enumerate(listed):
        if not isinstance(image, dict) or image.get("id") is None:
            faults.images.append(Fault(f"image number {number}", "it has no id"))
            continue
        key, name = as_id(image["id"]), str(image.get("file_name") or "")
        if name_of.get(key, name) != name:
            raise DataError(f"images: two images have the id {str(key)[:80]}: ids must differ")
        where = name or f"image {text(key)}"
        if key in images or (name and name in files):
            faults.images.append(Fault(where, "the image is listed twice"))
            images.setdefault(key, None)
        else:
            images[key] = _image(image, key, where, faults)
        name_of[key] = name
        files.add(name)
    return images


def _image(image, key, where, faults):
    """The entry of an image, or None if its size cannot be that of an image."""
    hw = as_hw(image.get("height"), image.get("width"))
    if hw and max(hw) >= LARGEST_SIDE:
        faults.images.append(Fault(where, f"height and width are {hw[0]} and {hw[1]} px"))
        return None
    entry = {name: value for name, value in image.items() if name not in ("height", "width")}
    return {**entry, "id": key, **({"height": hw[0], "width": hw[1]} if hw else {})}


def _annotations(listed, images, categories, faults):
    ids = collections.Counter(as_id(a.get("id")) for a in listed if isinstance(a, dict))
    contents = {key: set() for key, count in ids.items() if count > 1}
    annotations = []
    for number, annotation in enumerate(listed):
        where = f"annotation number {number}"
        try:
            if not isinstance(annotation, dict):
                raise DataError("annotation is not an object")
            where = f"annotation {text(annotation['id'])}" if "id" in annotation else where
            remarks = []
            read = _annotation(annotation, images, categories, remarks)
            _check_id(annotation, contents, remarks)
        except DataError as error:
            faults.boxes.append(Fault(where, str(error)))
            continue
        faults.remarks += [Fault(where, remark) for remark in remarks]
        annotations.append((where, read))
    return annotations


def _annotation(annotation, images, categories, remarks):
    image, category = as_id(annotation.get("image_id")), as_id(annotation.get("category_id"))
    if image not in images:
        raise DataError("image_id is not among the images")
    if images[image] is None:
        raise DataError(IMAGE_LEFT_OUT)
    if category not in categories:
        raise DataError("category_id is not among the categories")
    read = {key: value for key, value in annotation.items() if key not in ("area", "segmentation")}
    read |= {"image_id": image, "category_id": category, "bbox": _box(annotation, remarks)}
    read |= {key: as_flag(annotation[key]) for key in FLAGS if key in annotation}
    area = as_numbers([annotation.get("area")], 1)
    if area and 0 < area[0] < LARGEST_AREA:
        read["area"] = area[0]
    if segmentations.is_given(annotation.get("segmentation")):
        read["segmentation"] = annotation["segmentation"]
    return read


def _box(annotation, remarks):
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    numbers = as_numbers(box, 4)
    if (box in (None, []) or numbers == [0, 0, 0, 0]) and segmentations.is_given(mask):
        numbers = _box_of(mask)
        remarks.append(FROM_MASK)
    if numbers is None:
        raise DataError("bbox is not four finite numbers")
    if max(map(abs, numbers)) >= LARGEST_SIDE:
        raise DataError("bbox is larger than any image")
    if min(numbers[2:]) < 0:
        remarks.append(SWAPPED)
        return ordered(numbers)
    return numbers


def _box_of(mask):
    try:
        return segmentations.box_of(mask)
    except DataError as error:
        raise DataError(f"it has no bbox, and {error}") from None


def _check_id(annotation, contents, remarks):
    """Reject a repeated annotation; another annotation with the same id is kept under an id of its own."""
    hashes = contents.get(as_id(annotation.get("id")))
    if hashes is None or annotation.get("id") is None:
        return
    content = hash(repr(sorted(annotation.items())))
    if content in hashes:
        raise DataError("the annotation is listed twice")
    if hashes:
        remarks.append("another annotation has the same id: kept")
    hashes.add(content)
