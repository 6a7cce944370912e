"""Penalty-reduced focal loss on a heatmap of object centres.

Law and Deng 2018, arXiv:1808.01244, Eq. 1, as in CenterNet2: positives are a list of cells, the heatmap
down-weights the negatives around them.
"""

from keras import ops

from kgarden.ops.gather import gather


def heatmap_focal_loss(
    logits,
    heat,
    positive,
    positive_label,
    positive_valid,
    alpha=0.25,
    beta=4.0,
    gamma=2.0,
    clamp=1e-4,
    ignore_above=None,
):
    """Computes the loss, summed over the batch and not normalised.

    Args:
        logits:         (B, A, C).
        heat:           (B, A, C) in [0, 1], 1 on a positive.
        positive, positive_label, positive_valid: (B, N) rows of the points, their channel, mask.
        alpha:          weight of positives; negatives weigh 1 - alpha. None: no weights.
        beta, gamma:    powers of (1 - heat) and of the error.
        clamp:          probabilities are kept this far from 0 and 1.
        ignore_above:   negatives with a higher probability are ignored as possibly unannotated
                        objects; None keeps all.
    Returns:
        positive loss, negative loss: () float32 each.
    """
    logits = ops.cast(logits, "float32")
    probability = ops.clip(ops.sigmoid(logits), clamp, 1 - clamp)

    flat = ops.reshape(probability, (ops.shape(probability)[0], -1))
    channels = logits.shape[-1]
    at = gather(flat, positive * channels + ops.maximum(positive_label, 0))
    positive_loss = -ops.log(at) * ops.power(1 - at, gamma)
    positive_loss = ops.sum(ops.where(positive_valid, positive_loss, 0.0))

    softened = ops.power(1 - heat, beta)
    negative_loss = -ops.log(1 - probability) * ops.power(probability, gamma) * softened
    if ignore_above is not None:
        negative_loss = ops.where(probability < ignore_above, negative_loss, 0.0)
    negative_loss = ops.sum(negative_loss)
    if alpha is None:
        return positive_loss, negative_loss
    return alpha * positive_loss, (1 - alpha) * negative_loss
