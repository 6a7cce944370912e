"""Samplers: endless, deterministic index streams (uniform, repeat-factor, class-aware, rounds of classes).

natural        every epoch is one permutation of all images
repeat_factor  images with rare classes are repeated within an epoch; Gupta, Dollár and Girshick 2019
               (LVIS), arXiv:1908.03195, section 4.3
class_aware    every class is drawn equally often, with replacement; the sampler of the CenterNet2 release
class_rounds   every class comes exactly once in each round, with an image that has it; the sampler of TSD's
               release for Open Images, Song, Liu and Wang 2020, arXiv:2003.07540
"""

import itertools

import numpy as np

from kgarden.errors import UserError

DRAWN = 4096  # rows per call of the generator in `drawn`


def natural(size, key):
    """Uniform sampler: an endless sequence of permutations of all images.

    Args:
        size: N.
        key:  tuple of int, the seed of the stream.
    """
    for epoch in itertools.count():
        yield from np.random.default_rng([*key, epoch]).permutation(size).tolist()


def repeated(factors, key):
    """Repeat-factor sampler: image i occurs floor(factors[i]) times per epoch, stochastically rounded up.

    Args:
        factors: (N,) float, from `repeat_factors`.
        key:     tuple of int.
    """
    whole = np.floor(factors).astype("int64")
    for epoch in itertools.count():
        rng = np.random.default_rng([*key, epoch])
        times = whole + (rng.random(len(whole)) < factors - whole)
        yield from rng.permutation(np.repeat(np.arange(len(whole)), times)).tolist()


def drawn(weights, key):
    """Weighted sampler with replacement.

    Args:
        weights: (N,) float, from `class_aware_weights`.
        key:     tuple of int.
    """
    probability = np.asarray(weights, "float64") / np.sum(weights)
    for chunk in itertools.count():
        yield from (
            np.random.default_rng([*key, chunk]).choice(len(probability), DRAWN, p=probability).tolist()
        )


def class_rounds(pairs, key):
    """Class-aware sampler in rounds: a permutation of all classes that occur, and of each one random image.

    Args:
        pairs: (K, 2) int: image (a row), class; one for each object.
        key:   tuple of int.
    Raises:
        UserError: there are no objects.
    """
    images, classes, counts = _presence(pairs)
    if not len(counts):
        raise UserError("data.sampling: class_rounds draws images by their objects, and there are none")
    images, first = images[np.argsort(classes, kind="stable")], np.cumsum(counts) - counts
    for number in itertools.count():
        rng = np.random.default_rng([*key, number])
        of_round = rng.permutation(len(counts))
        yield from images[first[of_round] + rng.integers(counts[of_round])].tolist()


def repeat_factors(pairs, num_images, threshold):
    """Repeat factor of an image: max over its classes of max(1, sqrt(threshold / class frequency)).

    Args:
        pairs:      (K, 2) int: image (a row), class; one for each object.
        num_images: N.
        threshold:  classes in less than this fraction of the images are repeated.
    Returns:
        (N,) float64; 1 for an image without objects.
    """
    images, classes, counts = _presence(pairs)
    factor = np.maximum(1.0, np.sqrt(threshold / (counts / num_images)))
    factors = np.ones(num_images)
    np.maximum.at(factors, images, factor[classes])
    return factors


def class_aware_weights(pairs, num_images):
    """Class-aware weight of an image: sum over its classes of 1 / number of images with the class.

    Args:
        pairs:      (K, 2) int: image (a row), class; one for each object.
        num_images: N.
    Returns:
        (N,) float64; 0 for an image without objects, which is never drawn.
    """
    images, classes, counts = _presence(pairs)
    return np.bincount(images, weights=1.0 / counts[classes], minlength=num_images)


def _presence(pairs):
    """Unique (image, class) pairs: (images, classes as 0..C-1, number of images of each class)."""
    pairs = np.unique(np.asarray(pairs, "int64").reshape(-1, 2), axis=0)
    _, classes, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    return pairs[:, 0], classes, counts
