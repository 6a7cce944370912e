"""Stateless random numbers for tf.data: a hash of (seed, counter), independent of threads and versions.

Unlike `tf.random.stateless_uniform`, which takes one seed for a whole tensor, a batch of seeds gives a batch
of numbers. The hash is `lowbias32` of Wellons' hash-prospector in its variant 0x21F0AAAD, 0xD35A2D97 with
shifts 16-15-15. `kgarden.ops.random` uses 0x7FEB352D, 0x846CA68B with shifts 16-15-16, in keras.ops, which on
JAX do not run inside tf.data. Both variants are fixed: a resumed training needs the same numbers.
"""

import tensorflow as tf


def uniform(seed, count=1):
    """Uniform random numbers in [0, 1).

    Args:
        seed:  (..., 2) int: transform and position in the stream.
        count: numbers per seed, int or () tensor.
    Returns:
        (..., count) float32, multiples of 2^-24.
    """
    seed = tf.bitcast(tf.cast(seed, tf.int64), tf.uint32)  # (..., 2, 2): low and high words
    words = [word for pair in tf.unstack(seed, axis=-2) for word in tf.unstack(pair, axis=-1)]
    state = tf.zeros_like(words[0])
    for word in words:
        state = _mixed(state ^ word)
    counter = tf.cast(tf.range(1, count + 1), tf.uint32) * tf.constant(0x9E3779B9, tf.uint32)
    bits = _mixed(_mixed(state[..., None] + counter))
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def scale(low, high, draw):
    """Map a draw from [0, 1) to [low, high)."""
    return low + (high - low) * draw


def fold_in(seed, number):
    """Derive an independent seed from a seed and a number, as `jax.random.fold_in`.   (..., 2) int64"""
    seed = tf.cast(seed, tf.int64)
    return tf.stack([seed[..., 0] + (number + 1) * 2**32, seed[..., 1]], axis=-1)


def _mixed(bits):
    """Mix the bits of uint32: `lowbias32` with 0x21F0AAAD, 0xD35A2D97 and shifts 16-15-15."""
    shift, times = tf.bitwise.right_shift, tf.constant
    bits = bits + tf.constant(0x9E3779B9, tf.uint32)  # 0 must not map to 0
    bits = (bits ^ shift(bits, times(16, tf.uint32))) * times(0x21F0AAAD, tf.uint32)
    bits = (bits ^ shift(bits, times(15, tf.uint32))) * times(0xD35A2D97, tf.uint32)
    return bits ^ shift(bits, times(15, tf.uint32))
