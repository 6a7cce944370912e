"""Focal loss on a product of sigmoids, computed from log-probabilities.

Zhou, Yu, Shen, Wang, Li 2021, arXiv:2101.11782, section 3.1.1 (class, centre-ness, positive sample selector);
Wang et al. 2021, arXiv:2012.03544 (class, filter); focal: Lin et al. 2017, arXiv:1708.02002, Eq. 5.

The sigmoids are not multiplied. A probability is a pair of logarithms, of P and of 1 - P, and

    1 - P Q = (1 - P) + P (1 - Q)

is a sum without cancellation. Values and gradients are accurate at logits of any size, whereas the plain
product in float32 has an error of 9 at three logits of 30.
"""

from typing import NamedTuple

from keras import ops

LOG_HALF = -0.6931471805599453


class LogProbability(NamedTuple):
    """A probability in [0, 1], accurate near 0 and near 1.

    Attributes:
        yes: log P.
        no:  log (1 - P).
    """

    yes: object
    no: object

    def value(self):
        """Returns P."""
        return ops.exp(self.yes)


def sigmoid_product(*logits):
    """Computes the product of the sigmoids of logits, which broadcast against each other.

    The order does not change the result; small arrays first is faster.

    Returns:
        LogProbability, float32.
    """
    first, *others = (ops.cast(logit, "float32") for logit in logits)
    product = LogProbability(ops.log_sigmoid(first), ops.log_sigmoid(-first))
    for logit in others:
        yes = product.yes + ops.log_sigmoid(logit)
        # exact for large P; for small P, 1 - P is near 1, where log1p is accurate
        either = _log_add(product.no, product.yes + ops.log_sigmoid(-logit))
        small = ops.log1p(-ops.exp(ops.minimum(yes, LOG_HALF)))
        product = LogProbability(yes, ops.where(yes < LOG_HALF, small, either))
    return product


def _log_add(a, b):
    """log(e^a + e^b), whose gradient is shared between equal arguments."""
    highest = ops.stop_gradient(ops.maximum(a, b))
    return highest + ops.log(ops.exp(a - highest) + ops.exp(b - highest))


def focal_of_positive(probability, alpha=0.25, gamma=2.0):
    """-alpha (1 - P)^gamma log P of each element of a LogProbability."""
    return -alpha * ops.exp(gamma * probability.no) * probability.yes


def focal_of_negative(probability, alpha=0.25, gamma=2.0):
    """-(1 - alpha) P^gamma log(1 - P) of each element of a LogProbability."""
    return -(1 - alpha) * ops.exp(gamma * probability.yes) * probability.no


def focal_loss(probability, labels, alpha=0.25, gamma=2.0):
    """Computes the loss, summed over candidates and classes and not normalised.

    Args:
        probability: LogProbability (B, A, C).
        labels:      (B, A) int32 class of each candidate; anything outside 0..C-1 is background.
    Returns:
        (B,) float32.
    """
    is_target = labels[..., None] == ops.arange(probability.yes.shape[-1], dtype="int32")
    loss = ops.where(
        is_target, focal_of_positive(probability, alpha, gamma), focal_of_negative(probability, alpha, gamma)
    )
    return ops.sum(loss, axis=(1, 2))
