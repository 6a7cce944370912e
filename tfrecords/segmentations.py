"""Instance masks: converts COCO polygons and run-length codes to PNG files of the image's size."""

import io

from PIL import Image
from pycocotools import mask as coco_mask

from tfrecords.schema import DataError

COMPRESSION = 1  # zlib level; masks are few long runs, higher levels gain little

FARTHEST = 1e6  # px, limit of polygon coordinates; also rejects infinities and NaN


def encode(segmentation, height, width):
    """A COCO segmentation -> (the same in a form that pycocotools accepts, its run-length code, px^2).

    Everything is validated before pycocotools reads it: its C code does not.

    Args:
        segmentation:  a list of polygons [x, y, x, y, ...] in px, one such polygon, or a run-length code
                       {"size": [h, w], "counts": list or str}.
        height, width: px of the image.
    Raises:
        DataError: it is none of these, or has another size; the message is the reason alone.
    """
    if not isinstance(segmentation, dict | list):
        raise DataError("the mask is neither polygons nor a run-length code")
    if isinstance(segmentation, dict):
        code = coco_mask.frPyObjects(
            {"size": [height, width], "counts": _counts(segmentation, height, width)}, height, width
        )
    else:
        segmentation = [segmentation] if segmentation and _is_number(segmentation[0]) else segmentation
        _check_polygons(segmentation)
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    area = int(coco_mask.area(code))
    if not area:
        raise DataError("the mask covers no pixel")
    return segmentation, code, area


def to_png(code):
    """A run-length code of pycocotools -> bytes of a PNG with 0 and 1."""
    file = io.BytesIO()
    Image.fromarray(coco_mask.decode(code)).save(file, "png", compress_level=COMPRESSION)
    return file.getvalue()


def is_given(segmentation):
    """Whether an annotation has a mask; many files write [] or null for "none"."""
    return segmentation not in (None, [], {}, [[]], "")


def _check_polygons(polygons):
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError("a polygon of the mask has fewer than three points or half a point")
        if not all(map(_is_number, polygon)):
            raise DataError("a polygon of the mask has a value that is no number of pixels")


def _counts(code, height, width):
    """The run lengths of a code in column-major order, validated against the image size."""
    counts = code.get("counts")
    if code.get("size") != [height, width]:
        raise DataError("the mask is of another size than the picture")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise DataError("the counts of the mask are no run lengths")
    if sum(counts) != height * width:
        raise DataError("the counts of the mask do not sum up to the picture")
    return counts


def _unpacked(text):
    """COCO's compressed run lengths -> list: 5 bits per character, differences from the third run on."""
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError("the counts of the mask are no run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("the counts of the mask are cut short")
    return counts


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FARTHEST
