"""Augmentation: stateless transforms of an image together with its ground truth.

A transform is stateless: the result is a function of example and seed. It is pure TensorFlow. The functions
listed in TRANSFORMS build transforms from the settings of a recipe.

    example  {"image": (H, W, 3) uint8 RGB, "boxes": (N, 4) float32 xyxy px of this image,
              "labels": (N,) int32, -1: not an object, "crowd": (N,) bool, with masks "masks":
              (N, 112, 112) bool over "frames": (N, 4) xyxy px, "target_hw", "canvas_hw": (2,) int32,
              "short_side_px", "long_side_px": () int32, ...}; other keys pass through
    seed     (2,) int

crops.py, sizes.py, mixing.py, paste.py, flips.py, colour.py on top of geometry.py and masks.py.
"""

import difflib

import tensorflow as tf

from kgarden.config.instantiate import arguments, instantiate
from kgarden.data import rng
from kgarden.data.rng import fold_in
from kgarden.data.transforms import masks
from kgarden.data.transforms.base import CROP, FINISH, SIZE
from kgarden.data.transforms.colour import color_jitter
from kgarden.data.transforms.crops import random_crop, random_iou_crop
from kgarden.data.transforms.flips import horizontal_flip, vertical_flip
from kgarden.data.transforms.geometry import FRAMES, aimed, resize
from kgarden.data.transforms.mixing import mixup, mosaic
from kgarden.data.transforms.paste import copy_paste
from kgarden.data.transforms.sizes import large_scale_jitter, scale_and_crop
from kgarden.errors import UserError
from kgarden.structures import BOXES, MASKS

TRANSFORMS = {
    "random_crop": random_crop,
    "random_iou_crop": random_iou_crop,
    "scale_and_crop": scale_and_crop,
    "large_scale_jitter": large_scale_jitter,
    "mosaic": mosaic,
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "color_jitter": color_jitter,
    "mixup": mixup,
    "copy_paste": copy_paste,
}


class Augmentation:
    """The transforms of a recipe, in their order of execution.

    Crops come first, on the stored image; then the resize to the target size, by a transform or a plain
    resize; then the others, at that size. Within each stage the order of the list is kept.

    Args:
        entries:   [name or {name: {setting: value}}, ...].
        antialias: of resizing.
        masks:     whether examples have masks.
    Raises:
        UserError: unknown names or settings (the nearest is suggested), two transforms of stage SIZE.
    """

    def __init__(self, entries, antialias=True, masks=False):
        self.antialias = antialias
        self.settings = [_named(entry) for entry in entries]
        transforms = [_transform(name, settings, antialias) for name, settings in self.settings]
        for (name, _), transform in zip(self.settings, transforms, strict=True):
            if transform.needs_masks and not masks:
                raise UserError(f"augment: {name} needs masks: set data.masks to true")
        sizing = [name for (name, _), one in zip(self.settings, transforms, strict=True) if one.stage == SIZE]
        if len(sizing) > 1:
            raise UserError(f"augment: {' and '.join(sizing)} both set the image size: keep one")
        numbered = list(enumerate(transforms))
        self.stages = [[(n, one) for n, one in numbered if one.stage == stage] for stage in range(3)]
        self.partners = sum(one.partners for one in transforms)

    @property
    def is_plain(self):
        """Whether there are only flips."""
        return all(one.mirror for stage in self.stages for _, one in stage)

    def mirrors(self, seeds):
        """Flips of a plain augmentation, for many images at once.

        Args:
            seeds: (n, 2) int.
        Returns:
            (n, 2) bool: vertical, horizontal.
        """
        flips = [tf.zeros_like(seeds[:, 0], tf.bool)] * 2
        for index, one in self.stages[FINISH]:
            axis, probability = one.mirror
            flips[axis] ^= rng.uniform(fold_in(seeds, index))[:, 0] < probability
        return tf.stack(flips, axis=-1)

    @property
    def keeps_size(self):
        """Whether whole images are resized to one of the recipe's sizes."""
        return not self.stages[CROP] and not self.stages[SIZE] and not self.partners

    def __call__(self, load, seed):
        """Augment one image and resize it to its size on the canvas.

        Args:
            load: function k -> example; 0: the image, 1, 2, ...: its partners, sized for the same canvas.
            seed: (2,) int.
        """
        before = [0]  # partners used by earlier transforms

        def transformed(example, stage, number, ready):
            for index, one in self.stages[stage]:
                first = before[0] + 1
                before[0] += one.partners if number == 0 else 0
                own_seed = fold_in(seed, 1000 * number + index)
                example = one.change(example, own_seed, lambda k, first=first: ready(first + k))
            return example

        def cropped(number):
            return transformed(load(number), CROP, number, None)

        def sized(number):
            example = cropped(number)
            mixes = any(one.partners for _, one in self.stages[SIZE])
            if not self.stages[SIZE] or (mixes and number > 0):  # a partner is one image, not four
                return resize(self.antialias)(example)
            return transformed(example, SIZE, number, cropped)

        return finished(transformed(sized(0), FINISH, 0, sized))


def finished(example):
    """Resample the masks from their frames to the final boxes."""
    if MASKS not in example:
        return example
    kept = {key: value for key, value in example.items() if key != FRAMES}
    return {**kept, MASKS: masks.resample_masks(example[MASKS], example[FRAMES], example[BOXES])}


def describe():
    """[(name, {setting: default}, first line of the docstring), ...] of every transform."""
    descriptions = []
    for name, function in TRANSFORMS.items():
        settings = dict(zip(_settings_of(function), function.__defaults__, strict=False))
        descriptions.append((name, settings, function.__doc__.strip().splitlines()[0]))
    return descriptions


def _settings_of(function):
    return [name for name in arguments(function) if name != "antialias"]


def _named(entry):
    if isinstance(entry, str):
        return entry, {}
    [(name, settings)] = dict(entry).items()
    return name, dict(settings or {})


def _transform(name, settings, antialias):
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TRANSFORMS)}"
        raise UserError(f"augment: no transform {name!r}; {hint}")
    function = TRANSFORMS[name]
    fixed = {"antialias": antialias} if "antialias" in arguments(function) else {}
    return instantiate(function, settings, f"augment.{name}", **fixed)


__all__ = ["CROP", "FINISH", "SIZE", "TRANSFORMS", "Augmentation", "aimed", "describe", "finished", "resize"]
