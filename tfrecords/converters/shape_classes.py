"""Classes of `shapes`: six shapes of any colour, or a large vocabulary of coloured and filled shapes.

In the large one a class is a shape, one of twelve hues and one of three fills. Classes are drawn with
probabilities in proportion to 1 / rank^zipf: the first is the most frequent, and 0 makes all equal.
"""

import colorsys
import dataclasses

import numpy as np

from tfrecords.schema import DataError

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
HUES = ("red", "orange", "yellow", "lime", "green", "mint")
HUES += ("cyan", "azure", "blue", "violet", "magenta", "rose")  # 30 degrees from one to the next
FILLS = ("plain", "striped", "cored")
DARK = 0.35  # of the colour, in stripes and cores
ABSENT = 20  # classes that are said to be absent from an image
FREQUENCIES = ("f", "c", "r")  # thirds of the ranks


@dataclasses.dataclass(frozen=True)
class Look:
    """Appearance of a class: shape, row of HUES (None: any colour), fill."""

    shape: str
    hue: int | None = None
    fill: str = "plain"

    @property
    def name(self):
        words = (self.fill if self.fill != "plain" else "", "" if self.hue is None else HUES[self.hue])
        return " ".join([*filter(None, words), self.shape])

    def colors(self, rng, count):
        """Random colours of the class.   (count, 3) RGB 0..255"""
        if self.hue is None:
            return rng.uniform(0, 255, (count, 3))
        hue = (self.hue + rng.uniform(-0.2, 0.2, count)) / len(HUES) % 1
        saturation, value = rng.uniform(0.75, 1, count), rng.uniform(0.75, 1, count)
        rgb = [colorsys.hsv_to_rgb(*one) for one in zip(hue, saturation, value, strict=True)]
        return 255 * np.array(rgb)

    def brightness(self, height, width):
        """Factor on the colour.   (height, width)"""
        y, x = np.mgrid[:height, :width]
        if self.fill == "striped":
            return np.where((y * 6 // height) % 2, DARK, 1.0)
        if self.fill == "cored":
            far = np.maximum(abs(y + 0.5 - height / 2) / height, abs(x + 0.5 - width / 2) / width)
            return np.where(far < 0.3, DARK, 1.0)
        return np.ones((height, width))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The classes that a data set is drawn of.

    looks: of each class.
    zipf:  exponent of the frequencies; None: the six shapes, all equally frequent.
    """

    looks: tuple
    zipf: float | None = None

    @property
    def categories(self):
        """[{"id", "name"}, ...] by rank, ids from 1; of a large vocabulary with "frequency"."""
        categories = [{"id": rank, "name": look.name} for rank, look in enumerate(self.looks, 1)]
        if self.zipf is None:
            return categories
        third = len(categories) / len(FREQUENCIES)
        return [{**one, "frequency": FREQUENCIES[int(n // third)]} for n, one in enumerate(categories)]

    def probabilities(self):
        """Of each class to be the next object's.   (C,)"""
        weights = np.arange(1, len(self.looks) + 1.0) ** -(self.zipf or 0.0)
        return weights / weights.sum()

    def sample(self, rng):
        """The class of an object."""
        if self.zipf is None:
            return rng.integers(len(self.looks))
        return min(np.searchsorted(self.probabilities().cumsum(), rng.random()), len(self.looks) - 1)

    def absent(self, labels, seed, number):
        """Rows of ABSENT classes that are not in an image."""
        others = np.setdiff1d(np.arange(len(self.looks)), labels)
        return np.sort(np.random.default_rng([seed, number, 1]).permutation(others)[:ABSENT])


SIX = Vocabulary(tuple(Look(shape) for shape in SHAPES))


def vocabulary(num_classes=None, zipf=None):
    """The six shapes, or a large vocabulary.

    Args:
        num_classes: of the large one; None: the six shapes.
        zipf:        exponent of its frequencies; None: 1.
    Raises:
        DataError: too many classes, or an exponent for the six shapes.
    """
    if num_classes is None:
        if zipf is not None:
            raise DataError("shapes: zipf is for a large vocabulary: give a number of classes too")
        return SIX
    looks = [Look(shape, hue, fill) for fill in FILLS for hue in range(len(HUES)) for shape in SHAPES]
    if not 2 <= num_classes <= len(looks):
        raise DataError(f"shapes: {num_classes} classes: 2 to {len(looks)}")
    order = np.random.default_rng(0).permutation(len(looks))[:num_classes]
    return Vocabulary(tuple(looks[n] for n in order), 1.0 if zipf is None else zipf)
