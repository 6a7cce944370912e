"""Other ways in which four numbers may have been meant: formats, units, px of a resized picture."""

import numpy as np


def _xyxy(raw):
    return raw


def _yxyx(raw):
    return raw[:, [1, 0, 3, 2]]


def _xywh(raw):
    return np.concatenate([raw[:, :2], raw[:, :2] + raw[:, 2:]], axis=1)


def _yxhw(raw):
    return _xywh(raw[:, [1, 0, 3, 2]])


def _cxcywh(raw):
    return np.concatenate([raw[:, :2] - raw[:, 2:] / 2, raw[:, :2] + raw[:, 2:] / 2], axis=1)


def _in_px(format_):
    return lambda raw, hw: format_(raw)


def _in_shares(format_):
    return lambda raw, hw: format_(raw) * hw[:, [1, 0, 1, 0]]


_FORMATS = {
    "x0, y0, x1, y1": _xyxy,
    "y0, x0, y1, x1": _yxyx,
    "x, y, width, height": _xywh,
    "y, x, height, width": _yxhw,
    "centre x, centre y, width, height": _cxcywh,
}

# words -> function of the numbers as they stand (N, 4) and the pictures' sizes (N, 2): xyxy px (N, 4)
BOX_READINGS = {
    f"{words} in {unit}": read(format_)
    for words, format_ in _FORMATS.items()
    for unit, read in (("px", _in_px), ("fractions of the picture", _in_shares))
}
del BOX_READINGS["x, y, width, height in px"]  # what was assumed

SIDES = (*range(96, 1056, 32), 1088, 1216, 1280, 1333, 1344, 1536, 1600, 1920, 2048)  # px
FACTORS = np.geomspace(1 / 8, 8, 49)


def scalings(hw):
    """Yields (words, (N, 1 or 4) factor from the px in question to the picture's own), for usual sizes.

    Args:
        hw: (N, 2) height and width of each detection's picture, px.
    """
    for side in SIDES:
        yield f"pictures resized to {side} x {side}", hw[:, [1, 0, 1, 0]] / side
        yield f"pictures with a short side of {side}", hw.min(axis=1, keepdims=True) / side
        yield f"pictures with a long side of {side}", hw.max(axis=1, keepdims=True) / side
    for factor in FACTORS:
        yield f"pictures {1 / factor:.3g} times as large", np.full((len(hw), 1), factor)
