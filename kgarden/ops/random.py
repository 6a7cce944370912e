"""Counter-based random numbers of (seed, step, image id): equal on every backend and after a resume."""

from keras import ops

GOLDEN_RATIO = 0x9E3779B9  # 2^32 / golden ratio: keeps a zero seed from staying zero


def hash_uniform(seed, step, image_id, n):
    """Uniform numbers from a counter-based hash.

    Every number is the hash of its own four coordinates, so there is no state to save and no order to keep.
    The mixing function is `lowbias32` of Wellons' hash-prospector, xor-shift-multiply twice on uint32, in its
    variant 0x7FEB352D, 0x846CA68B with shifts 16-15-16. kgarden/data/rng.py has another variant; both stay as
    they are, because resumed trainings need the same numbers.

    Args:
        seed:     the recipe's seed, integer.
        step:     training step, integer or integer scalar tensor.
        image_id: (B,) integer; of larger ones the lower 32 bits count.
        n:        how many numbers for each image.
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
    """A bijection of uint32 in which every input bit changes every output bit half of the time."""
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
