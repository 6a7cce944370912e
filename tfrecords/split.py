"""Splits images into train and val: stratified by class, groups kept together, determined by a seed.

Iterative stratification for images with several classes: K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the
Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1, with groups of images in place of examples.
"""

import collections
import dataclasses
import random
import re

from tfrecords.schema import DataError

PARTS = ("train", "val")
EMPTY = ""  # stands for the class of images without objects


@dataclasses.dataclass(frozen=True)
class Parts:
    """The result of a split.

    part_of:   {image: "train" or "val"}.
    classes:   {class: {part: images that have it}}.
    ungrouped: number of images that the pattern of groups did not match.
    """

    part_of: dict
    classes: dict
    ungrouped: int = 0

    def images(self, part):
        """The number of images of a part."""
        return sum(one == part for one in self.part_of.values())

    def only_in(self, part):
        """Classes that the other part lacks."""
        return [name for name, count in self.classes.items() if name and count[part] == sum(count.values())]


def split(classes_of, *, val=0.2, seed=0, group=None):
    """Split images into train and val.

    The result is a function of the names, the classes and the seed; the order of the images has no effect.

    Args:
        classes_of: {name of an image: its classes}.
        val:        fraction of the images for val.
        seed:       int.
        group:      regular expression, searched in the names. Images with the same match (of its capture
                    groups, if it has any) are in one part; images without a match are groups of their own.
    Returns:
        Parts
    Raises:
        DataError: the pattern or the fraction is not valid, or there is but one image or group.
    """
    if not 0 < val < 1:
        raise DataError(f"val: {val} is not a fraction between 0 and 1")
    groups, ungrouped = _groups(classes_of, group)
    if len(groups) < len(PARTS):
        kind = "images" if group is None else f"groups of images by {group!r}"
        raise DataError(f"{len(groups)} {kind}: at least {len(PARTS)} are needed for train and val")
    counts = {
        key: collections.Counter(name for image in images for name in set(classes_of[image]) or {EMPTY})
        for key, images in groups.items()
    }
    assigned = _assign(groups, counts, val, random.Random(seed))
    part_of = {image: assigned[key] for key, images in groups.items() for image in images}
    names = sorted({name for count in counts.values() for name in count})
    classes = {
        name: {part: sum(counts[key][name] for key in groups if assigned[key] == part) for part in PARTS}
        for name in names
    }
    return Parts({image: part_of[image] for image in classes_of}, classes, ungrouped)


def _groups(classes_of, pattern):
    """({key: [image, ...]}, number of images without a match)."""
    try:
        search = re.compile(pattern).search if pattern is not None else lambda name: None
    except re.error as error:
        raise DataError(f"group: {pattern!r} is no regular expression: {error}") from None
    groups, ungrouped = collections.defaultdict(list), 0
    for image in classes_of:
        match = search(image)
        ungrouped += match is None
        key = ("image", image) if match is None else ("group", *(match.groups("") or [match.group()]))
        groups[key].append(image)
    return groups, ungrouped if pattern is not None else 0


def _assign(groups, counts, val, rng):
    """{key of a group: part}; the rarest class is distributed first.

    A part that is full gets no more: many classes of one image each would all go to train.
    """
    fractions, total = {"train": 1 - val, "val": val}, sum(map(len, groups.values()))
    room = {"train": total - round(val * total), "val": round(val * total)}
    keys = sorted(groups)
    rng.shuffle(keys)
    waiting = collections.defaultdict(list)  # class -> groups that have it
    for key in keys:
        for name in counts[key]:
            waiting[name].append(key)
    wanted = {
        name: {
            part: fraction * sum(counts[key][name] for key in having) for part, fraction in fractions.items()
        }
        for name, having in waiting.items()
    }
    left = {name: sum(counts[key][name] for key in having) for name, having in waiting.items()}
    assigned = {}
    while left:
        rarest = min(left, key=lambda name: (left[name], name))
        for key in sorted(waiting[rarest], key=lambda key: -counts[key][rarest]):  # large groups first
            if key in assigned:
                continue
            having_room = [part for part in PARTS if 2 * room[part] >= len(groups[key])] or PARTS
            part = max(having_room, key=lambda part: (wanted[rarest][part], room[part]))
            assigned[key] = part
            room[part] -= len(groups[key])
            for name, count in counts[key].items():
                wanted[name][part] -= count
                if name in left:
                    left[name] -= count
        del left[rarest]
    for part in set(PARTS) - set(assigned.values()):  # few images or large groups: the smallest one fills it
        assigned[min(keys, key=lambda key: len(groups[key]))] = part
    return assigned
