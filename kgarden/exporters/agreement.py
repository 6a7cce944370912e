"""Export validation: compares an exported file's detections with the model's, matched regardless of rank.

Runtimes sum in different orders. Detections of nearly equal scores may then swap ranks, and at the end of a
full list one may replace the other.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from kgarden.errors import TrainingFailed
from kgarden.exporters.network import COUNT
from kgarden.structures import BOXES, IMAGES, LABELS, MASKS, SCORES, SIZE_HW

TOLERANCE = 1e-4  # of boxes relative to the longer side of the canvas; of scores relative to the score
MASK_TOLERANCE = 1e-3  # of mask probabilities, absolute
CELL = 16  # px, side of the squares of the synthetic image


def synthetic_batch(canvas: tuple[int, int], batch: int, seed: int = 0) -> dict:
    """Creates a batch of coloured squares with padding at two sides.   {"images", "size_hw"} numpy."""
    height, width = canvas
    rng = np.random.default_rng(seed)
    inside = max(height - 8, 1), max(width - 8, 1)
    cells = rng.integers(0, 256, (batch, -(-height // CELL), -(-width // CELL), 3), dtype="uint8")
    images = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)[:, :height, :width]
    images = images // 2 + rng.integers(0, 128, images.shape, dtype="uint8")
    images[:, inside[0] :], images[:, :, inside[1] :] = 0, 0
    return {IMAGES: images, SIZE_HW: np.tile(np.int32(inside), (batch, 1))}


def check_agreement(
    name: str, expected: dict, outputs: dict, *, canvas: tuple[int, int], tolerance: float = TOLERANCE
) -> dict:
    """Compares the outputs of an exported file with those of kgarden/exporters/network.py.

    Args:
        name:      of the file, for the error message.
        expected:  outputs of the model.
        outputs:   outputs of the file.
        canvas:    (height, width) px.
        tolerance: relative, of boxes and scores.
    Returns:
        {"detections": number of compared detections, "boxes_px", "scores": largest differences, of scores
        relative to the score}.
    Raises:
        TrainingFailed: a detection has no counterpart.
    """
    compared, boxes_px, scores = 0, 0.0, 0.0
    for image in range(len(expected[COUNT])):
        rows, other_rows = _rows(expected, image), _rows(outputs, image)
        differences = _differences(rows, other_rows, max(canvas), tolerance)
        if differences is None:
            raise TrainingFailed(
                f"{name}: the predictions of the exported file differ from the model's (boxes, scores or "
                f"masks, by more than rounding); do not use it, and report it with the recipe"
            )
        compared += differences[0]
        boxes_px, scores = max(boxes_px, differences[1]), max(scores, differences[2])
    return {"detections": compared, "boxes_px": float(f"{boxes_px:.2g}"), "scores": float(f"{scores:.2g}")}


def _rows(outputs, image):
    count = int(outputs[COUNT][image])
    rows = {key: np.asarray(outputs[key][image][:count]) for key in outputs.keys() - {COUNT}}
    return rows | {"full": count == len(outputs[SCORES][image])}


def _differences(one, other, side, tolerance):
    """(pairs, largest difference of boxes in px, of scores relative), or None if rows remain unmatched."""
    far = 1e6  # cost of a pair that must not match
    boxes = np.abs(one[BOXES][:, None] - other[BOXES][None]).max(axis=-1, initial=0.0)
    score = np.abs(one[SCORES][:, None] - other[SCORES][None])
    score = score / np.maximum(one[SCORES][:, None], np.finfo("float32").tiny)
    agree = (one[LABELS][:, None] == other[LABELS][None]) & (boxes <= tolerance * side) & (score <= tolerance)
    rows, columns = linear_sum_assignment(np.where(agree, boxes / side + score, far))
    paired = agree[rows, columns]
    rows, columns = rows[paired], columns[paired]
    for ours, matched, theirs in ((one, rows, other), (other, columns, one)):
        left = np.delete(ours[SCORES], matched)
        # A remaining row may have dropped off the end of a full list because of a tie.
        if len(left) and not (theirs["full"] and left.max() <= theirs[SCORES].min() * (1 + tolerance)):
            return None
    if not len(rows):
        return 0, 0.0, 0.0
    if MASKS in one and np.abs(one[MASKS][rows] - other[MASKS][columns]).max() > MASK_TOLERANCE:
        return None
    return len(rows), boxes[rows, columns].max(), score[rows, columns].max()
