"""Writes annotations.json, index.json and manifest.json beside finished shards."""

import contextlib
import json
import shutil

from tfrecords import shard as shard_files
from tfrecords.conversion_report import Fault
from tfrecords.files import writing
from tfrecords.index import COLUMNS
from tfrecords.schema import DataError


def finish(folder, files, jobs, source, report, images_total, boxes_total):
    """Write the three files, streaming annotations.json; only the index is held in memory.

    Args:
        folder:      directory of the shards.
        files:       their paths; job k is in shard k modulo their number.
        jobs:        the jobs of all shards.
        source:      dict for the manifest.
        report:      Report, completed in place.
        images_total, boxes_total: counts of the source, see `Report.close`.
    Raises:
        DataError: no image can be used, or there is a fault and the report is strict.
    """
    index = {file.name: {key: [] for key in COLUMNS if key != "shard"} for file in files}
    with writing(folder), contextlib.ExitStack() as stack:
        results = [stack.enter_context(contextlib.closing(shard_files.results(file))) for file in files]
        truth = stack.enter_context(Truth(folder))
        for number in range(len(jobs)):
            result, file = next(results[number % len(files)]), files[number % len(files)]
            if "left_out" in result:
                report.leave_out(Fault(*result["left_out"]))
                continue
            report.add(result)
            report.drop(Fault(*fault) for fault in result["faults"])
            report.remark(Fault(*fault) for fault in result["remarks"])
            add_row(index[file.name], result)
            truth.add(result["image"], result["annotations"])
        if not report.images:
            report.sort_faults()
            why = f"; the first fault: {report.faults[0]}" if report.faults else ""
            raise DataError(f"{report.to}: no usable image{why}")
        report.shards = [next(lines) for lines in results]
        report.close(images_total, boxes_total)
        truth.finish(report.categories)
        write_json(folder / "index.json", index)
        write_json(folder / "manifest.json", {"source": source, **report.to_json()}, indent=1)
        for file in files:
            shard_files.side_of(file).unlink()


def add_row(columns, result):
    """Append one row to the columns of index.json."""
    image = result["image"]
    row = {
        "offset": result["offset"],
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "objects": sum(not a["iscrowd"] for a in result["annotations"]),
    }
    for key, value in row.items():
        columns[key].append(value)


class Truth:
    """Streaming writer of annotations.json: images and boxes go to one file each, joined at the end.

    A context manager; `folder` is where annotations.json is written.
    """

    def __init__(self, folder):
        self.path = folder / "annotations.json"
        self.parts = [folder / "images.part", folder / "boxes.part"]
        self.boxes = 0

    def __enter__(self):
        self.files = [part.open("w+", encoding="utf-8") for part in self.parts]
        return self

    def __exit__(self, *_):
        for file, part in zip(self.files, self.parts, strict=True):
            file.close()
            part.unlink()

    def add(self, image, annotations):
        images, boxes = self.files
        images.write(", " * (images.tell() > 0) + _json(image))
        for annotation in annotations:
            # ids start at 1: pycocotools uses 0 for "no match"
            numbered = {"id": self.boxes + 1, "image_id": image["id"], **annotation}
            boxes.write(", " * (self.boxes > 0) + _json(numbered))
            self.boxes += 1

    def finish(self, categories):
        with self.path.open("w", encoding="utf-8") as whole:
            for name, file in zip(("images", "annotations"), self.files, strict=True):
                file.seek(0)
                whole.write("{" if name == "images" else ", ")
                whole.write(f'"{name}": [')
                shutil.copyfileobj(file, whole)
                whole.write("]")
            whole.write(f', "categories": {_json(categories)}}}')


def _json(content, indent=None):
    return json.dumps(content, indent=indent, ensure_ascii=False)


def write_json(path, content, indent=None):
    path.write_text(_json(content, indent), encoding="utf-8")
