"""Postprocessing: maps detections from px of the network input to px of the original image."""

from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES


def to_original(detections: dict, size_hw, original_hw) -> dict:
    """Rescales boxes from px of the network input to px of the original image and clips them to it.

    Masks are relative to their boxes and need no change. A detector's boxes end at the borders of the image
    inside the canvas, so that clipping removes rounding errors only and a mask keeps its frame.

    Args:
        detections:  as defined in kgarden.structures, boxes (B, K, 4).
        size_hw:     (B, 2) size of the image inside the canvas.
        original_hw: (B, 2) size of the original image.
    Returns:
        a copy of the dictionary with rescaled boxes.
    """
    boxes = box_ops.rescale(detections[BOXES], size_hw, original_hw)
    return {**detections, BOXES: box_ops.clip(boxes, original_hw)}
