"""Common core of the converters: builds a Record from an image and its annotated objects.

A converter reads its format into jobs; everything after that is shared and is here.

    job     {"id": int, "file_name": str, "hw": annotated (height, width) or None, "objects": [object, ...]},
            and "fault", a reason, if the image cannot be used; "verified", the verified image-level labels,
            where the source has them: (category ids in the image, category ids not in it); "not_exhaustive",
            likewise, the category ids of which not every object has a box
    object  {"where": str, "category_id": int, "bbox": [x, y, w, h] px} and, where the source has them,
            "area" px^2, "iscrowd" 0 or 1, "difficult" 0 or 1, "is_group_of" 0 or 1, "segmentation"; with
            "fractions" True box and polygons are in fractions of the image instead of px
"""

import contextlib
import functools

import numpy as np

from tfrecords import images, index, schema, segmentations
from tfrecords.conversion_report import Fault, Faults, Record
from tfrecords.data_statistics import STORED_SIZE, signs_of
from tfrecords.ground_truth import SWAPPED
from tfrecords.image_names import ELSEWHERE, ImageFolder, is_safe
from tfrecords.schema import DataError
from tfrecords.values import ordered
from tfrecords.write import write


def convert(to, jobs, categories, *, folder, with_masks=True, object_of=None, before=None, **options):
    """Convert all jobs and write the data set.

    Args:
        to:         directory to make.
        jobs:       list of jobs.
        categories: [{"id", "name"}, ...] in label order.
        folder:     base of the file names, or its `ImageFolder`.
        with_masks: store masks in the records, where the source has them.
        object_of:  function of an entry of a job's "objects" -> object, for data sets whose objects would
                    take too much memory as dictionaries; must be picklable. None: they are objects.
        before, options: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    images = folder if isinstance(folder, ImageFolder) else ImageFolder(folder)
    folder, before = images.folder, before or Faults()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    names = {category["id"]: category["name"] for category in categories}
    work = functools.partial(
        make_record, folder=folder, names=names, with_masks=with_masks, object_of=object_of
    )
    return write(
        to,
        _with_files(jobs, images, before),
        work,
        categories,
        state_of=functools.partial(_state, folder=folder),
        before=before,
        **options,
    )


def _with_files(jobs, images, before):
    """The jobs with the files that their names mean; a file belongs to one job, the plainest name first."""
    found, owner = {}, {}
    for number, job in enumerate(jobs):
        if "fault" not in job:
            try:
                found[number] = images.find(job["file_name"])
            except DataError as error:
                job["fault"] = str(error)
    for number in sorted(found, key=lambda number: found[number].remark == ELSEWHERE):
        job, file = jobs[number], found[number]
        if owner.setdefault(file.name, number) != number:
            job["fault"] = f"its image, {file.name}, is listed twice"
        elif file.remark:
            where = (
                job["file_name"] if job["file_name"] == file.name else f"{job['file_name']} -> {file.name}"
            )
            before.remarks.append(Fault(where, file.remark))
        if "fault" not in job:
            job["file_name"] = file.name
    return jobs


def make_record(job, *, folder, names, with_masks=True, object_of=None):
    """Convert one job -> Record, or Fault if the image cannot be used."""
    if "fault" in job:
        name = job["file_name"] if is_safe(job["file_name"]) else repr(job["file_name"])
        return Fault(name, job["fault"], len(job["objects"]))
    try:
        encoded_image = images.read(folder / job["file_name"], job["hw"])
    except DataError as error:
        return Fault(job["file_name"], str(error), len(job["objects"]))
    kept, faults, remarks, clipped = [], [], [], 0
    height, width = encoded_image.height, encoded_image.width
    objects = map(object_of, job["objects"]) if object_of else job["objects"]
    objects = [_in_px(thing, height, width) for thing in objects]
    signs = signs_of([thing["bbox"] for thing in objects], height, width)
    signs |= {STORED_SIZE: 1} if encoded_image.as_stored else {}
    for thing in map(_ordered, objects):
        where = f"{thing['where']} of {job['file_name']}"
        try:
            annotation, code = _annotation(thing, encoded_image, remarks, where)
        except DataError as error:
            faults.append(Fault(where, str(error)))
            continue
        if "swapped" in thing:
            remarks.append(Fault(where, SWAPPED))
        clipped += annotation["bbox"] != thing["bbox"]
        kept.append((annotation, code if with_masks else None))
    annotations = [annotation for annotation, _ in kept]
    pngs = [segmentations.to_png(code) if code else b"" for _, code in kept]
    image = {
        "id": job["id"],
        "file_name": job["file_name"],
        "height": encoded_image.height,
        "width": encoded_image.width,
    }
    if "verified" in job:
        image["pos_category_ids"], image["neg_category_ids"] = map(list, job["verified"])
    if "not_exhaustive" in job:
        image["not_exhaustive_category_ids"] = list(job["not_exhaustive"])
    serialized = serialize(encoded_image, image, annotations, names=names, pngs=pngs)
    return Record(
        serialized, image, annotations, faults=faults, remarks=remarks, clipped=clipped, signs=signs
    )


def serialize(encoded_image, image, annotations, names, pngs=()):
    """An image and its annotations, in the form of annotations.json -> bytes of the record."""
    flags = {
        key: [a.get(name, 0) for a in annotations] if any(name in a for a in annotations) else ()
        for key, name in (("difficult", "difficult"), ("group_of", "is_group_of"))
    }
    corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
    return schema.serialize(
        encoded=encoded_image.encoded,
        image_format=encoded_image.format,
        image_id=image["id"],
        file_name=image["file_name"],
        height=encoded_image.height,
        width=encoded_image.width,
        boxes=corners,
        category_ids=[a["category_id"] for a in annotations],
        names=[names[a["category_id"]] for a in annotations],
        areas=[a["area"] for a in annotations],
        crowd=[a["iscrowd"] for a in annotations],
        masks=pngs,
        verified=_verified(image, names),
        not_exhaustive=image.get("not_exhaustive_category_ids"),
        **flags,
    )


def _verified(image, names):
    """The image-level labels of an entry of annotations.json, as `schema.serialize` takes them."""
    if "pos_category_ids" not in image:
        return None
    return {
        category: (names[category], present)
        for key, present in (("pos_category_ids", True), ("neg_category_ids", False))
        for category in image[key]
    }


def _in_px(thing, height, width):
    """An object with box and polygons in px."""
    if not thing.get("fractions"):
        return thing
    x, y, w, h = thing["bbox"]
    thing = {**thing, "bbox": [x * width, y * height, w * width, h * height]}
    if "segmentation" in thing:
        size = (width, height)
        thing["segmentation"] = [
            [v * size[n % 2] for n, v in enumerate(one)] for one in thing["segmentation"]
        ]
    return thing


def _ordered(thing):
    """The object with its corners in order, and "swapped" if they were not."""
    box = ordered(thing["bbox"])
    return thing if box == thing["bbox"] else {**thing, "bbox": box, "swapped": True}


def _annotation(thing, encoded_image, remarks, where):
    """(the object in the form of annotations.json, its mask as run-length code or None).

    A mask that cannot be used is reported in `remarks`.
    """
    bbox = clip(thing["bbox"], encoded_image.height, encoded_image.width)
    annotation = {"category_id": thing["category_id"], "bbox": bbox, "area": thing.get("area")}
    annotation["iscrowd"] = thing.get("iscrowd", 0)
    code, covered = None, None
    if segmentations.is_given(thing.get("segmentation")):
        try:
            hw = encoded_image.height, encoded_image.width
            annotation["segmentation"], code, covered = segmentations.encode(thing["segmentation"], *hw)
        except DataError as error:
            remarks.append(Fault(where, f"kept without its mask: {error}"))
    annotation["area"] = annotation["area"] or covered or bbox[2] * bbox[3]
    annotation |= {key: thing[key] for key in ("difficult", "is_group_of") if key in thing}
    return annotation, code


def clip(bbox, height, width):
    """Clip a box to the image: xywh px -> xywh px, unchanged if it is inside.

    Raises:
        DataError: the clipped box is empty, or would be in the float32 fractions of a record.
    """
    x, y, w, h = bbox
    if not (w > 0 and h > 0):
        raise DataError("box without area")
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    left, top, right, bottom = np.float32([x0 / width, y0 / height, x1 / width, y1 / height])
    if not (x1 > x0 and y1 > y0):
        raise DataError("box outside the image")
    if not (right > left and bottom > top):
        raise DataError("box without area")
    return bbox if (x0, y0, x1, y1) == (x, y, x + w, y + h) else [x0, y0, x1 - x0, y1 - y0]


def _state(job, folder):
    """Size and modification time of the image file, to detect changes."""
    with contextlib.suppress(OSError, ValueError):
        stat = (folder / job["file_name"]).stat()
        return [stat.st_size, stat.st_mtime_ns]
    return None


def numbered(names):
    """Image ids by `tfrecords.index.numbered`: the names if all are different numbers, else 1, 2, ...

    Args:
        names: {image: its name}.
    Returns:
        [(image, id), ...]
    """
    return list(zip(names, index.numbered(list(names.values())), strict=True))
