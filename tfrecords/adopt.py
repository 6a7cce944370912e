"""Use existing TF Object Detection API or Model Garden shards in place.

One pass over the records collects what our own data sets carry beside their shards (categories, index,
ground truth) and caches it in another folder. Shards compressed with gzip are decompressed there, because a
compressed file has no random access.
"""

import hashlib
import json
import pathlib
import shutil

import numpy as np
from pycocotools import mask as coco_mask

from tfrecords.conversion_report import Fault, Report
from tfrecords.data_statistics import signs_of
from tfrecords.files import writing
from tfrecords.finish import Truth, add_row, write_json
from tfrecords.images import opened
from tfrecords.index import COLUMNS, numbered
from tfrecords.labels import read_labels
from tfrecords.records import compression_of, unpack
from tfrecords.scan import Unusable, scan
from tfrecords.schema import DataError
from tfrecords.write import LOCK, alone

FORM = 3  # version of the cached files; another version is built again


def adopt(files, cache, labels=None, progress=None):
    """Scan all records once and cache their categories, index and ground truth; reuse an earlier cache.

    Categories are those of `labels`, else every class/label that occurs, with its first class/text. A
    record that training could not read is left out and reported.

    Args:
        files:    paths of the shards.
        cache:    directory of the cache.
        labels:   file with a class list, see `tfrecords.labels.read_labels`; None: from the records.
        progress: function of (shards done, shards in all).
    Returns:
        the folder with manifest.json, annotations.json and index.json of these shards; index.json names
        them by path.
    Raises:
        DataError: no record can be used, or the classes are unknown.
    """
    files = [pathlib.Path(file).resolve() for file in files]
    categories = read_labels(labels) if labels else None
    to = pathlib.Path(cache) / f"shards-{_digest(files, categories)}"
    if (to / "manifest.json").is_file():
        return to
    with alone(to) as aside, writing(aside):
        try:
            if not (to / "manifest.json").is_file():  # else another process built it while this one waited
                plain = [_unpacked(file, aside, to) for file in files]
                _adopt(files, plain, aside, to=to, categories=categories, progress=progress)
                aside.rename(to)
                (to / LOCK).unlink()
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return to


def _digest(files, categories):
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORM, states, categories]).encode()).hexdigest()[:16]


def _unpacked(file, aside, to):
    """Decompress a shard where needed -> (path to read now, path in the finished cache)."""
    packed = compression_of(file)
    if packed is None:
        return file, file
    if packed != "gzip":
        raise DataError(f"{file}: is compressed with {packed}: decompress it first")
    folder = f"unpacked-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    (aside / folder).mkdir(exist_ok=True)
    name = file.name.removesuffix(".gz")
    unpack(file, aside / folder / name)
    return aside / folder / name, to / folder / name


def _adopt(files, plain, aside, to, categories, progress):
    """Write the files into `aside`: first one line per record; once all ids are known, the JSON files."""
    report = Report(to, list(categories or []))
    classes, spool = _Classes(report, fixed=categories is not None), aside / "spool.jsonl"
    source_ids, total = [], 0
    with spool.open("w", encoding="utf-8") as lines:
        for number, (path, _) in enumerate(plain):
            for row in scan(path):
                total += 1
                result = _result(row, classes, files[number].name)
                if "left_out" not in result:
                    source_ids.append(row.source_id)
                print(json.dumps({"shard": number, **result}), file=lines)
            if progress is not None:
                progress(number + 1, len(files))
    ids = iter(numbered(source_ids))
    columns = {str(path): {key: [] for key in COLUMNS if key != "shard"} for _, path in plain}
    with spool.open(encoding="utf-8") as lines, Truth(aside) as truth:
        for result in map(json.loads, lines):
            if "left_out" in result:
                report.leave_out(Fault(*result["left_out"]))
                continue
            result["image"] = {"id": next(ids), **_image(result["image"], report.names)}
            report.add(result)
            report.drop(Fault(*fault) for fault in result["faults"])
            report.remark(Fault(*fault) for fault in result["remarks"])
            add_row(columns[str(plain[result["shard"]][1])], result)
            truth.add(result["image"], result["annotations"])
        if not report.images:
            why = report.faults[0] if report.faults else "the shards are empty"
            raise DataError(f"{files[0]}: no usable record; the first fault: {why}")
        if not report.categories:
            raise DataError(f"{files[0]}: no record has an object: give the classes in a file (labels)")
        report.categories.sort(key=lambda category: category["id"])
        report.close(total, None)
        truth.finish(report.categories)
    spool.unlink()
    report.shards = [{"file": path, "records": len(part["offset"])} for path, part in columns.items()]
    write_json(aside / "index.json", columns)
    source = {"format": "shards", "files": [str(file) for file in files]}
    write_json(aside / "manifest.json", {"source": source, **report.to_json()}, indent=1)


