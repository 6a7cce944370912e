"""Classification and box regression losses of RoI heads, element-wise; the caller normalises."""

import functools
import math

import keras
from keras import ops

from kgarden.errors import UserError


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


def sigmoid_class_loss(logits, labels, subset=None):
    """Binary cross-entropy over C classes; background is all zeros, and the last logit is not trained.

    Args, returns: as `softmax_class_loss`; summed over the classes, or over those of a `subset`, (B or 1, C)
    bool, see kgarden/losses/federated.py.
    """
    classes = logits.shape[-1] - 1
    target = ops.one_hot(labels, classes + 1)[..., :classes]
    logits = logits[..., :classes]
    loss = ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))
    if subset is not None:
        loss = ops.where(subset[:, None], loss, 0.0)
    return ops.where(labels >= 0, ops.sum(loss, axis=-1), 0.0)


def smooth_l1(predicted, target, beta=0.0):
    """Huber's loss divided by beta; plain L1 where beta is 0.   Girshick 2015, arXiv:1504.08083, Eq. 3.

    Returns: the shape of the arguments.
    """
    error = _absolute(predicted - target)
    if beta <= 0:
        return error
    return ops.where(error < beta, 0.5 * error * error / beta, error - 0.5 * beta)


def balanced_l1(predicted, target, beta=1.0, alpha=0.5, gamma=1.5):
    """Balanced L1: larger gradients for inliers.   Pang et al. 2019, arXiv:1904.02701, Eqs. 7-9.

    Below an error of 1 the gradient is alpha log(b error + 1), above it gamma; alpha log(b + 1) = gamma. Beta
    is mmdetection's: the paper has none. It scales the error inside the logarithm only.

    Returns: the shape of the arguments.
    """
    error = _absolute(predicted - target)
    b = math.exp(gamma / alpha) - 1
    inner = alpha / b * (b * error + 1) * ops.log(b * error / beta + 1) - alpha * error
    return ops.where(error < beta, inner, gamma * error + gamma / b - alpha * beta)


def make_box_loss(kind, beta):
    """Builds a box regression loss from its name: function (predicted, target) -> element-wise loss.

    Args:
        kind: "smooth_l1" or "balanced_l1".
        beta: error above which the loss is linear.
    """
    losses = {"smooth_l1": smooth_l1, "balanced_l1": balanced_l1}
    if kind not in losses:
        raise UserError(f"model.roi_head.box_loss {kind!r}: one of {', '.join(losses)}")
    if kind == "balanced_l1" and beta <= 0:
        raise UserError(f"model.roi_head.box_beta {beta}: balanced_l1 needs one above 0; the paper's is 1")
    return functools.partial(losses[kind], beta=beta)


def _absolute(x):
    """|x| with gradient 0 at 0; that of `ops.abs` is 1 on JAX."""
    return x * ops.sign(x)
