"""Alternative box formats, units and image scales, tried when AP is near zero."""

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


def _in_fractions(format_):
    return lambda raw, hw: format_(raw) * hw[:, [1, 0, 1, 0]]


_FORMATS = {
    "x0, y0, x1, y1": _xyxy,
    "y0, x0, y1, x1": _yxyx,
    "x, y, width, height": _xywh,
    "y, x, height, width": _yxhw,
    "centre x, centre y, width, height": _cxcywh,
}

# description -> function of the raw numbers (N, 4) and the images' sizes (N, 2): xyxy px (N, 4)
BOX_FORMATS = {
    f"{name} in {unit}": convert(format_)
    for name, format_ in _FORMATS.items()
    for unit, convert in (("px", _in_px), ("fractions of the image", _in_fractions))
}
del BOX_FORMATS["x, y, width, height in px"]  # the assumed format

SIDES = (*range(96, 1056, 32), 1088, 1216, 1280, 1333, 1344, 1536, 1600, 1920, 2048)  # px
FACTORS = np.geomspace(1 / 8, 8, 49)


def scalings(hw):
    """Yields (description, (N, 1 or 4) factor to px of the original image) for common image sizes.

    Args:
        hw: (N, 2) height and width of each detection's image, px.
    """
    for side in SIDES:
        yield f"images resized to {side} x {side}", hw[:, [1, 0, 1, 0]] / side
        yield f"images with a short side of {side}", hw.min(axis=1, keepdims=True) / side
        yield f"images with a long side of {side}", hw.max(axis=1, keepdims=True) / side
    for factor in FACTORS:
        yield f"images {1 / factor:.3g} times as large", np.full((len(hw), 1), factor)
