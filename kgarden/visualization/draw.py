"""Boxes and names painted on an image, legible from 300 px to 4000 px."""

import colorsys
import functools
import pathlib

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kgarden.inference.paste_masks import pasted_part

GOLDEN_RATIO = 0.618034  # steps of this size around the circle of hues never meet


def color_of(label):
    """A colour for each class: neighbours in number are far apart in hue.   (r, g, b), 0..255."""
    hue = (0.08 + label * GOLDEN_RATIO) % 1.0
    value = (1.0, 0.75)[label // 12 % 2]
    saturation = (0.9, 0.55)[label // 24 % 2]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_detections(image, detections, names, min_score=0.3):
    """Paint detections on a copy of an image.

    Args:
        image:      (H, W, 3) uint8 RGB.
        detections: boxes (K, 4) xyxy px of this image, scores (K,), labels (K,), valid (K,) and, if there,
                    masks (K, S, S) probabilities over the boxes, which are tinted; numpy.
        names:      of the classes, in label order.
        min_score:  detections below are left out.
    Returns:
        PIL.Image of the same size.
    """
    shown = np.flatnonzero(np.asarray(detections["valid"]) & (np.asarray(detections["scores"]) >= min_score))
    shown = shown[np.argsort(detections["scores"][shown], kind="stable")]  # the surest comes on top
    labels = [int(detections["labels"][row]) for row in shown]
    texts = [
        f"{names[label]} {100 * detections['scores'][row]:.0f}"
        for row, label in zip(shown, labels, strict=True)
    ]
    boxes = [detections["boxes"][row] for row in shown]
    if "masks" in detections:
        image = _tinted(image, boxes, [detections["masks"][row] for row in shown], labels)
    return _painted(image, boxes, labels, texts)


def draw_truth(image, truth, names):
    """Paint the objects of the ground truth on a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: boxes (N, 4) xyxy px of this image, labels (N,), rows of -1 are left out; and, if there,
               crowd (N,) and difficult (N,) bool, which are said beside the name, and masks (N, S, S) bool in
               the frame of each box, which are tinted; numpy.
        names: of the classes, in label order.
    Returns:
        PIL.Image of the same size.
    """
    shown = np.flatnonzero(np.asarray(truth["labels"]) >= 0)
    labels = [int(truth["labels"][row]) for row in shown]
    texts = [names[label] for label in labels]
    for word in ("crowd", "difficult"):
        if word in truth:
            marked = [bool(truth[word][row]) for row in shown]
            texts = [f"{text} ({word})" if mark else text for text, mark in zip(texts, marked, strict=True)]
    boxes = [truth["boxes"][row] for row in shown]
    if "masks" in truth:
        image = _tinted(image, boxes, [np.asarray(truth["masks"][row]) for row in shown], labels)
    return _painted(image, boxes, labels, texts)


def scaled(image, objects, longest):
    """An image whose longer side is so many px, with its boxes, before names are written on it.

    Args:
        image:   (H, W, 3) uint8 RGB.
        objects: {"boxes": (N, 4) xyxy px of this image, ...}.
        longest: px.
    Returns:
        (image, objects)
    """
    factor = longest / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    kind = Image.LANCZOS if factor < 1 else Image.BILINEAR if factor < 2 else Image.NEAREST
    image = np.asarray(Image.fromarray(image).resize(size, kind))
    return image, {**objects, "boxes": np.asarray(objects["boxes"]) * factor}


def _painted(image, boxes, labels, texts):
    """Frames in the given order, names so that the last ones choose their place first."""
    image = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    painter = ImageDraw.Draw(image)
    line, taken = line_width(image.size), []
    for box, label in zip(boxes, labels, strict=True):
        _frame(painter, box, color_of(label), line, image.size)
    for box, label, text in zip(boxes[::-1], labels[::-1], texts[::-1], strict=True):
        _tag(painter, text, box, color_of(label), line, image.size, taken)
    return image


def _tinted(image, boxes, masks, labels):
    """A copy with the colour of each class mixed into the pixels of its masks, later ones on top."""
    image = np.array(image)
    for box, mask, label in zip(boxes, masks, labels, strict=True):
        rows, columns, inside = pasted_part(mask, box, image.shape[:2])
        part = image[rows, columns]
        part[inside] = (part[inside] * 0.5 + np.array(color_of(label)) * 0.5).astype("uint8")
    return image


def line_width(size):
    """px; the line keeps its share of the image, and 2 px at least."""
    return max(2, round(min(size) / 220))


def text_height(size):
    """px; 11 px is the smallest that is easily read."""
    return max(11, round(min(size) / 36))


@functools.cache
def _font(height):
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), height)


def _frame(painter, box, color, line, size):
    """A rectangle inside the image, with a thin dark rim that tells it from a background of its colour."""
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = min(right, size[0] - 1), min(bottom, size[1] - 1)
    left, top = min(max(left, 0), right), min(max(top, 0), bottom)
    rim = max(1, line // 3)
    painter.rectangle(
        (left, top, right, bottom), outline=tuple(part // 4 for part in color), width=line + rim
    )
    painter.rectangle((left, top, right, bottom), outline=color, width=line)


def _tag(painter, text, box, color, line, size, taken):
    """The name on a filled ground, where it hides no other name if there is such a place, always inside."""
    pad = line
    font, text = _fitting(text, text_height(size), size[0] - 2 * pad)
    x0, y0, x1, y1 = font.getbbox(text, anchor="lt")
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left, top, right, bottom = (float(side) for side in box)
    wishes = [
        (left, top - height),
        (left, top),
        (left, bottom - height),
        (left, bottom),
        (right - width, top),
    ]
    inside = [
        (min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))) for x, y in wishes
    ]
    areas = [(x, y, x + width, y + height) for x, y in inside]
    area = min(areas, key=lambda one: sum(_shared(one, other) for other in taken))
    taken.append(area)
    painter.rectangle(tuple(round(side) for side in area), fill=color)
    red, green, blue = color
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"
    painter.text(
        (round(area[0]) + pad - x0, round(area[1]) + pad - y0), text, fill=ink, font=font, anchor="lt"
    )


def _shared(one, other):
    """Area that two rectangles share, px."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _fitting(text, height, room):
    """(font, text) no wider than the room: a smaller font first, then fewer letters."""
    font = _font(height)
    while height > 9 and font.getlength(text) > room:
        height -= 1
        font = _font(height)
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2] + "…"
    return font, text
