"""Whether another runtime says what the model says: detections matched by what they are, not by their slots.

Runtimes sum in other orders. Scores that are nearly equal then change places, and at the end of the list one
takes the other's place.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from kgarden.errors import TrainingFailed
from kgarden.export.network import COUNT
from kgarden.structures import BOXES, IMAGES, LABELS, MASKS, SCORES, SIZE_HW

TOLERANCE = 1e-4  # of a box: over the longer side of the canvas; of a score: over the score
MASK_TOLERANCE = 1e-3  # of the probabilities of masks
CELL = 16  # px of one colour in the image that runtimes are compared on


def made_up_image(canvas, batch, seed=0):
    """Coloured squares on every canvas of the batch, padded on two sides.   {"images", "size_hw"} numpy."""
    height, width = canvas
    rng = np.random.default_rng(seed)
    inside = max(height - 8, 1), max(width - 8, 1)
    cells = rng.integers(0, 256, (batch, -(-height // CELL), -(-width // CELL), 3), dtype="uint8")
    images = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)[:, :height, :width]
    images = images // 2 + rng.integers(0, 128, images.shape, dtype="uint8")
    images[:, inside[0] :], images[:, :, inside[1] :] = 0, 0
    return {IMAGES: images, SIZE_HW: np.tile(np.int32(inside), (batch, 1))}


def check_agreement(name, expected, answer, canvas, tolerance=TOLERANCE):
    """Compare two answers of kgarden/export/network.py.

    Returns:
        {"detections": how many were compared, "boxes_px", "scores": largest differences, of scores over the
        score}.
    Raises:
        TrainingFailed: a detection of one has no counterpart in the other.
    """
    compared, boxes_px, scores = 0, 0.0, 0.0
    for image in range(len(expected[COUNT])):
        found = _differences(*(_rows(one, image) for one in (expected, answer)), max(canvas), tolerance)
        if found is None:
            raise TrainingFailed(
                f"{name}: the written file does not answer as the model does (boxes, scores or masks differ "
                f"by more than rounding explains); do not use it, and report it with the recipe"
            )
        compared += found[0]
        boxes_px, scores = max(boxes_px, found[1]), max(scores, found[2])
    return {"detections": compared, "boxes_px": float(f"{boxes_px:.2g}"), "scores": float(f"{scores:.2g}")}


def _rows(answer, image):
    count = int(answer[COUNT][image])
    rows = {key: np.asarray(answer[key][image][:count]) for key in answer.keys() - {COUNT}}
    return rows | {"full": count == len(answer[SCORES][image])}


def _differences(one, other, side, tolerance):
    """(pairs, largest difference of boxes in px, of scores over the score), or None where rows are left."""
    far = 1e6  # no pair at all
    boxes = np.abs(one[BOXES][:, None] - other[BOXES][None]).max(axis=-1, initial=0.0)
    score = np.abs(one[SCORES][:, None] - other[SCORES][None])
    score = score / np.maximum(one[SCORES][:, None], np.finfo("float32").tiny)
    agree = (one[LABELS][:, None] == other[LABELS][None]) & (boxes <= tolerance * side) & (score <= tolerance)
    rows, columns = linear_sum_assignment(np.where(agree, boxes / side + score, far))
    paired = agree[rows, columns]
    rows, columns = rows[paired], columns[paired]
    for mine, taken, its in ((one, rows, other), (other, columns, one)):
        left = np.delete(mine[SCORES], taken)
        # What is left may have been pushed off the end of a full list by an equal of it.
        if len(left) and not (its["full"] and left.max() <= its[SCORES].min() * (1 + tolerance)):
            return None
    if not len(rows):
        return 0, 0.0, 0.0
    if MASKS in one and np.abs(one[MASKS][rows] - other[MASKS][columns]).max() > MASK_TOLERANCE:
        return None
    return len(rows), boxes[rows, columns].max(), score[rows, columns].max()
