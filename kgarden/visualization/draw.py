"""Drawing of boxes, masks and class names on images, legible from 300 px to 4000 px."""

import colorsys
import functools
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kgarden.inference.paste_masks import pasted_part

GOLDEN_RATIO = 0.618034  # steps of this size around the colour circle never coincide


def color_of(label: int) -> tuple[int, int, int]:
    """Returns the colour of a class; consecutive labels have distant hues.   (r, g, b), 0..255."""
    hue = (0.08 + label * GOLDEN_RATIO) % 1.0
    value = (1.0, 0.75)[label // 12 % 2]
    saturation = (0.9, 0.55)[label // 24 % 2]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_detections(
    image: np.ndarray, detections: dict, names: Sequence[str], min_score: float = 0.3
) -> Image.Image:
    """Draws detections on a copy of an image.

    Args:
        image:      (H, W, 3) uint8 RGB.
        detections: boxes (K, 4) xyxy px of this image, scores (K,), labels (K,), valid (K,) and,
                    optionally, masks (K, S, S) probabilities over the boxes; numpy.
        names:      of the classes, in label order.
        min_score:  smallest score of a drawn detection.
    Returns:
        PIL.Image of the same size.
    """
    shown = np.flatnonzero(np.asarray(detections["valid"]) & (np.asarray(detections["scores"]) >= min_score))
    shown = shown[np.argsort(detections["scores"][shown], kind="stable")]  # the highest score on top
    labels = [int(detections["labels"][row]) for row in shown]
    texts = [
        f"{names[label]} {100 * detections['scores'][row]:.0f}"
        for row, label in zip(shown, labels, strict=True)
    ]
    boxes = [detections["boxes"][row] for row in shown]
    if "masks" in detections:
        image = _tinted(image, boxes, [detections["masks"][row] for row in shown], labels)
    return _with_boxes(image, boxes, labels, texts)


def draw_truth(image: np.ndarray, truth: dict, names: Sequence[str]) -> Image.Image:
    """Draws ground-truth objects on a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: boxes (N, 4) xyxy px of this image, labels (N,), -1 for padding; optionally crowd (N,) and
               difficult (N,) bool, which are written after the name, and masks (N, S, S) bool over the
               boxes; numpy.
        names: of the classes, in label order.
    Returns:
        PIL.Image of the same size.
    """
    shown = np.flatnonzero(np.asarray(truth["labels"]) >= 0)
    labels = [int(truth["labels"][row]) for row in shown]
    texts = [names[label] for label in labels]
    for word in ("crowd", "difficult"):
        if word in truth:
            flags = [bool(truth[word][row]) for row in shown]
            texts = [f"{text} ({word})" if flag else text for text, flag in zip(texts, flags, strict=True)]
    boxes = [truth["boxes"][row] for row in shown]
    if "masks" in truth:
        image = _tinted(image, boxes, [np.asarray(truth["masks"][row]) for row in shown], labels)
    return _with_boxes(image, boxes, labels, texts)


def scaled(image: np.ndarray, objects: dict, longest: float) -> tuple[np.ndarray, dict]:
    """Resizes an image with its boxes to a given longer side.

    Args:
        image:   (H, W, 3) uint8 RGB.
        objects: {"boxes": (N, 4) xyxy px of this image, ...}.
        longest: longer side, px.
    Returns:
        (image, objects)
    """
    factor = longest / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    kind = Image.LANCZOS if factor < 1 else Image.BILINEAR if factor < 2 else Image.NEAREST
    image = np.asarray(Image.fromarray(image).resize(size, kind))
    return image, {**objects, "boxes": np.asarray(objects["boxes"]) * factor}


def _with_boxes(image, boxes, labels, texts):
    """Rectangles in the given order, then names; the last objects place their names first."""
    drawing = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    pen, taken = ImageDraw.Draw(drawing), []
    for box, label in zip(boxes, labels, strict=True):
        _rectangle(pen, box, color_of(label), drawing.size)
    for box, label, text in zip(boxes[::-1], labels[::-1], texts[::-1], strict=True):
        area = _name_tag(pen, text, box, color=color_of(label), size=drawing.size, taken=taken)
        taken.append(area)
    return drawing


def _tinted(image, boxes, masks, labels):
    """A copy in which masks are blended with the colours of their classes, later ones on top."""
    image = np.array(image)
    for box, mask, label in zip(boxes, masks, labels, strict=True):
        rows, columns, inside = pasted_part(mask, box, image.shape[:2])
        part = image[rows, columns]
        part[inside] = (part[inside] * 0.5 + np.array(color_of(label)) * 0.5).astype("uint8")
    return image


def line_width(size: tuple[int, int]) -> int:
    """Returns the line width in px, proportional to the image and at least 2."""
    return max(2, round(min(size) / 220))


def text_height(size: tuple[int, int]) -> int:
    """Returns the text height in px, proportional to the image and at least 11, the smallest legible size."""
    return max(11, round(min(size) / 36))


@functools.cache
def _font(height):
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), height)


def _rectangle(pen, box, color, size):
    """Draws a rectangle inside the image, with a thin dark rim to stand out from its background."""
    line = line_width(size)
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = min(right, size[0] - 1), min(bottom, size[1] - 1)
    left, top = min(max(left, 0), right), min(max(top, 0), bottom)
    rim = max(1, line // 3)
    dark = tuple(channel // 4 for channel in color)
    pen.rectangle((left, top, right, bottom), outline=dark, width=line + rim)
    pen.rectangle((left, top, right, bottom), outline=color, width=line)


def _name_tag(pen, text, box, *, color, size, taken):
    """Draws the name on a filled background inside the image, away from other names.   Its area."""
    pad = line_width(size)
    font, text = _shrink_to_fit(text, text_height(size), size[0] - 2 * pad)
    x0, y0, x1, y1 = font.getbbox(text, anchor="lt")
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left, top, right, bottom = (float(side) for side in box)
    positions = [
        (left, top - height),
        (left, top),
        (left, bottom - height),
        (left, bottom),
        (right - width, top),
    ]
    inside = [
        (min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0)))
        for x, y in positions
    ]
    areas = [(x, y, x + width, y + height) for x, y in inside]
    area = min(areas, key=lambda one: sum(_intersection(one, other) for other in taken))
    pen.rectangle(tuple(round(side) for side in area), fill=color)
    red, green, blue = color
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"
    origin = (round(area[0]) + pad - x0, round(area[1]) + pad - y0)
    pen.text(origin, text, fill=ink, font=font, anchor="lt")
    return area


def _intersection(one, other):
    """Area of the intersection of two rectangles, px."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _shrink_to_fit(text, height, max_width):
    """(font, text) no wider than max_width: first a smaller font, then a shorter text."""
    font = _font(height)
    while height > 9 and font.getlength(text) > max_width:
        height -= 1
        font = _font(height)
    while len(text) > 1 and font.getlength(text) > max_width:
        text = text[:-2] + "…"
    return font, text
