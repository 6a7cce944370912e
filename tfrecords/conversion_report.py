"""Report of a conversion: counts of images and boxes kept, left out and repaired.

images = kept + left out, boxes = kept + dropped: a `Report` has all four, and `Report.close` checks them.
"""

import collections
import dataclasses
import pathlib

from tfrecords.data_statistics import Facts, Statistics, from_json
from tfrecords.images import MISSING
from tfrecords.schema import DataError

NAMED_FAULTS = 200  # at most so many are listed in the manifest; all are counted
IMAGE_LEFT_OUT = "its image is left out"  # the reason of boxes that are dropped with their image


@dataclasses.dataclass(frozen=True)
class Fault:
    """An image or box of the source that was left out or repaired.

    where:  the image, annotation or line.
    reason: why.
    boxes:  if an image is left out: how many boxes are dropped with it.
    """

    where: str
    reason: str
    boxes: int = 0

    @property
    def is_missing_file(self):
        """Whether the image was left out because its file does not exist."""
        return self.reason.endswith(MISSING)

    def __str__(self):
        return f"{self.where}: {self.reason}"


@dataclasses.dataclass
class Faults:
    """Faults that a converter finds in the annotations, before it reads images.

    images:  [Fault] of images that are left out.
    boxes:   [Fault] of boxes that are left out.
    remarks: [Fault] of what was repaired: the image or box is kept.
    """

    images: list = dataclasses.field(default_factory=list)
    boxes: list = dataclasses.field(default_factory=list)
    remarks: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a job gives: one image with its objects.

    serialized:  bytes of the tf.train.Example.
    image:       {"id", "file_name", "height", "width"} for annotations.json, and "pos_category_ids" and
                 "neg_category_ids", the verified image-level labels, where the source has them.
    annotations: [{"category_id", "bbox" (xywh px), "area", "iscrowd"}, ...], and "segmentation", "difficult"
                 and "is_group_of" where the source has them.
    faults:      [Fault] of boxes that were left out.
    remarks:     [Fault] of what was mended.
    clipped:     how many boxes reached out of the image and were cut at its border.
    signs:       {sign: count} of the source's boxes, see `data_statistics.signs_of`.
    """

    serialized: bytes
    image: dict
    annotations: list
    faults: list = ()
    remarks: list = ()
    clipped: int = 0
    signs: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Report:
    """What a build made, and what it left out."""

    to: pathlib.Path
    categories: list  # [{"id", "name"}, ...] in label order
    images_total: int = 0  # of the source: images + faulty_pictures
    boxes_total: int = 0  # of the source: boxes + all that are dropped
    images: int = 0
    images_without_objects: int = 0
    boxes: int = 0  # crowds included
    crowds: int = 0
    difficult: int = 0
    groups: int = 0  # boxes around several objects
    verified: int = 0  # image-level labels
    masks: int = 0
    clipped: int = 0
    boxes_per_category: dict = dataclasses.field(default_factory=dict)  # name -> count
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # reason -> boxes
    remarks: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # reason -> count
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    faulty_pictures: int = 0
    faults: list = dataclasses.field(default_factory=list)
    shards: list = dataclasses.field(default_factory=list)  # [{"file", "records", "bytes", "sha256"}]
    plan: str = ""  # digest of everything that the data set was made from
    seconds: float = 0.0
    strict: bool = False

    def __post_init__(self):
        self.names = {category["id"]: category["name"] for category in self.categories}
        self.boxes_per_category = self.boxes_per_category or dict.fromkeys(self.names.values(), 0)

    @property
    def facts(self):
        """What is known of the data set as a whole."""
        return Facts(self.categories, self.statistics, self.dropped, self.remarks)

    def add(self, result):
        """An image is kept: {"image", "annotations", "clipped", "signs"}, as in `Record`."""
        annotations = result["annotations"]
        self.images += 1
        self.clipped += result["clipped"]
        self.statistics.add(result["image"], annotations, result["signs"])
        self.images_without_objects += all(a["iscrowd"] for a in annotations)
        self.verified += sum(
            len(result["image"].get(key, ())) for key in ("pos_category_ids", "neg_category_ids")
        )
        for annotation in annotations:
            self.boxes += 1
            self.crowds += annotation["iscrowd"]
            self.difficult += annotation.get("difficult", 0)
            self.groups += annotation.get("is_group_of", 0)
            self.masks += "segmentation" in annotation
            self.boxes_per_category[self.names[annotation["category_id"]]] += 1

    def leave_out(self, fault):
        """An image is left out, and its boxes with it."""
        self._name(fault)
        self.faulty_pictures += 1
        if fault.boxes:
            self.dropped[IMAGE_LEFT_OUT] += fault.boxes

    def drop(self, faults):
        """Boxes are left out."""
        for fault in faults:
            self._name(fault)
            self.dropped[fault.reason] += 1

    def remark(self, faults):
        """Something was mended."""
        for fault in faults:
            self._name(fault)
            self.remarks[fault.reason] += 1

    def close(self, images_total, boxes_total):
        """Does the account come out?

        Args:
            images_total, boxes_total: what the source holds. None for boxes: all that were seen.
        Raises:
            DataError: the source has boxes, and none of them is left.
        """
        self.sort_faults()
        seen = self.boxes + sum(self.dropped.values())
        self.images_total, self.boxes_total = images_total, seen if boxes_total is None else boxes_total
        assert self.images + self.faulty_pictures == images_total, "an image was lost"
        assert seen == self.boxes_total, "a box was lost"
        if seen and not self.boxes:
            [(reason, count)] = self.dropped.most_common(1)
            raise DataError(f"{self.to}: none of {seen} boxes is left, {count} because: {reason}")

    def sort_faults(self):
        """Missing files first: they are often the cause of the rest."""
        self.faults.sort(key=lambda fault: not fault.is_missing_file)

    @property
    def missing_files(self):
        """How many images are left out because their files do not exist."""
        return sum(fault.is_missing_file for fault in self.faults)

    def to_json(self):
        """The fields that go into manifest.json: a function of the source alone."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("to", "seconds", "strict"):
            del fields[name]
        counts = {"dropped": dict(self.dropped), "remarks": dict(self.remarks)}
        counts["statistics"] = self.statistics.to_json()
        named = [{"where": f.where, "reason": f.reason} for f in self.faults[:NAMED_FAULTS]]
        return {**fields, **counts, "faults": named}

    def _name(self, fault):
        if self.strict:
            raise DataError(str(fault))
        self.faults.append(fault)


def report_of(to, manifest):
    """manifest.json, as a dictionary -> Report."""
    names = {field.name for field in dataclasses.fields(Report)} & manifest.keys()
    fields = {name: manifest[name] for name in names}
    fields["faults"] = [Fault(**fault) for fault in manifest["faults"]]
    for name in ("dropped", "remarks"):
        fields[name] = collections.Counter(fields[name])
    if "statistics" in fields:
        fields["statistics"] = from_json(fields["statistics"])
    return Report(to, **fields)
