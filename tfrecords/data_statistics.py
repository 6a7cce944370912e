"""Statistics of a data set, collected in one pass: sizes, classes, objects per image, and signs of mistakes.

They are kept in manifest.json, so that no later command reads all annotations again. Sizes are counted in
bins of a quarter of an octave: bin b holds values from 2^(b/4) to 2^((b+1)/4).
"""

import dataclasses
import json
import math
import pathlib
from collections import Counter

from tfrecords.schema import DataError

BINS_PER_OCTAVE = 4
PERCENT = 100  # and an image "larger" than that has twice as many px on each side
OVER = 2.0  # px; boxes that reach further out of their image are no matter of rounding

# Signs of boxes before they are clipped, see `signs_of`, and of an image.
BOXES = "boxes"
WITHIN_ONE = "within 0..1"
WITHIN_HUNDRED = "within 0..100 of a larger image"
OVER_BORDER = "over the border"
AS_CORNERS = "inside if read as corners"
STORED_SIZE = "EXIF orientation, annotated as stored"


@dataclasses.dataclass
class Statistics:
    """Counts of a data set; "objects" are all boxes but crowds.

    images:            number of images.
    signs:             {sign: boxes or images}, of all boxes that the source has, crowds too.
    objects_per_image: {number of objects: images}.
    fullest:           file name of the image with the most objects.
    most_of_a_class:   the most objects of one class in one image.
    objects_of_class:  {category id: objects}.
    sides:             {bin of sqrt(width * height) in px: objects}.
    relative:          {(bin of that side / shorter side of the image, bin of longer / shorter side of the
                       image): objects}.
    """

    images: int = 0
    signs: Counter = dataclasses.field(default_factory=Counter)
    objects_per_image: Counter = dataclasses.field(default_factory=Counter)
    fullest: str = ""
    most_of_a_class: int = 0
    objects_of_class: Counter = dataclasses.field(default_factory=Counter)
    sides: Counter = dataclasses.field(default_factory=Counter)
    relative: Counter = dataclasses.field(default_factory=Counter)

    @property
    def boxes(self):
        """Number of boxes of the source whose signs are counted."""
        return self.signs[BOXES]

    @property
    def objects(self):
        return sum(count * images for count, images in self.objects_per_image.items())

    @property
    def most(self):
        """Number of objects of the fullest image."""
        return max(self.objects_per_image, default=0)

    def add(self, image, annotations, signs):
        """Count an image.

        Args:
            image:       {"height", "width"} px, either may be absent, and "file_name".
            annotations: [{"bbox", "category_id", "iscrowd"}, ...], xywh px.
            signs:       {sign: count}, of all its boxes before they were clipped or dropped.
        """
        objects = [one for one in annotations if not one.get("iscrowd")]
        if len(objects) > self.most:
            self.fullest = str(image.get("file_name") or f"image {image.get('id')}")
        self.images += 1
        self.signs.update(signs)
        self.objects_per_image[len(objects)] += 1
        classes = Counter(one["category_id"] for one in objects)
        self.objects_of_class.update(classes)
        self.most_of_a_class = max(self.most_of_a_class, *classes.values(), 0)
        for one in objects:
            self._add_size(math.sqrt(max(one["bbox"][2] * one["bbox"][3], 0)), image)

    def _add_size(self, side, image):
        if not side:
            return
        self.sides[bin_of(side)] += 1
        hw = image.get("height"), image.get("width")
        if all(hw):
            self.relative[bin_of(side / min(hw)), bin_of(max(hw) / min(hw))] += 1

    def median_side(self, short_side_px=None, long_side_px=None):
        """Median of sqrt(width * height) of the objects, px; None without objects.

        Args:
            short_side_px, long_side_px: limits of the sides of resized images; None: images as they are.
        """
        if short_side_px is None:
            sides = {middle_of(one): count for one, count in self.sides.items()}
        else:
            sides = Counter()
            for (side, aspect), count in self.relative.items():
                shorter = min(short_side_px, long_side_px / max(middle_of(aspect), 1))
                sides[middle_of(side) * shorter] += count
        seen, half = 0, sum(sides.values()) / 2
        for side in sorted(sides):
            seen += sides[side]
            if seen >= half:
                return side
        return None

    def to_json(self):
        """As a dictionary that JSON can hold."""
        fields = vars(self) | {"relative": [[*key, count] for key, count in sorted(self.relative.items())]}
        counters = {key: sorted(value.items()) for key, value in fields.items() if isinstance(value, Counter)}
        return {**fields, **{key: [list(pair) for pair in pairs] for key, pairs in counters.items()}}


