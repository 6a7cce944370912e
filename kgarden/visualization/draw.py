"""Drawing of boxes, masks and class names on images, legible from 300 px to 4000 px."""

import colorsys
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kgarden.errors import UserError
from kgarden.utils.fonts import font_of
from kgarden.utils.paste_masks import pasted_part

GOLDEN_RATIO = 0.618034  # steps of this size around the colour circle never coincide
LABELS = ("none", "score", "name")  # what is written at a box: nothing, the score, or name and score
LABELS_OF_TRUTH = ("none", "name")
MAX_INK = 0.12  # fraction of the image that lines may cover before they become thinner
LINE_OF_BOX = 0.1  # largest width of a line, as a fraction of the shorter side of its box


def color_of(label: int) -> tuple[int, int, int]:
    """Returns the colour of a class or instance; consecutive ones have distant hues.   (r, g, b), 0..255."""
    hue = (0.08 + label * GOLDEN_RATIO) % 1.0
    value = (1.0, 0.75)[label // 12 % 2]
    saturation = (0.9, 0.55)[label // 24 % 2]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def check_labels(labels: str, supported: Sequence[str] = LABELS) -> None:
    """Raises UserError for a value of `labels` that is not supported."""
    if labels not in supported:
        raise UserError(f"labels {labels!r} is not supported; use one of {', '.join(supported)}")


def draw_detections(
    image: np.ndarray,
    detections: dict,
    names: Sequence[str],
    min_score: float = 0.3,
    labels: str = "name",
) -> Image.Image:
    """Draws detections on a copy of an image.

    Boxes have the colours of their classes. If there are masks, each instance has a colour of its own. Lines
    are thinner where boxes are small or many.

    Args:
        image:      (H, W, 3) uint8 RGB.
        detections: boxes (K, 4) xyxy px of this image, scores (K,), labels (K,), valid (K,) and,
                    optionally, masks (K, S, S) probabilities over the boxes; numpy.
        names:      of the classes, in label order, see `kgarden.utils.fonts.shown_name`.
        min_score:  smallest score of a drawn detection.
        labels:     what is written at a box: "none", "score" in percent, or "name" and score.
    Returns:
        PIL.Image of the same size.
    """
    check_labels(labels)
    shown = np.flatnonzero(np.asarray(detections["valid"]) & (np.asarray(detections["scores"]) >= min_score))
    shown = shown[np.argsort(detections["scores"][shown], kind="stable")]  # the highest score on top
    classes = [int(detections["labels"][row]) for row in shown]
    texts = [f"{100 * detections['scores'][row]:.0f}" if labels != "none" else "" for row in shown]
    if labels == "name":
        texts = [f"{names[label]} {text}" for label, text in zip(classes, texts, strict=True)]
    return _drawn(image, detections, shown, classes, texts=texts)


def draw_truth(image: np.ndarray, truth: dict, names: Sequence[str], labels: str = "name") -> Image.Image:
    """Draws ground-truth objects on a copy of an image, with colours and lines as in `draw_detections`.

    Args:
        image:  (H, W, 3) uint8 RGB.
        truth:  boxes (N, 4) xyxy px of this image, labels (N,), -1 for padding; optionally crowd (N,),
                difficult (N,) and group_of (N,) bool, which are written after the name, and masks (N, S, S)
                bool over the boxes; numpy.
        names:  of the classes, in label order, see `kgarden.utils.fonts.shown_name`.
        labels: what is written at a box: "none", or "name".
    Returns:
        PIL.Image of the same size.
    """
    check_labels(labels, LABELS_OF_TRUTH)
    shown = np.flatnonzero(np.asarray(truth["labels"]) >= 0)
    classes = [int(truth["labels"][row]) for row in shown]
    texts = [names[label] for label in classes]
    for key, word in (("crowd", "crowd"), ("difficult", "difficult"), ("group_of", "group")):
        if key in truth:
            flags = [bool(truth[key][row]) for row in shown]
            texts = [f"{text} ({word})" if flag else text for text, flag in zip(texts, flags, strict=True)]
    texts = texts if labels == "name" else [""] * len(shown)
    return _drawn(image, truth, shown, classes, texts=texts)


def _drawn(image, objects, shown, classes, *, texts):
    """Masks, boxes and texts of the rows `shown` of some objects, in the given order."""
    boxes = [objects["boxes"][row] for row in shown]
    if "masks" not in objects:
        return draw_boxes(image, boxes, [color_of(label) for label in classes], texts)
    colors = [color_of(instance) for instance in range(len(shown))]
    image = _tinted(image, boxes, [np.asarray(objects["masks"][row]) for row in shown], colors)
    return draw_boxes(image, boxes, colors, texts)


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


def draw_boxes(
    image: np.ndarray, boxes: Sequence, colors: Sequence[tuple[int, int, int]], texts: Sequence[str] = ()
) -> Image.Image:
    """Draws rectangles in the given order on a copy of an image, then texts, those of the last boxes first.

    Args:
        image:  (H, W, 3) uint8 RGB.
        boxes:  (N, 4) xyxy px of this image.
        colors: (r, g, b) of each, 0..255.
        texts:  of each, "" for none; (): none at all.
    Returns:
        PIL.Image of the same size.
    """
    texts = texts or [""] * len(boxes)
    drawing = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    pen, taken = ImageDraw.Draw(drawing), []
    line = line_width(drawing.size, boxes)
    for box, color in zip(boxes, colors, strict=True):
        _rectangle(pen, box, color, size=drawing.size, line=line)
    for box, color, text in zip(boxes[::-1], colors[::-1], texts[::-1], strict=True):
        if text:
            taken.append(_name_tag(pen, text, box, color=color, size=drawing.size, taken=taken))
    return drawing


def draw_points(drawing: Image.Image, points: Sequence, color: tuple[int, int, int]) -> None:
    """Draws points (N, 2) px into a drawing, as discs with a thin dark rim as wide as its lines."""
    pen, radius = ImageDraw.Draw(drawing), line_width(drawing.size)
    dark = tuple(channel // 4 for channel in color)
    for x, y in np.reshape(points, (-1, 2)).tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=dark)


def _tinted(image, boxes, masks, colors):
    """A copy in which masks are blended with their colours, later ones on top."""
    image = np.array(image)
    for box, mask, color in zip(boxes, masks, colors, strict=True):
        rows, columns, inside = pasted_part(mask, box, image.shape[:2])
        part = image[rows, columns]
        part[inside] = (part[inside] * 0.5 + np.array(color) * 0.5).astype("uint8")
    return image


def line_width(size: tuple[int, int], boxes: Sequence = ()) -> int:
    """Returns the line width in px: proportional to the image and at least 2, thinner where boxes are dense.

    Args:
        size:  width and height of the image, px.
        boxes: (N, 4) xyxy px; if their lines covered more than MAX_INK of the image, the width is smaller
               in proportion, and at least 1.
    """
    line = max(2, round(min(size) / 220))
    sides = np.clip(np.reshape(boxes, (-1, 2, 2)), 0, size)
    ink = 2 * line * float((sides[:, 1] - sides[:, 0]).sum()) / (size[0] * size[1])
    return max(1, int(line * MAX_INK / ink)) if ink > MAX_INK else line


def text_height(size: tuple[int, int]) -> int:
    """Returns the text height in px, proportional to the image and at least 11, the smallest legible size."""
    return max(11, round(min(size) / 36))


@functools.cache
def _font(path, height):
    return ImageFont.truetype(path, height)


def _path_of_font(text):
    """Font file for a text; that of matplotlib if no font has all of its glyphs."""
    return str((font_of(text) or font_of(""))[1])


def _rectangle(pen, box, color, *, size, line):
    """Draws a rectangle inside the image, with a thin dark rim to stand out from its background."""
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = min(right, size[0] - 1), min(bottom, size[1] - 1)
    left, top = min(max(left, 0), right), min(max(top, 0), bottom)
    line = min(line, max(1, int(LINE_OF_BOX * min(right - left, bottom - top))))
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
    path = _path_of_font(text)
    font = _font(path, height)
    while height > 9 and font.getlength(text) > max_width:
        height -= 1
        font = _font(path, height)
    while len(text) > 1 and font.getlength(text) > max_width:
        text = text[:-2] + "…"
    return font, text
