"""shapes: procedurally generated data set on which a detector learns within minutes.

Six classes that differ in shape alone: colour, size and aspect ratio are independent of the class. Objects
overlap, backgrounds are textured, boxes range from 12 px to 60 % of the shorter side of the image. An image
is a function of (seed, number) alone: two seeds make two splits.

With `num_classes` it is a long-tailed data set of up to 216 classes of coloured and filled shapes, see
`shape_classes`. As in LVIS, classes have a frequency, here by the third of their rank, and of some
classes an image says that they are absent.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw

from tfrecords import images, schema
from tfrecords.conversion_report import Record
from tfrecords.converters import common
from tfrecords.converters.shape_classes import SHAPES, SIX, vocabulary
from tfrecords.data_statistics import signs_of
from tfrecords.write import write

NAMES = SHAPES
CATEGORIES = SIX.categories
SIZE_HW = (192, 256)  # px

MIN_SIDE = 12  # px, shorter side of a box
MAX_SIDE = 0.6  # of the shorter side of the image
SMALL = 24  # px; smaller shapes are hard to distinguish and therefore rare
SMALL_SHARE = 0.05
MAX_OBJECTS = 8
EMPTY_SHARE = 0.03  # of the images
MAX_COVERED = 0.5  # of an object, by those painted after it
MAX_IOU = 0.5  # between two boxes
MIN_CONTRAST = 70.0  # distance of two RGB colours
OVERSAMPLING = 4
TRIES = 20  # positions tried for an object before it is skipped


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image and its ground truth.

    image:  (H, W, 3) uint8 RGB.
    boxes:  (N, 4) int64 xyxy px: the exact extent of each mask.
    labels: (N,) rows of the vocabulary.
    masks:  (N, H, W) bool: the whole shape, occluded parts included; later ones occlude earlier ones.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def build(
    to,
    *,
    count,
    seed,
    size_hw=SIZE_HW,
    num_classes=None,
    zipf=None,
    shards=None,
    workers=None,
    progress=None,
):
    """Generate a data set of `count` images.

    Args:
        to:      directory to make.
        count:   images.
        seed:    determines the images; use different seeds for train and val.
        size_hw: px, at least 64 each.
        num_classes, zipf: of a long-tailed data set, see `shape_classes.vocabulary`. None: the six shapes.
        shards, workers, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    if min(size_hw) < 64:
        raise schema.DataError(f"size_hw {tuple(size_hw)}: both sides must be at least 64 px")
    classes = vocabulary(num_classes, zipf)
    source = {"format": "shapes", "count": count, "seed": seed, "size_hw": list(size_hw)}
    if num_classes is not None:
        source |= {"num_classes": num_classes, "zipf": classes.zipf}
    work = functools.partial(make_record, seed=seed, size_hw=tuple(size_hw), classes=classes)
    categories = classes.categories
    return write(
        to, range(count), work, categories, source=source, shards=shards, workers=workers, progress=progress
    )


def categories_of(num_classes=None, zipf=None):
    """The classes that `build` gives a data set -> [{"id", "name"}, ...] in label order."""
    return vocabulary(num_classes, zipf).categories


def make_record(number, *, seed, size_hw, classes=SIX):
    """Image `number` of a seed as a Record; its image id is number + 1."""
    drawing = draw(seed, number, size_hw, classes)
    encoded_image = images.encode(drawing.image, "jpeg")
    file_name = f"shapes-{seed}-{number:06d}.jpg"
    annotations = [
        {
            "category_id": int(label) + 1,
            "bbox": [int(v) for v in (x0, y0, x1 - x0, y1 - y0)],
            "area": int(mask.sum()),
            "iscrowd": 0,
        }
        for (x0, y0, x1, y1), label, mask in zip(drawing.boxes, drawing.labels, drawing.masks, strict=True)
    ]
    image = {
        "id": number + 1,
        "file_name": file_name,
        "height": encoded_image.height,
        "width": encoded_image.width,
    }
    if classes.zipf is not None:
        present, absent = np.unique(drawing.labels), classes.absent(drawing.labels, seed, number)
        image["pos_category_ids"], image["neg_category_ids"] = (present + 1).tolist(), (absent + 1).tolist()
    names = {one["id"]: one["name"] for one in classes.categories}
    serialized = common.serialize(encoded_image, image, annotations, names)
    signs = signs_of([one["bbox"] for one in annotations], *size_hw)
    return Record(serialized, image, annotations, signs=signs)


def draw(seed, number, size_hw=SIZE_HW, classes=SIX):
    """Image `number` of a seed -> Drawing."""
    rng = np.random.default_rng([seed, number])
    height, width = size_hw
    ground, ground_colors = _background(rng, height, width)
    image = ground
    boxes, labels, masks, colors = [], [], [], []
    count = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, MAX_OBJECTS + 1)
    for _ in range(count):
        placed = _place(rng, size_hw, boxes, masks, classes=classes)
        if placed is None:
            continue
        box, label, coverage, mask = placed
        occluded = [c for c, b in zip(colors, boxes, strict=True) if _touch(b, box)]
        color = _contrasting(rng, ground_colors + occluded, classes.looks[label])
        filled = color * classes.looks[label].brightness(*coverage.shape)[..., None]
        _paint(rng, image, box, coverage=coverage, color=filled)
        boxes.append(box)
        labels.append(label)
        masks.append(mask)
        colors.append(color)
    image = image + rng.normal(0, rng.uniform(1, 6), image.shape)
    return Drawing(
        image.round().clip(0, 255).astype("uint8"),
        np.array(boxes, "int64").reshape(-1, 4),
        np.array(labels, "int64"),
        np.array(masks, bool).reshape(-1, height, width),
    )


