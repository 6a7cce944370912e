"""Focal, quality focal and distribution focal losses on logits, element-wise.

Focal: Lin et al. 2017, arXiv:1708.02002, Eq. 5. Quality and distribution focal loss: Li et al. 2020,
arXiv:2006.04388. Normalisers are left to the caller.
"""

from keras import ops


def sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0):
    """Computes alpha_t (1 - p_t)^gamma (-log p_t).

    Args:
        logits: (..., C).
        target: (..., C), 1 for the class and 0 for all others.
        alpha:  weight of positives; negatives weigh 1 - alpha.
        gamma:  power of the error.
    Returns:
        (..., C) float32.
    """
    logits = ops.cast(logits, "float32")
    probability = ops.sigmoid(logits)
    positive = alpha * ops.power(1 - probability, gamma) * ops.softplus(-logits)
    negative = (1 - alpha) * ops.power(probability, gamma) * ops.softplus(logits)
    return ops.where(target > 0.5, positive, negative)


def quality_focal_loss(logits, quality, beta=2.0):
    """Computes |y - p|^beta (-(1 - y) log(1 - p) - y log p), with soft targets y.

    Args:
        logits:  (..., C).
        quality: (..., C) in [0, 1], of the class; 0 for all others.
        beta:    power of the error.
    Returns:
        (..., C) float32.
    """
    logits = ops.cast(logits, "float32")
    error = ops.abs(quality - ops.sigmoid(logits))
    return ops.power(error, beta) * (ops.softplus(logits) - logits * quality)


def distribution_focal_loss(logits, target):
    """Computes cross-entropy with the two integers around a distance, linearly weighted.

    Args:
        logits: (..., n + 1), of the distances 0..n.
        target: (...,) in [0, n].
    Returns:
        (...,) float32.
    """
    steps = ops.arange(logits.shape[-1], dtype="float32")
    nearness = ops.maximum(1 - ops.abs(steps - target[..., None]), 0.0)
    return -ops.sum(nearness * ops.log_softmax(ops.cast(logits, "float32")), axis=-1)


def expectation(logits):
    """Computes the mean of a distribution over the distances 0..n.   (..., n + 1) -> (...,)."""
    steps = ops.arange(logits.shape[-1], dtype="float32")
    return ops.sum(ops.softmax(ops.cast(logits, "float32")) * steps, axis=-1)
