"""Detections in px of the original image, from px of the network input."""

from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES


def to_original(detections, size_hw, original_hw):
    """Detections in px of the network input -> in px of the original picture, clipped to it.

    Masks lie over their boxes and move with them. A detector's boxes end at the borders of the picture inside
    the canvas, so clipping takes no more than what rounding adds, and a mask keeps its frame.

    Args:
        detections:  as kgarden.structures has them, boxes (B, K, 4).
        size_hw:     (B, 2) size of the picture inside the canvas.
        original_hw: (B, 2) size of the original picture.
    Returns:
        the same dictionary with other boxes.
    """
    boxes = box_ops.rescale(detections[BOXES], size_hw, original_hw)
    return {**detections, BOXES: box_ops.clip(boxes, original_hw)}
