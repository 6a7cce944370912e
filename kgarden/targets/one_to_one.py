"""One-to-one assigner: one positive per object, for NMS-free detectors.

Wang et al. 2021 (DeFCN, POTO), arXiv:2012.03544, section 3.2; Zhou et al. 2021 (PSS), arXiv:2101.11782,
section 3.3. The candidate is chosen at every step by the class and box quality of the current predictions:

    Q = [i in Omega_j] P_i(c_j)^(1 - alpha) IoU(b_i, b_j)^alpha        Eq. 3, "mul"
    Q = [i in Omega_j] ((1 - alpha) P_i(c_j) + alpha IoU(b_i, b_j))    "add"

Letters: B images, M objects, A candidates of all levels, C classes. No gradient flows through the assignment.
"""

from typing import NamedTuple

from keras import ops

from kgarden.errors import UserError
from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather
from kgarden.ops.linear_assignment import OUTSIDE, hungarian, objects_of, top_one

FORMS = ("mul", "add")
MATCHINGS = ("hungarian", "top_one")


class OneToOne(NamedTuple):
    """Assign result with at most one candidate per object.

    Attributes:
        row:    (B, M) int32, candidate of each object; 0 where not valid.
        label:  (B, M) int32, its class.
        valid:  (B, M) bool, objects that have one.
        object: (B, A) int32, object of each candidate, or -1.
        labels: (B, A) int32, class of each candidate, or -1 for background.
    """

    row: object
    label: object
    valid: object
    object: object
    labels: object


def quality(probability, boxes, gt_boxes, gt_labels, alpha=0.8, form="mul"):
    """Computes the quality of every candidate for every object from the current predictions.

    Args:
        probability: (B, A, C) score of every class.
        boxes:       (B, A, 4) predicted, not clipped.
        gt_boxes:    (B, M, 4).
        gt_labels:   (B, M) int32.
        alpha:       weight of the IoU.
        form:        one of FORMS.
    Returns:
        (B, M, A) float32 in [0, 1]; Omega is applied by the caller.
    """
    if form not in FORMS:
        raise UserError(f"assignment.form {form!r}: one of {', '.join(FORMS)}")
    overlap = box_ops.iou(ops.cast(gt_boxes, "float32"), ops.stop_gradient(ops.cast(boxes, "float32")))
    of_class = at_labels(ops.stop_gradient(probability), gt_labels)
    if form == "add":
        return (1 - alpha) * of_class + alpha * overlap
    return _power(of_class, 1 - alpha) * _power(overlap, alpha)


def at_labels(scores, gt_labels):
    """Gathers the score of each object's class.   (B, A, C), (B, M) int32 -> (B, M, A)."""
    candidates, classes = scores.shape[1:]
    by_class = ops.reshape(ops.transpose(scores, (0, 2, 1)), (-1, candidates))  # (B * C, A)
    image = ops.arange(ops.shape(gt_labels)[0], dtype="int32")[:, None]
    return ops.take(by_class, image * classes + ops.maximum(gt_labels, 0), axis=0)


def _power(x, exponent):
    """x ** exponent for x in [0, 1] and 0 ** 0 = 1, ten times as fast as the general power on CPUs."""
    return ops.ones_like(x) if exponent == 0 else ops.exp(exponent * ops.log(x))


def choose(quality, omega, gt_labels, matching="hungarian", outside=OUTSIDE):
    """Assigns to each object one of its candidates.

    Objects without candidates stay unassigned, and so does any surplus of objects over candidates.

    Args:
        quality:   (B, M, A).
        omega:     (B, M, A) bool, candidates of each object; none for padding and crowds.
        gt_labels: (B, M) int32.
        matching:  one of MATCHINGS; see kgarden/ops/linear_assignment.py.
        outside:   of Hungarian matching, quality of pairs outside omega.
    Returns:
        OneToOne.
    """
    if matching not in MATCHINGS:
        raise UserError(f"assignment.matching {matching!r}: one of {', '.join(MATCHINGS)}")
    row = top_one(quality, omega) if matching == "top_one" else hungarian(quality, omega, outside)
    return chosen(row, gt_labels, quality.shape[2])


def chosen(row, gt_labels, num_candidates):
    """Builds OneToOne from the candidate of each object.   (B, M) int32, -1 for none."""
    candidate = objects_of(row, num_candidates)
    label = ops.cast(gt_labels, "int32")
    of_candidate = gather(label, ops.maximum(candidate, 0))
    labels = ops.where(candidate >= 0, of_candidate, -1)
    return OneToOne(ops.maximum(row, 0), label, row >= 0, object=candidate, labels=labels)
