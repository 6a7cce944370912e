"""Pixel normalisation: channel order, mean and standard deviation that the backbone was trained with."""

import keras
import numpy as np
from keras import ops

from kgarden.errors import UserError

# Statistics of pretrained backbones; input images are RGB, 0..255.
PIXELS = {
    "msra": {"mean": (103.530, 116.280, 123.675), "std": (1.0, 1.0, 1.0), "order": "bgr"},
    "torchvision": {"mean": (123.675, 116.280, 103.530), "std": (58.395, 57.120, 57.375), "order": "rgb"},
}


def pixel_settings(settings, default="msra"):
    """Arguments of Normalize from a name of PIXELS, or from settings merged over the default's.

    Raises:
        UserError: unknown name or key.
    """
    if isinstance(settings, str):
        if settings not in PIXELS:
            raise UserError(f"model.pixels {settings!r}: one of {', '.join(PIXELS)}, or mean, std and order")
        return PIXELS[settings]
    unknown = set(settings or {}) - {"mean", "std", "order"}
    if unknown:
        raise UserError(f"model.pixels.{unknown.pop()}: no such setting; there are mean, std, order")
    return {**PIXELS[default], **(settings or {})}


def pixels_of_preset(given, expected, source):
    """The pixel settings of a backbone whose weights state their own: `given` by the recipe, or `expected`.

    Args:
        given, expected: {mean, std, order} or a name of PIXELS; None: not given, unknown.
        source:          what states them, for messages.
    Raises:
        UserError: both differ, or there is neither.
    """
    if given is None and expected is None:
        raise UserError(f"{source} does not say which pixels it expects; set model.pixels: mean, std, order")
    if given is None or expected is None or same_pixels(given, expected):
        return expected if given is None else given
    raise UserError(
        f"{source} expects pixels of {expected}, model.pixels is {given}; "
        f"leave model.pixels out: it comes with the weights"
    )


def same_pixels(one, other, of_means=1e-3):
    """Whether two pixel settings agree to a thousandth of a gray level, and means to `of_means`."""
    one, other = pixel_settings(one), pixel_settings(other)
    differences = {key: np.abs(np.subtract(one[key], other[key])).max() for key in ("mean", "std")}
    return one["order"] == other["order"] and differences["mean"] <= of_means and differences["std"] <= 1e-3


class Normalize(keras.layers.Layer):
    """(pixel - mean) / std inside the image, zero in the padding around it.

    As in the references, zero padding follows normalisation: it is the mean colour, not black.

    Args:
        mean, std: three numbers each, 0..255, in the channel order of the backbone.
        order:     "rgb" or "bgr", channel order of the backbone; input images are RGB.
    Call:
        images:  (B, H, W, 3) uint8.
        size_hw: (B, 2) int32, size in px of the image inside the canvas.
    Returns:
        (B, H, W, 3) in the compute dtype.
    """

    def __init__(self, mean, std, order="rgb", **kwargs):
        super().__init__(**kwargs)
        if order not in ("rgb", "bgr"):
            raise UserError(f"channel order {order!r}: one of rgb, bgr")
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        self.order = order

    def build(self, input_shape):
        pass

    def call(self, images, size_hw):
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        x = ops.cast(images, wide)
        if self.order == "bgr":
            x = x[..., ::-1]
        x = (x - ops.array(self.mean, wide)) / ops.array(self.std, wide)
        height, width = images.shape[1:3]
        inside_rows = ops.arange(height, dtype="int32")[None, :] < size_hw[:, :1]
        inside_columns = ops.arange(width, dtype="int32")[None, :] < size_hw[:, 1:]
        inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
        return ops.cast(ops.where(inside, x, 0.0), self.compute_dtype)
