"""Masks of detections: from the frame of a box onto the picture, and from there to COCO's run lengths.

A detection's mask is S x S probabilities over its box; cell (r, c) is what holds at the cell's centre. Here
it is laid onto the original picture: every pixel whose centre lies in the box gets the bilinear mean of the
four nearest cell centres, and belongs to the object from THRESHOLD on. Around the box lies a ring of cells
with probability 0, so that nothing is claimed outside of the box, and the corners of a mask of ones are a
little round. All this is what detectron2's `paste_masks_in_image` and mmdetection's `_do_paste_mask` do with
`grid_sample(align_corners=False)`; only the pixels of the box are looked at.
"""

import math

import numpy as np
from pycocotools import mask as mask_tools

from kgarden.errors import UserError

THRESHOLD = 0.5  # the least probability of a pixel that belongs to the object


def paste_masks(masks, boxes, size_hw, threshold=THRESHOLD):
    """Masks over their boxes -> masks of the whole picture.

    Args:
        masks:     (K, S, S) probabilities over the boxes, as `Predictor` gives them; numpy.
        boxes:     (K, 4) xyxy, px of the picture.
        size_hw:   height and width of the picture, px.
        threshold: least probability of a pixel that belongs to the object.
    Returns:
        (K, H, W) bool; nothing is set for padding, whose masks are zeros.
    Raises:
        UserError: masks and boxes of other shapes.
    """
    masks, boxes = np.asarray(masks), np.asarray(boxes)
    if masks.ndim != 3 or boxes.shape != (len(masks), 4):
        raise UserError(
            f"masks of shape {masks.shape}, boxes of shape {boxes.shape}: (K, S, S) and (K, 4), those of one "
            f"picture, are needed"
        )
    height, width = (int(side) for side in size_hw)
    pasted = np.zeros((len(masks), height, width), bool)
    for one, mask, box in zip(pasted, masks, boxes, strict=True):
        rows, columns, inside = pasted_part(mask, box, (height, width), threshold)
        one[rows, columns] = inside
    return pasted


def pasted_part(mask, box, size_hw, threshold=THRESHOLD):
    """A mask on the pixels of its box alone.

    Args:
        mask:    (S, T) probabilities, or bool.
        box:     (4,) xyxy, px; it may reach out of the picture.
        size_hw: height and width of the picture, px.
    Returns:
        (rows, columns, inside): two slices of the picture, and for the pixels there (h, w) bool.
    """
    (x0, y0, x1, y1), (height, width) = (float(side) for side in box), size_hw
    rows, row, row_weight = _between(y0, y1, height, mask.shape[0])
    columns, column, column_weight = _between(x0, x1, width, mask.shape[1])
    # Few rows first, then columns as rows of the transposed: both steps read whole lines of memory.
    cells = _mixed(mask.astype("float32", copy=False), row, row_weight)  # (h, T)
    values = _mixed(np.ascontiguousarray(cells.T), column, column_weight)  # (w, h)
    return rows, columns, (values >= threshold).T


def _between(begin, end, length, cells):
    """The pixels of one direction whose centres lie in [begin, end], and the cells around each.

    Returns:
        (slice of the picture, (N,) the cell whose centre comes before that of each pixel, counted from the
        ring around the box, (N,) float32 share of the next cell).
    """
    first = max(math.ceil(begin - 0.5), 0)
    last = max(min(math.floor(end - 0.5) + 1, length), first)
    place = (np.arange(first, last) + 0.5 - begin) * (cells / max(end - begin, 1e-9)) + 0.5
    before = place.astype(int).clip(0, cells)
    return slice(first, last), before, (place - before).astype("float32")


def _mixed(lines, before, share):
    """Lines (S, N), with one of zeros on either side, read between two of them.   (P, N)"""
    ringed = np.pad(lines, ((1, 1), (0, 0)))
    steps = np.diff(ringed, axis=0)  # to the next line
    return ringed[before] + share[:, None] * steps[before]


def run_lengths_of(mask, box, size_hw, threshold=THRESHOLD):
    """A mask over its box -> COCO's compressed run lengths of the whole picture, as json can hold them.

    Args:
        mask, box, size_hw, threshold: as `pasted_part` has them.
    Returns:
        {"size": [H, W], "counts": str}
    """
    height, width = (int(side) for side in size_hw)
    rows, columns, inside = pasted_part(mask, box, (height, width), threshold)
    whole = np.zeros((height, width), np.uint8, order="F")  # the order that pycocotools reads in
    whole[rows, columns] = inside
    return {"size": [height, width], "counts": mask_tools.encode(whole)["counts"].decode("ascii")}
