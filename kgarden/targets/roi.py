"""RoI sampling and RoI targets.   Ren et al. 2015, arXiv:1506.01497, section 3.1.3."""

from typing import NamedTuple

from keras import ops

from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather
from kgarden.ops.matcher import match, sample
from kgarden.structures import BOXES, LABELS, VALID, truth_is_valid

OBJECT = "object"  # row of the ground truth that a RoI is matched to, -1: none


class RoISampling(NamedTuple):
    """Settings of RoI sampling; their defaults are defined here only.

    Attributes:
        iou:               minimum IoU of a foreground RoI.
        num_samples:       S, RoIs per image.
        positive_fraction: maximum fraction of foreground.
    """

    iou: float = 0.5
    num_samples: int = 512
    positive_fraction: float = 0.25

    @property
    def max_positives(self):
        """The largest number of foreground RoIs in a sample."""
        return int(self.num_samples * self.positive_fraction)


def label_rois(boxes, valid, y, iou, num_classes):
    """Computes the classification and regression targets of RoIs.

    Args:
        boxes:       (B, S, 4) px.
        valid:       (B, S) bool.
        y:           ground truth as in kgarden.structures.
        iou:         minimum IoU of a foreground RoI; no low-quality matches.
        num_classes: C; background is C.
    Returns:
        labels:   (B, S) int32, 0..C, or -1 where not valid.
        gt_boxes: (B, S, 4) of the matched object, meaningful on foreground.
    """
    matched, is_foreground = _objects_of(boxes, y, iou)
    labels = gather(y[LABELS], matched)
    labels = ops.where(is_foreground, labels, num_classes)
    gt_boxes = gather(y[BOXES], matched)
    return ops.where(valid, ops.cast(labels, "int32"), -1), gt_boxes


def _objects_of(boxes, y, iou):
    """Object of highest IoU of each RoI, and whether it is foreground.   (B, S) int32, (B, S) bool."""
    overlap = box_ops.iou(y[BOXES], boxes)  # (B, M, S)
    matched, kind = match(overlap, truth_is_valid(y), thresholds=[iou], labels=[0, 1], low_quality=False)
    return matched, kind == 1


def sample_rois(proposals, y, sampling, random):
    """Samples a fixed number of RoIs per image, foreground first; ground-truth boxes join the proposals.

    Foreground fills the first rows, at most `sampling.max_positives` of them.

    Args:
        proposals: as in kgarden.structures.
        y:         ground truth.
        sampling:  RoISampling.
        random:    function n -> (B, n) uniform numbers.
    Returns:
        {"boxes": (B, S, 4), "valid": (B, S) bool, "object": (B, S) int32 row of the ground truth that a
        foreground RoI is matched to, -1 for all others}, without gradient.
    """
    boxes = ops.concatenate([proposals[BOXES], y[BOXES]], axis=1)
    valid = ops.concatenate([proposals[VALID], truth_is_valid(y)], axis=1)
    matched, is_foreground = _objects_of(boxes, y, sampling.iou)
    kind = ops.where(valid, ops.cast(is_foreground, "int32"), -1)
    count, fraction = sampling.num_samples, sampling.positive_fraction
    rows, kept, is_foreground = sample(kind, count, fraction, random(kind.shape[1]))
    chosen = gather(boxes, rows)
    object_ = ops.where(is_foreground, gather(matched, rows), -1)
    return {BOXES: ops.stop_gradient(chosen), VALID: kept, OBJECT: object_}


def are_objects(boxes, y):
    """Mask of boxes that are bitwise equal to a ground-truth box.   (B, S, 4) -> (B, S) bool."""
    same = ops.all(boxes[:, :, None] == y[BOXES][:, None], axis=-1)  # (B, S, M)
    return ops.any(same & truth_is_valid(y)[:, None], axis=2)