def from_json(fields):
    """What `Statistics.to_json` gave -> Statistics."""
    read = {field.name: fields[field.name] for field in dataclasses.fields(Statistics)}
    relative = Counter({(side, aspect): count for side, aspect, count in read.pop("relative")})
    plain = {key: Counter(dict(value)) if isinstance(value, list) else value for key, value in read.items()}
    return Statistics(**plain, relative=relative)


def bin_of(value):
    """Bin of a positive value."""
    return math.floor(BINS_PER_OCTAVE * math.log2(value))


def middle_of(number):
    """Geometric middle of a bin."""
    return 2 ** ((number + 0.5) / BINS_PER_OCTAVE)


def signs_of(boxes, height, width):
    """Signs of mistakes of the boxes of an image before they are clipped -> {sign: boxes}.

    Args:
        boxes:         [[x, y, w, h], ...] px.
        height, width: of the image, px; None: unknown, and only the boxes themselves are looked at.
    """
    signs = Counter({BOXES: len(boxes)})
    for box in boxes:
        signs.update(_signs_of(box, height, width))
    return dict(signs)


def _signs_of(box, height, width):
    x, y, w, h = box
    end = max(x + w, y + h)
    signs = [WITHIN_ONE] if min(box) >= 0 and end <= 1 else []
    if height and width:
        larger = min(height, width) >= 2 * PERCENT
        signs += [WITHIN_HUNDRED] if larger and min(box) >= 0 and 1 < end <= PERCENT else []
        signs += [OVER_BORDER] if max(-x, -y, x + w - width, y + h - height) > OVER else []
        signs += [AS_CORNERS] if 0 <= x < w <= width + 1 and 0 <= y < h <= height + 1 else []
    return signs


@dataclasses.dataclass
class Facts:
    """What is known of a data set.

    categories: [{"id", "name"}, ...] in label order.
    statistics: Statistics.
    dropped, remarks: {reason: boxes}, as in the report of the conversion.
    """

    categories: list
    statistics: Statistics
    dropped: dict = dataclasses.field(default_factory=dict)
    remarks: dict = dataclasses.field(default_factory=dict)


def facts_of(truth):
    """Facts of ground truth in COCO form, a dictionary whose annotations have boxes or are not counted."""
    statistics = Statistics()
    images, of_image = {one["id"]: one for one in truth["images"]}, {}
    for one in truth["annotations"]:
        if one.get("bbox"):
            of_image.setdefault(one["image_id"], []).append(one)
    for key, image in images.items():
        annotations = of_image.get(key, [])
        signs = signs_of([one["bbox"] for one in annotations], image.get("height"), image.get("width"))
        statistics.add(image, annotations, signs)
    return Facts(truth["categories"], statistics)


def facts_in(folder):
    """Facts of a built data set, from its manifest.json; of one from an older version, from annotations.json.

    Raises:
        DataError: the folder has neither.
    """
    folder = pathlib.Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if "statistics" in manifest:
            return facts_of_manifest(manifest)
        return facts_of(json.loads((folder / "annotations.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file: build the data set again") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder}: manifest.json is damaged: build the data set again") from None


def facts_of_manifest(manifest):
    """Facts of a manifest, as a dictionary."""
    statistics = from_json(manifest["statistics"])
    return Facts(manifest["categories"], statistics, manifest["dropped"], manifest["remarks"])


def facts_of_rows(rows, names=None):
    """Facts of records that were read.

    Args:
        rows:  objects with `where`, `height`, `width`, `boxes` ((N, 4) xyxy px), `category_ids` and `crowd`.
        names: {category id: name}; None: the ids that occur, as names.
    """
    statistics, ids = Statistics(), set()
    for row in rows:
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in row.boxes.tolist()]
        annotations = [
            {"bbox": box, "category_id": category, "iscrowd": crowd}
            for box, category, crowd in zip(boxes, row.category_ids, row.crowd, strict=False)
            if all(map(math.isfinite, box))
        ]
        signs = signs_of([one["bbox"] for one in annotations], row.height, row.width)
        image = {"file_name": row.where, "height": row.height, "width": row.width}
        statistics.add(image, annotations, signs)
        ids.update(row.category_ids)
    names = names or {one: str(one) for one in ids}
    return Facts([{"id": one, "name": name} for one, name in sorted(names.items())], statistics)
