"""Counter-based random numbers of (seed, step, image id), equal on all backends and after a resume."""

from keras import ops

GOLDEN_RATIO = 0x9E3779B9  # 2^32 / golden ratio, so that a zero seed does not stay zero


def hash_uniform(seed, step, image_id, n):
    """Uniform numbers from a counter-based hash.

    Every number is a hash of its four coordinates: there is no state and no order. The mixing function is
    `lowbias32` of Wellons' hash-prospector, xor-shift-multiply twice on uint32, in its variant 0x7FEB352D,
    0x846CA68B with shifts 16-15-16. kgarden/data/rng.py has another variant; both are fixed, because a
    resumed training needs the same numbers.

    Args:
        seed:     the recipe's seed, integer.
        step:     training step, integer or integer scalar tensor.
        image_id: (B,) integer; the lower 32 bits are used.
        n:        numbers per image.
    Returns:
        (B, n) float32 in [0, 1), multiples of 2^-24.
    """
    key = _mix(_uint32(seed) + _constant(GOLDEN_RATIO))
    key = _mix(ops.bitwise_xor(key, _uint32(step)))
    key = _mix(ops.bitwise_xor(key, _uint32(image_id)))  # (B,)
    counter = _mix(_uint32(ops.arange(n, dtype="int32")) + _constant(GOLDEN_RATIO))  # (n,)
    bits = _mix(ops.bitwise_xor(key[:, None], counter[None, :]))
    return ops.cast(_shift(bits, 8), "float32") * (1.0 / (1 << 24))


def _mix(x):
    """A bijection of uint32: every input bit flips every output bit with probability one half."""
    x = ops.bitwise_xor(x, _shift(x, 16)) * _constant(0x7FEB352D)
    x = ops.bitwise_xor(x, _shift(x, 15)) * _constant(0x846CA68B)
    return ops.bitwise_xor(x, _shift(x, 16))


def _shift(x, bits):
    return ops.right_shift(x, _constant(bits))


def _uint32(x):
    if isinstance(x, int):
        return _constant(x & 0xFFFFFFFF)
    return ops.cast(x, "uint32")


def _constant(value):
    return ops.convert_to_tensor(value, dtype="uint32")
