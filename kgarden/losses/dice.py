"""Dice loss on masks.   Milletari, Navab, Ahmadi 2016, arXiv:1606.04797, section 3."""

from keras import ops


def dice_loss(probability, target, epsilon=1e-5):
    """Computes 1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + epsilon) of each mask.

    Args:
        probability: (..., H, W) in [0, 1].
        target:      (..., H, W) bool, or 0 and 1.
        epsilon:     as in CondInst's release.
    Returns:
        (...) float32.
    """
    probability, target = ops.cast(probability, "float32"), ops.cast(target, "float32")
    common = ops.sum(probability * target, axis=(-2, -1))
    squares = ops.sum(ops.square(probability) + ops.square(target), axis=(-2, -1))
    return 1 - 2 * common / (squares + epsilon)
