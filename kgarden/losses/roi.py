"""Losses of a box head, element by element; normalisers are left to the caller."""

import keras
from keras import ops


def softmax_class_loss(logits, labels):
    """Cross-entropy, background last.

    Args:
        logits: (B, S, C + 1).
        labels: (B, S) int32, C is background, -1 is padding.
    Returns:
        (B, S) float32, 0 on padding.
    """
    loss = keras.losses.sparse_categorical_crossentropy(ops.maximum(labels, 0), logits, from_logits=True)
    return ops.where(labels >= 0, loss, 0.0)


def sigmoid_class_loss(logits, labels):
    """Binary cross-entropy over C classes; background is all zeros, and the last logit is not trained.

    Args, returns: as `softmax_class_loss`; summed over the classes.
    """
    classes = logits.shape[-1] - 1
    target = ops.one_hot(labels, classes + 1)[..., :classes]
    logits = logits[..., :classes]
    loss = ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.where(labels >= 0, ops.sum(loss, axis=-1), 0.0)


def smooth_l1(predicted, target, beta=0.0):
    """Huber's loss divided by beta; plain L1 where beta is 0.   Girshick 2015, arXiv:1504.08083, Eq. 3.

    Returns: the shape of the arguments.
    """
    error = ops.abs(predicted - target)
    if beta <= 0:
        return error
    return ops.where(error < beta, 0.5 * error * error / beta, error - 0.5 * beta)
