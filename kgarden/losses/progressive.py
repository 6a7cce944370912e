"""Progressive constraint: a head is to be better than another one by a margin, in score and in IoU.

Song, Liu, Wang 2020, arXiv:2003.07540, section 2.3; the heads are TSD's and its sibling.
"""

from typing import NamedTuple

from keras import ops

from kgarden.ops.replicas import global_mean


class Constraint(NamedTuple):
    """Settings of the progressive constraint; their defaults are defined here only.

    Attributes:
        class_margin:    m_c of M_cls (Eq. 7); None: no such term.
        box_margin:      m_r of M_loc (Eq. 8); None: no such term.
        cap_margins:     whether a margin ends where the TSD head would have to exceed 1.
        detach_sibling:  whether the sibling head's score and IoU are constants, so that it is not made worse.
        constrain_background: whether M_cls includes RoIs of background, whose y is background.
        idle_images:     whether an image without foreground counts as one RoI of constraint 0 in both means,
                         and its background is left out of M_cls (release).
    """

    class_margin: float | None = 0.2
    box_margin: float | None = 0.2
    cap_margins: bool = False
    detach_sibling: bool = True
    constrain_background: bool = True
    idle_images: bool = False


def class_constraint(sibling_logits, tsd_logits, labels, how):
    """M_cls = mean of | H_1(y) - H^D_1(y) + m_c |_+, with the softmax probabilities of the label y.   Eq. 7.

    Args:
        sibling_logits, tsd_logits: (B, P, C + 1).
        labels: (B, P) of `label_rois`.
        how:    Constraint.
    Returns:
        () float32.
    """
    background = tsd_logits.shape[-1] - 1
    y = ops.maximum(labels, 0)[..., None]
    of_sibling, of_tsd = (
        ops.take_along_axis(ops.softmax(logits), y, axis=-1)[..., 0]
        for logits in (sibling_logits, tsd_logits)
    )
    counted = labels >= 0 if how.constrain_background else is_foreground(labels, background)
    lack = hinge(of_sibling, of_tsd, how.class_margin, how)
    return _mean_constraint(lack, counted, is_foreground(labels, background), how)


def box_constraint(sibling_iou, tsd_iou, labels, background, how):
    """M_loc = mean over foreground of | IoU(B^, B) - IoU(B^_D, B) + m_r |_+.   Eq. 8.

    Args:
        sibling_iou, tsd_iou: (B, P).
        labels:     (B, P) of `label_rois`.
        background: their value for background.
        how:        Constraint.
    Returns:
        () float32.
    """
    foreground = is_foreground(labels, background)
    return _mean_constraint(hinge(sibling_iou, tsd_iou, how.box_margin, how), foreground, foreground, how)


def is_foreground(labels, background):
    """Mask of labels of objects."""
    return (labels >= 0) & (labels < background)


def hinge(of_sibling, of_tsd, margin, how):
    """What TSD's head lacks to be better than its sibling by the margin, element-wise."""
    constant = ops.stop_gradient(of_sibling)
    if how.cap_margins:
        margin = ops.minimum(margin, 1.0 - constant)
    return ops.relu((constant if how.detach_sibling else of_sibling) - of_tsd + margin)


def _mean_constraint(lack, counted, foreground, how):
    """Mean over the RoIs that count."""
    count = ops.sum(ops.cast(counted, "float32"), axis=1)
    if how.idle_images:
        active = ops.any(foreground, axis=1)
        counted, count = counted & active[:, None], ops.where(active, count, 1.0)
    return global_mean(ops.sum(ops.where(counted, lack, 0.0)), ops.sum(count))
