"""Default canvases (padded input sizes) of a recipe, without TensorFlow."""


def round_up(side: int, divisor: int) -> int:
    """Returns the smallest multiple of `divisor` that is not less than `side`."""
    return -(-side // divisor) * divisor


def default_canvases(short_side_px: int, long_side_px: int, divisor: int = 32) -> list[list[int]]:
    """Returns one landscape and one portrait canvas that hold every resized image.

    Args:
        short_side_px: px, the largest short side that an image is resized to.
        long_side_px:  px, the largest long side.
        divisor:       sides are rounded up to a multiple of it, as the pyramid levels of the network need.
    Returns:
        [[height, width], ...] px; one canvas if it is a square.
    """
    short, long = (round_up(side, divisor) for side in (min(short_side_px, long_side_px), long_side_px))
    return [[short, long]] if short == long else [[short, long], [long, short]]
