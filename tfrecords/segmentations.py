"""Instance masks: converts COCO polygons and run-length codes to PNG files of the image's size."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tfrecords.images import MAX_PIXELS
from tfrecords.schema import DataError

COMPRESSION = 1  # zlib level; masks are few long runs, higher levels gain little

FARTHEST = 1e6  # px, limit of polygon coordinates; also rejects infinities and NaN
LONGEST_OUTLINE = 5e6  # px, of all polygons of a mask; pycocotools takes 80 bytes for each


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
    segmentation = checked(segmentation, height, width)
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation)
        code = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    else:
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    area = int(coco_mask.area(code))
    if not area:
        raise DataError("the mask covers no pixel")
    return segmentation, code, area


def checked(segmentation, height=None, width=None):
    """A COCO segmentation in a form that pycocotools accepts: polygons, or a run-length code.

    Its C code trusts its input: run lengths that do not fit their size never return or write past the end,
    and an outline of billions of px fills the memory.

    Args:
        segmentation:  see `encode`.
        height, width: px of the image; None: those of a run-length code are not compared.
    Raises:
        DataError: as `encode`.
    """
    if not isinstance(segmentation, dict | list):
        raise DataError("the mask is neither polygons nor a run-length code")
    if isinstance(segmentation, dict):
        run_lengths(segmentation, None if height is None else [height, width])
        return segmentation
    segmentation = [segmentation] if segmentation and _is_number(segmentation[0]) else segmentation
    _check_polygons(segmentation)
    return segmentation


def run_lengths(code, size=None):
    """The run lengths of a code, column by column: (n,) int64, which sum up to its size.

    Args:
        code: {"size": [h, w], "counts": list or str}.
        size: [h, w] that the code must have; None: any.
    Raises:
        DataError: the code is not valid.
    """
    found, counts = code.get("size"), code.get("counts")
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(type(side) is int and side > 0 for side in found)
    ):
        raise DataError("the size of the mask is not two positive integers")
    if size is not None and found != size:
        raise DataError("the mask is of another size than the picture")
    if found[0] * found[1] > MAX_PIXELS:
        raise DataError(f"the mask has more than {MAX_PIXELS} px")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**31 for run in counts):
        counts = np.array(counts, "int64")
    else:
        raise DataError("the counts of the mask are no run lengths")
    if (counts < 0).any():
        raise DataError("the counts of the mask are no run lengths")
    if counts.sum() != found[0] * found[1]:
        raise DataError("the counts of the mask do not sum up to the picture")
    return counts


def to_png(code):
    """A run-length code of pycocotools -> bytes of a PNG with 0 and 1."""
    file = io.BytesIO()
    Image.fromarray(coco_mask.decode(code)).save(file, "png", compress_level=COMPRESSION)
    return file.getvalue()


def is_given(segmentation):
    """Whether an annotation has a mask; many files write [] or null for "none"."""
    return segmentation not in (None, [], {}, [[]], "")


def _check_polygons(polygons):
    outline = 0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError("a polygon of the mask has fewer than three points or half a point")
        if not all(map(_is_number, polygon)):
            raise DataError("a polygon of the mask has a value that is no number of pixels")
        points = np.array(polygon, "float64").reshape(-1, 2)
        outline += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if outline > LONGEST_OUTLINE:
        raise DataError("the polygons of the mask are too long")


def _unpacked(text):
    """COCO's compressed run lengths -> (n,) int64: 5 bits per character, differences from the fourth on."""
    bits = np.frombuffer(text.encode("utf-8", "replace"), "uint8").astype("int64") - 48
    if ((bits < 0) | (bits > 63)).any():
        raise DataError("the counts of the mask are no run lengths")
    last = np.flatnonzero(bits & 32 == 0)
    if not len(bits) or last.size == 0 or last[-1] != len(bits) - 1:
        raise DataError("the counts of the mask are cut short")
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:  # 32 bits
        raise DataError("the counts of the mask are no run lengths")
    place = np.arange(len(bits)) - np.repeat(first, length)
    values = np.add.reduceat((bits & 31) << 5 * place, first)
    values -= np.where(bits[last] & 16 > 0, np.int64(1) << 5 * length, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FARTHEST
