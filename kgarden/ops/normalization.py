"""Batch normalisation with TensorFlow's fused kernel where available (2 to 3 times as fast on a CPU)."""

from keras import backend, ops

from kgarden.ops import replicas


def normalize_batch(x, gamma, beta, epsilon, synchronized=False):
    """Normalise by batch statistics over all axes but the last.

    Ioffe and Szegedy 2015, arXiv:1502.03167.

    Args:
        x:            (B, H, W, D).
        gamma, beta:  (D,) float32.
        epsilon:      added to the variance.
        synchronized: statistics over the batches of all replicas.
    Returns:
        y:        (B, H, W, D) in the dtype of x.
        mean:     (D,) float32.
        variance: (D,) float32, unbiased, for the running statistics.
    """
    if synchronized and replicas.num_replicas() > 1:
        return _normalize_across_replicas(x, gamma, beta, epsilon)
    if backend.backend() == "tensorflow":
        return _normalize_fused(x, gamma, beta, epsilon)
    wide = ops.cast(x, "float32")
    mean, variance = ops.moments(wide, axes=(0, 1, 2))
    count = x.shape[0] * x.shape[1] * x.shape[2]
    return (
        _apply(x, mean, variance, gamma=gamma, beta=beta, epsilon=epsilon),
        mean,
        variance * (count / max(count - 1, 1)),
    )


def _normalize_fused(x, gamma, beta, epsilon):
    import tensorflow as tf

    empty = tf.zeros((0,), "float32")
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    )
    return y, mean, variance


def _normalize_across_replicas(x, gamma, beta, epsilon):
    wide = ops.cast(x, "float32")
    axes = (0, 1, 2)
    count = replicas.sum_over_replicas(ops.cast(ops.size(wide[..., 0]), "float32"))
    mean = replicas.sum_over_replicas(ops.sum(wide, axis=axes)) / count
    variance = replicas.sum_over_replicas(ops.sum(ops.square(wide - mean), axis=axes)) / count
    unbiased = variance * count / ops.maximum(count - 1.0, 1.0)
    return _apply(x, mean, variance, gamma=gamma, beta=beta, epsilon=epsilon), mean, unbiased


def _apply(x, mean, variance, gamma, beta, epsilon):
    scale = gamma * ops.rsqrt(variance + epsilon)
    return x * ops.cast(scale, x.dtype) + ops.cast(beta - mean * scale, x.dtype)
