"""Federated loss: binary cross-entropy over a drawn subset of a large vocabulary's classes.

Zhou, Koltun, Krähenbühl 2021, arXiv:2103.07461, appendix D. LVIS annotates every image for some classes only,
so that the absence of a box says little about the others. The subset S holds the classes of the RoIs and
others drawn without replacement in proportion to a power of the number of training images that have them.

    paper / release                     here
    S, |S| = 50                         `ClassSubsets.of`, `classes`
    square root of the frequency        `power` 0.5
    S of an image                       `per` image
    S of a replica's batch (release)    `per` batch; every stage of a cascade draws its own
    freq_weight                         `ClassSubsets.weights`
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError

CLASS_RANDOM = "class_random"  # key of a sample of RoIs, (B, stages, C), and of a stage's raw outputs, (B, C)
WHERE = "model.roi_head.federated"


class Federated(NamedTuple):
    """Settings of the federated loss; their defaults are defined here only.

    Attributes:
        classes:      |S|; more if the RoIs have more.
        power:        of the number of images of a class, which makes its weight among the drawn ones.
        per:          "batch": one subset for all RoIs of a replica's batch, as in the release; "image": one
                      for each image, as in the paper.
        image_counts: JSON of [{"id", "image_count"}, ...], the number of images of each class; None: that of
                      the training data.
    """

    classes: int = 50
    power: float = 0.5
    per: str = "batch"
    image_counts: str | None = None


def make_subsets(settings, sigmoid, num_classes):
    """Builds ClassSubsets from the setting `federated` of a RoI head; None without it.

    Args:
        settings:    dict of Federated, or None.
        sigmoid:     whether the head's classes are independent of each other.
        num_classes: C.
    Raises:
        UserError: a setting that does not exist, or a loss by softmax.
    """
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise UserError(f"{WHERE} {settings!r}: settings such as {{classes: 50}}, or {{}} for the defaults")
    settings = instantiate(Federated, settings, WHERE)
    if not sigmoid:
        raise UserError(f"{WHERE} leaves classes out of a loss by sigmoids: set model.roi_head.sigmoid true")
    if settings.per not in ("batch", "image"):
        raise UserError(f"{WHERE}.per {settings.per!r}: one of batch, image")
    if settings.classes < 1:
        raise UserError(f"{WHERE}.classes {settings.classes}: 1 or more")
    return ClassSubsets(settings, num_classes)


class ClassSubsets:
    """Subsets of the classes that a federated loss is summed over.

    Attributes:
        settings:    Federated.
        num_classes: C.
        image_counts: (C,) number of training images of each class, or None: not known, and no loss. Set it
                     before the first step: it is a constant of the compiled step.
    """

    def __init__(self, settings, num_classes):
        self.settings, self.num_classes, self.image_counts = settings, num_classes, None

    def weights(self):
        """Weight of each class among those that may be drawn.   (C,) float32

        Raises:
            UserError: the numbers of images are not known.
        """
        if self.image_counts is None:
            raise UserError(
                f"{WHERE}: the number of training images of each class is not known; set "
                f"detector.roi_head.federated.image_counts before the first step"
            )
        counts = np.asarray(self.image_counts, "float64")
        if counts.shape != (self.num_classes,):
            raise UserError(f"{WHERE}: {len(counts)} numbers of images for {self.num_classes} classes")
        # no image at all: never drawn, also where the power is 0
        return np.where(counts > 0, counts**self.settings.power, 0.0).astype("float32")

    def numbers(self, random, used, stages=1):
        """Uniform numbers of the draws.

        Args:
            random: function n -> (B, n) uniform numbers, the first of which do not depend on n.
            used:   how many of them are taken for other choices.
            stages: number of subsets.
        Returns:
            (B, stages, C) float32 in [0, 1).
        """
        count = stages * self.num_classes
        return ops.reshape(random(used + count)[:, used:], (-1, stages, self.num_classes))

    def of(self, labels, numbers):
        """Draws the subset S of RoIs.

        The background counts as one of the `classes` where it occurs, as in the release.

        Args:
            labels:  (B, S) of `label_rois`: C is background, -1 padding.
            numbers: (B, C) uniform in [0, 1); per batch those of the first image are used.
        Returns:
            (B, C) bool, or (1, C) per batch.
        """
        num_classes = self.num_classes
        present = ops.any(ops.one_hot(labels, num_classes + 1, dtype="bool"), axis=1)
        if self.settings.per == "batch":
            present, numbers = ops.any(present, axis=0, keepdims=True), numbers[:1]
        free = self.settings.classes - ops.sum(ops.cast(present, "int32"), axis=1, keepdims=True)
        present = present[:, :num_classes]
        drawn = first_arrivals(numbers, ops.where(present, 0.0, self.weights()), free, self.settings.classes)
        return present | drawn


def with_numbers_of(raw, sampled, stage):
    """The raw outputs of a stage, with its numbers for the draws if the sample of RoIs has any."""
    return {**raw, CLASS_RANDOM: sampled[CLASS_RANDOM][:, stage]} if CLASS_RANDOM in sampled else raw


def first_arrivals(numbers, weights, count, most):
    """Draws without replacement in proportion to weights, the Gumbel top-k trick.

    Arrival times with rates w are -log(1 - u) / w; the first `count` of them are such a draw. Efraimidis and
    Spirakis 2006, "Weighted random sampling with a reservoir".

    Args:
        numbers: (N, C) uniform in [0, 1).
        weights: (N, C); 0 is never drawn.
        count:   (N, 1) int32, how many to draw; fewer if there are no more.
        most:    the largest possible count.
    Returns:
        (N, C) bool.
    """
    possible = weights > 0
    time = -ops.log1p(-numbers) / ops.where(possible, weights, 1.0)
    first, rows = ops.top_k(ops.where(possible, -time, -np.inf), min(most, weights.shape[-1]))
    chosen = (ops.arange(rows.shape[-1]) < count) & (first > -np.inf)
    hot = ops.one_hot(rows, weights.shape[-1], dtype="bool")
    return ops.any(hot & chosen[..., None], axis=1)
