"""Instance masks: converts COCO polygons and run-length codes to PNG files of the image's size."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tfrecords.images import MAX_PIXELS
from tfrecords.schema import DataError
from tfrecords.values import as_int, as_numbers

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
    """A COCO segmentation in a form that pycocotools accepts: polygons, or a run-length code, of numbers.

    Its C code trusts its input: run lengths that do not fit their size never return or write past the end,
    and an outline of billions of px fills the memory.

    Args:
        segmentation:  see `encode`.
        height, width: px of the image; None: those of a run-length code are not compared.
    Raises:
        DataError: as `encode`.
    """
    if not segmentation or not isinstance(segmentation, dict | list):
        raise DataError("the mask is neither polygons nor a run-length code")
    segmentation = _normal(segmentation)
    if isinstance(segmentation, dict):
        run_lengths(segmentation, None if height is None else [height, width])
        return segmentation
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
        raise DataError("the mask is of another size than the image")
    pixels = found[0] * found[1]
    if pixels > MAX_PIXELS:
        raise DataError(f"the mask has more than {MAX_PIXELS} px")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**31 for run in counts):
        counts = np.array(counts, "int64")
    else:
        raise DataError("the counts of the mask are no run lengths")
    if (counts < 0).any():
        raise DataError("the counts of the mask are no run lengths")
    if (counts > pixels).any() or counts.sum() != pixels:  # runs of any length might wrap to this sum
        raise DataError("the counts of the mask do not sum up to the image")
    return counts


def box_of(segmentation):
    """Bounding box of a segmentation -> [x, y, w, h] px: of the corners of polygons, of the pixels of a mask.

    Raises:
        DataError: as `encode`.
    """
    segmentation = checked(segmentation)
    if isinstance(segmentation, list):
        x, y = ([value for polygon in segmentation for value in polygon[start::2]] for start in (0, 1))
        return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    height, ends = segmentation["size"][0], np.cumsum(run_lengths(segmentation))
    last = ends[1::2] - 1  # of every run of ones
    first = ends[:-1:2][: len(last)]
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        raise DataError("the mask covers no pixel")
    columns = first // height, last // height
    spans = (columns[0] < columns[1]).any()  # a run that goes on in the next column touches both borders
    top, bottom = (0, height - 1) if spans else ((first % height).min(), (last % height).max())
    left, right = columns[0].min(), columns[1].max()
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def to_png(code):
    """A run-length code of pycocotools -> bytes of a PNG with 0 and 1."""
    file = io.BytesIO()
    Image.fromarray(coco_mask.decode(code)).save(file, "png", compress_level=COMPRESSION)
    return file.getvalue()


def is_given(segmentation):
    """Whether an annotation has a mask; many files write [] or null for "none"."""
    return segmentation not in (None, [], {}, [[]], "")


def _normal(segmentation):
    """The same with numbers for text, whole run lengths as int, and one flat polygon in a list."""
    if isinstance(segmentation, dict):
        lists = {key: segmentation.get(key) for key in ("size", "counts")}
        return {key: _whole(one) if isinstance(one, list) else one for key, one in lists.items()}
    flat = not isinstance(segmentation[0], list | dict | type(None))
    return [_numbers(polygon) for polygon in ([segmentation] if flat else segmentation)]


def _whole(values):
    if all(type(value) is int for value in values):
        return values
    numbers = [as_int(value) for value in values]
    return values if None in numbers else numbers


def _numbers(polygon):
    if isinstance(polygon, list) and any(isinstance(value, str) for value in polygon):
        return as_numbers(polygon, len(polygon)) or polygon
    return polygon


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