def outline(name):
    """The contours of a shape: [(points (P, 2) xy, painted or cut out), ...], any unit."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=1)
    tips = np.arange(10) * np.pi / 5
    spikes = np.stack([np.sin(tips), -np.cos(tips)], axis=1) * np.tile([[1.0], [0.4]], (5, 1))
    a = 1 / 3
    cross = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
        (-a, -a),
    ]
    return {
        "disc": [(circle, True)],
        "square": [(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float), True)],
        "triangle": [(circle[::16], True)],
        "star": [(spikes, True)],
        "cross": [(np.array(cross, float), True)],
        "ring": [(circle, True), (circle * 0.55, False)],
    }[name]


def shape_coverage(name, angle, height, width):
    """Pixel coverage of a rotated shape stretched to height x width.   (h, w) 0..1

    Coverage below one half is set to 0, so that the extent of the mask and the visible extent agree.
    """
    contours = outline(name)
    spin = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, high = (contours[0][0] @ spin).min(axis=0), (contours[0][0] @ spin).max(axis=0)
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for points, painted in contours:
        filling = (points @ spin - low) / (high - low) * (canvas.width - 1, canvas.height - 1)
        pen.polygon([tuple(p) for p in filling], fill=255 * painted)
    coverage = np.asarray(canvas.reduce(OVERSAMPLING), "float32") / 255
    return np.where(coverage >= 0.5, coverage, 0)


def _place(rng, size_hw, boxes, masks, classes):
    """(box, label, coverage inside the box, mask of the whole image) of a new object, or None."""
    for _ in range(TRIES):
        height, width = _object_hw(rng, min(size_hw))
        label = classes.sample(rng)
        coverage = shape_coverage(classes.looks[label].shape, np.deg2rad(rng.uniform(-20, 20)), height, width)
        top = rng.integers(0, size_hw[0] - height + 1)
        left = rng.integers(0, size_hw[1] - width + 1)
        mask = np.zeros(size_hw, bool)
        mask[top : top + height, left : left + width] = coverage > 0
        box = extent(mask)
        x0, y0, x1, y1 = box
        if min(x1 - x0, y1 - y0) < MIN_SIDE:  # the tips of a star are thinner than half a pixel
            continue
        if all(_iou(box, other) < MAX_IOU for other in boxes) and _all_seen([*masks, mask]):
            return box, label, coverage[y0 - top : y1 - top, x0 - left : x1 - left], mask
    return None


def _object_hw(rng, shorter_side):
    """Height and width of an object, px; drawn before its class is known."""
    largest = MAX_SIDE * shorter_side
    low, high = (MIN_SIDE, SMALL) if rng.random() < SMALL_SHARE else (SMALL, largest)
    side = np.exp(rng.uniform(np.log(low), np.log(high)))
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    return tuple(int(round(min(max(s, MIN_SIDE), largest))) for s in (side * stretch, side / stretch))


def extent(mask):
    """xyxy px of the pixels that are True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _all_seen(masks):
    """Whether enough of every object stays visible under the later ones."""
    covered = np.zeros(masks[0].shape, bool)
    for mask in reversed(masks):
        if (mask & covered).sum() > MAX_COVERED * mask.sum():
            return False
        covered |= mask
    return True


def _touch(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _iou(a, b):
    if not _touch(a, b):
        return 0.0
    inner = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    outer = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return inner / (outer - inner)


def _background(rng, height, width):
    """((H, W, 3) float64 texture between two colours, [those colours])."""
    a = rng.uniform(0, 255, 3)
    b = (a + rng.uniform(-60, 60, 3)).clip(0, 255)  # close to a: objects stand out, the texture does not
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:  # a gradient
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:  # stripes
        mix = 0.5 + 0.5 * np.sin(along * 2 * np.pi / rng.uniform(8, 48))
    elif kind == 2:  # tiles
        side = rng.integers(8, 40)
        mix = ((x // side + y // side) % 2).astype(float)
    else:  # clouds
        coarse = rng.integers(0, 256, rng.integers(4, 20, 2), dtype="uint8")
        mix = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 255
    return a + mix[..., None] * (b - a), [a, b]


def _contrasting(rng, others, look):
    """A random colour of a class with enough contrast to all others, or else the best of the tries."""
    tries = look.colors(rng, 50)
    distance = np.min([np.linalg.norm(tries - other, axis=1) for other in others], axis=0)
    far = np.flatnonzero(distance >= MIN_CONTRAST)
    return tries[far[0] if len(far) else distance.argmax()]


def _paint(rng, image, box, coverage, color):
    """Blend a shape into the image, with a horizontal brightness gradient."""
    x0, y0, x1, y1 = box
    shade = np.linspace(-1, 1, x1 - x0)[None, :, None] * rng.uniform(-20, 20)
    alpha = coverage[..., None]
    image[y0:y1, x0:x1] = (1 - alpha) * image[y0:y1, x0:x1] + alpha * (color + shade)
