"""One view of an image in test-time augmentation: its px and those of the first view."""

from keras import ops

from kgarden.models.base.static_shapes import StaticShapeModel
from kgarden.ops import boxes as box_ops
from kgarden.structures import IMAGES, MIRRORED, SIZE_HW

FIRST_HW = "first_hw"  # size of the image in the first view


class ViewModel(StaticShapeModel):
    """Base class of what is computed of one view, {"images", "size_hw", "mirrored", "first_hw"}.

    Args:
        detector: a Detector.
    """

    def __init__(self, detector, **kwargs):
        super().__init__(**kwargs)
        self.detector = detector
        self.built = True

    @staticmethod
    def view(x):
        """Returns the x that the detector takes."""
        return {key: x[key] for key in (IMAGES, SIZE_HW)}

    @staticmethod
    def to_first(boxes, x):
        """Maps boxes from this view to the first view.   (B, N, 4) px"""
        return box_ops.rescale(_mirrored_back(boxes, x), x[SIZE_HW], x[FIRST_HW])

    @staticmethod
    def from_first(boxes, x):
        """Maps boxes from the first view to this view.   (B, N, 4) px"""
        return _mirrored_back(box_ops.rescale(boxes, x[FIRST_HW], x[SIZE_HW]), x)


def _mirrored_back(boxes, x):
    """Boxes of a view as they are without the flip, or the other way round: a flip is its own inverse."""
    is_mirrored = ops.cast(x[MIRRORED], "bool")[:, None, None]
    return ops.where(is_mirrored, box_ops.mirror(boxes, x[SIZE_HW]), boxes)
