"""Ranking loss: a margin between the scores of positives and of negatives.

Zhou, Yu, Shen, Wang, Li 2021, arXiv:2101.11782, section 3.1.2, Eq. 2.
"""

from keras import ops

from kgarden.errors import UserError
from kgarden.ops.gather import gather

NEGATIVES = ("best_class", "other_pairs", "pairs_of_negatives")


def ranking_loss(scores, positive, labels, valid, margin=0.5, num_negatives=100, negatives="best_class"):
    """Computes the mean of max(0, margin - P+ + P-) over pairs of a positive and a hard negative.

    The paper does not define the score of a negative:

        best_class          the highest class score of a negative candidate (the default)
        other_pairs         every (candidate, class) except the positives' own classes
        pairs_of_negatives  every (candidate, class) of the negative candidates

    Args:
        scores:   (B, A, C) probabilities.
        positive: (B, M) int32 rows of the positives, one for each object.
        labels:   (B, M) int32, their classes.
        valid:    (B, M) bool.
        margin:   gamma.
        num_negatives: n_-, highest-scoring first; all of them if there are fewer.
        negatives: one of NEGATIVES.
    Returns:
        (B,) float32, 0 for an image without positives.
    """
    if negatives not in NEGATIVES:
        raise UserError(f"ranking negatives {negatives!r}: one of {', '.join(NEGATIVES)}")
    classes = scores.shape[-1]
    pair = ops.maximum(positive, 0) * classes + ops.maximum(labels, 0)
    flat = ops.reshape(scores, (-1, scores.shape[1] * classes))
    of_positive = gather(flat, pair)  # (B, M)

    if negatives == "other_pairs":
        pool, is_positive = flat, _marked(pair, valid, flat.shape[1])
    else:
        is_positive = _marked(positive, valid, scores.shape[1])
        pool = ops.max(scores, axis=-1) if negatives == "best_class" else flat
        if negatives == "pairs_of_negatives":
            is_positive = ops.repeat(is_positive, classes, axis=1)
    pool = ops.where(is_positive, -1.0, pool)
    of_negative = ops.top_k(pool, min(num_negatives, pool.shape[1]))[0]  # (B, N)
    exists = of_negative >= 0

    pairs = ops.maximum(margin - of_positive[:, :, None] + of_negative[:, None, :], 0.0)
    counts = valid[:, :, None] & exists[:, None, :]
    number = ops.sum(ops.cast(counts, "float32"), axis=(1, 2))
    return ops.sum(ops.where(counts, pairs, 0.0), axis=(1, 2)) / ops.maximum(number, 1.0)


def _marked(rows, valid, length):
    """True at the given rows.   (B, M) int32, (B, M) bool -> (B, length) bool."""
    image = ops.broadcast_to(ops.arange(ops.shape(rows)[0], dtype="int32")[:, None], ops.shape(rows))
    slot = ops.where(valid, rows, length)  # the last slot is discarded
    where = ops.reshape(ops.stack([image, slot], axis=-1), (-1, 2))
    empty = ops.zeros((ops.shape(rows)[0], length + 1), "int32")
    ones = ops.ones_like(ops.reshape(slot, (-1,)))
    return ops.scatter_update(empty, where, ones)[:, :length] > 0
