"""Which images a data set has: those of a folder, or those that a text file lists."""

import dataclasses
import os
import pathlib

from tfrecords.conversion_report import Fault
from tfrecords.files import read_text
from tfrecords.image_names import ImageFolder, is_safe, slashed
from tfrecords.schema import DataError

OUTSIDE_ROOT = "outside of the folder of the data set: read as listed"
NOT_SEARCHED = "a linked folder: not searched"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of a split.

    path:  absolute; where it would be, if there is none.
    fault: why it cannot be used, or None.
    """

    path: str
    fault: str | None = None


def images_in(folder, faults):
    """Every image of a folder and its subfolders -> [Image, ...]; linked subfolders become remarks."""
    top, inside = os.path.abspath(folder), ImageFolder(folder)
    images = [Image(os.path.join(top, name)) for name in inside.images]
    faults.remarks += [Fault(path, NOT_SEARCHED) for path in inside.linked]
    return images


def listed_images(path, root, faults):
    """The images that a text file lists, one path a line -> [Image, ...].

    A path is relative to the list or to the root of the data set; else the image is found by its name.

    Raises:
        DataError: the list cannot be read or is empty.
    """
    lines = read_text(path).splitlines()
    folder = ImageFolder(root)
    bases = [os.path.abspath(path.parent), os.path.abspath(root)]
    images = [
        _listed(line.strip(), bases, folder, where=f"{path}:{number}", faults=faults)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not images:
        raise DataError(f"{path}: the list is empty")
    return images


def _listed(line, bases, folder, *, where, faults):
    for base in bases:
        path = os.path.normpath(os.path.join(base, slashed(line)))
        if "\0" not in path and os.path.isfile(path):
            if not any(pathlib.PurePath(path).is_relative_to(base) for base in bases):
                faults.remarks.append(Fault(f"{where}: {line}", OUTSIDE_ROOT))
            return Image(path)
    try:
        found = folder.find(line)
    except DataError as error:
        written = slashed(line) if is_safe(line) else os.path.basename(slashed(line))
        return Image(os.path.join(bases[-1], written), f"{where}: {line}: {error}")
    if found.remark:
        faults.remarks.append(Fault(f"{where}: {line} -> {found.name}", found.remark))
    return Image(os.path.join(bases[-1], found.name))
