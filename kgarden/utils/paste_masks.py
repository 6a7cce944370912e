"""Mask pasting: resamples the box-aligned masks of detections to image masks or COCO run lengths (RLE).

A detection's mask has S x S bitmap cells over its box; the value of a cell is the probability at its centre.
Every pixel whose centre lies in the box takes the bilinear interpolation of the four nearest cell centres,
and belongs to the object if it is at least THRESHOLD. The mask is surrounded by a ring of cells of
probability 0: nothing is set outside of the box, and a mask of ones has slightly rounded corners. The result
is that of detectron2's `paste_masks_in_image` and mmdetection's `_do_paste_mask`, which use
`grid_sample(align_corners=False)`; only the pixels of the box are computed.
"""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_tools

from kgarden.errors import UserError

THRESHOLD = 0.5  # smallest probability of a pixel that belongs to the object


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size_hw: Sequence[int], threshold: float = THRESHOLD
) -> np.ndarray:
    """Pastes box-aligned masks into masks of the whole image.

    Args:
        masks:     (K, S, S) probabilities over the boxes, as `Predictor` returns them; numpy.
        boxes:     (K, 4) xyxy, px of the image.
        size_hw:   height and width of the image, px.
        threshold: smallest probability of a pixel that belongs to the object.
    Returns:
        (K, H, W) bool; False everywhere for padding, whose masks are zeros.
    Raises:
        UserError: the shapes of masks and boxes do not fit.
    """
    masks, boxes = np.asarray(masks), np.asarray(boxes)
    if masks.ndim != 3 or boxes.shape != (len(masks), 4):
        raise UserError(
            f"masks of shape {masks.shape}, boxes of shape {boxes.shape}: not supported; pass (K, S, S) "
            f"and (K, 4) of one image"
        )
    height, width = (int(side) for side in size_hw)
    pasted = np.zeros((len(masks), height, width), bool)
    for image_mask, mask, box in zip(pasted, masks, boxes, strict=True):
        rows, columns, inside = pasted_part(mask, box, (height, width), threshold)
        image_mask[rows, columns] = inside
    return pasted


def pasted_part(
    mask: np.ndarray, box: np.ndarray, size_hw: Sequence[int], threshold: float = THRESHOLD
) -> tuple[slice, slice, np.ndarray]:
    """Pastes a mask into the pixels of its box.

    Args:
        mask:    (S, T) probabilities, or bool.
        box:     (4,) xyxy, px; it may extend beyond the image.
        size_hw: height and width of the image, px.
    Returns:
        (rows, columns, inside): two slices of the image, and (h, w) bool of the pixels in them.
    """
    (x0, y0, x1, y1), (height, width) = (float(side) for side in box), size_hw
    rows, row, row_weight = _sampling_positions(y0, y1, height, mask.shape[0])
    columns, column, column_weight = _sampling_positions(x0, x1, width, mask.shape[1])
    # Rows first, then columns as rows of the transpose: both steps read contiguous memory.
    cells = _interpolated(mask.astype("float32", copy=False), row, row_weight)  # (h, T)
    values = _interpolated(np.ascontiguousarray(cells.T), column, column_weight)  # (w, h)
    return rows, columns, (values >= threshold).T


def _sampling_positions(begin, end, length, cells):
    """Pixels along one axis whose centres lie in [begin, end], and their positions between the cells.

    Returns:
        (slice of the image, (N,) index of the last cell centre before each pixel's, counted from the ring
        around the box, (N,) float32 weight of the next cell).
    """
    first = max(math.ceil(begin - 0.5), 0)
    last = max(min(math.floor(end - 0.5) + 1, length), first)
    position = (np.arange(first, last) + 0.5 - begin) * (cells / max(end - begin, 1e-9)) + 0.5
    before = position.astype(int).clip(0, cells)
    return slice(first, last), before, (position - before).astype("float32")


def _interpolated(lines, before, weight):
    """Linear interpolation between lines (S, N), with a line of zeros on either side.   (P, N)"""
    padded = np.pad(lines, ((1, 1), (0, 0)))
    steps = np.diff(padded, axis=0)  # to the next line
    return padded[before] + weight[:, None] * steps[before]


def run_lengths_of(
    mask: np.ndarray, box: np.ndarray, size_hw: Sequence[int], threshold: float = THRESHOLD
) -> dict:
    """Encodes a box-aligned mask as COCO's compressed run lengths of the whole image, ready for json.

    Args:
        mask, box, size_hw, threshold: see `pasted_part`.
    Returns:
        {"size": [H, W], "counts": str}
    """
    height, width = (int(side) for side in size_hw)
    rows, columns, inside = pasted_part(mask, box, (height, width), threshold)
    image_mask = np.zeros((height, width), np.uint8, order="F")  # pycocotools reads column by column
    image_mask[rows, columns] = inside
    return {"size": [height, width], "counts": mask_tools.encode(image_mask)["counts"].decode("ascii")}