class _Classes:
    """The categories of a report: fixed by a class list, or collected from the records."""

    def __init__(self, report, fixed):
        self.report, self.fixed = report, fixed

    def add(self, number, name):
        """Register a category; False if it is not in the fixed list."""
        if number in self.report.names:
            return True
        if self.fixed:
            return False
        name = name or str(number)
        self.report.names[number] = name
        self.report.categories.append({"id": number, "name": name})
        self.report.boxes_per_category.setdefault(name, 0)
        return True


def _result(row, classes, file_name):
    """A scanned record -> its result in the form of `shard.results`."""
    where = f"{file_name}, byte {row.offset}"
    if isinstance(row, Unusable):
        return {"left_out": [where, row.reason, row.boxes]}
    where = f"{where} ({row.file_name})" if row.file_name else where
    annotations, faults, remarks, clipped = [], [], [], 0
    if row.says_another_size:
        remarks.append([where, "image/height and image/width are not those of the image: kept"])
    usable = row.usable
    for n, category in enumerate(row.category_ids):
        if not usable[n]:
            faults.append([f"object {n + 1} of {where}", "box without area, outside the image or not finite"])
        elif not classes.add(category, row.names[n] if n < len(row.names) else ""):
            faults.append([f"object {n + 1} of {where}", "class/label is not in the list of classes"])
        else:
            clipped += not np.array_equal(row.boxes[n], row.boxes[n].clip(0, 1))
            annotations.append(_annotation(row, n, remarks, where))
    image = {"file_name": row.file_name, "height": row.height, "width": row.width}
    if row.verified is not None:
        image["verified"] = list(row.verified.items())
    if row.not_exhaustive:
        image["not_exhaustive_category_ids"] = row.not_exhaustive
    parts = {"annotations": annotations, "faults": faults, "remarks": remarks, "clipped": clipped}
    parts["signs"] = signs_of(row.boxes_xywh(), row.height, row.width)
    return {"offset": row.offset, "image": image, **parts}


def _image(image, names):
    """The entry of an image, with its image-level labels of known classes in the form of annotations.json."""
    if "not_exhaustive_category_ids" in image:
        listed = image["not_exhaustive_category_ids"]
        image["not_exhaustive_category_ids"] = [one for one in listed if one in names]
    if "verified" not in image:
        return image
    of_class = {one: present for one, present in image.pop("verified") if one in names}
    return {
        **image,
        "pos_category_ids": [one for one, present in of_class.items() if present],
        "neg_category_ids": [one for one, present in of_class.items() if not present],
    }


def _annotation(row, n, remarks, where):
    size = np.array([row.width, row.height, row.width, row.height], "float64")
    x0, y0, x1, y1 = (row.boxes[n].clip(0, 1) * size).tolist()
    annotation = {"category_id": row.category_ids[n], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    annotation["area"] = row.areas[n] if n < len(row.areas) and row.areas[n] > 0 else (x1 - x0) * (y1 - y0)
    annotation["iscrowd"] = int(n < len(row.crowd) and row.crowd[n] > 0)
    for key, flags in (("difficult", row.difficult), ("is_group_of", row.group_of)):
        if flags:
            annotation[key] = int(n < len(flags) and flags[n] > 0)
    if n < len(row.masks) and row.masks[n]:
        try:
            annotation["segmentation"] = _run_lengths(row.masks[n], row.height, row.width)
        except DataError as error:
            remarks.append([f"object {n + 1} of {where}", f"kept without its mask: {error}"])
    return annotation


def _run_lengths(png, height, width):
    """A PNG of a mask -> run-length code, serialisable as JSON."""
    try:
        with opened(png, ("PNG",)) as image:
            mask = np.asarray(image.convert("L")) > 0
    except DataError as error:
        raise DataError(f"the mask is no PNG: {error}") from None
    if mask.shape != (height, width):
        raise DataError("the mask is of another size than the image")
    code = coco_mask.encode(np.asfortranarray(mask.astype("uint8")))
    return {"size": [height, width], "counts": code["counts"].decode()}
