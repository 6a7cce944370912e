"""Files of a YOLO data set: data.yaml, folders and lists of images, the label file of each image."""

import dataclasses
import os
import pathlib
import re

import yaml

from tfrecords import bounded_yaml
from tfrecords.conversion_report import Fault
from tfrecords.files import read_text
from tfrecords.image_lists import OUTSIDE_ROOT, images_in, listed_images
from tfrecords.image_names import ImageFolder, Names, NotFound, folded, slashed
from tfrecords.schema import DataError
from tfrecords.values import as_int, text

SPLITS = ("train", "val", "test")
YAML = {".yaml", ".yml"}
NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
BOX = 5  # fields of a line: class, centre x, centre y, width, height
NOT_HERE = "no such path on this machine: that of its end in the folder of data.yaml is taken"


@dataclasses.dataclass(frozen=True)
class Description:
    """Contents of a data.yaml.

    path:      of the file.
    root:      folder that its paths are relative to.
    names:     {class id: name}, or None.
    splits:    {split: [folder or list of images, as written]}.
    keypoints: fields of a line with keypoints, or None.
    """

    path: pathlib.Path
    root: pathlib.Path
    names: dict | None = None
    splits: dict = dataclasses.field(default_factory=dict)
    keypoints: int | None = None


# --- data.yaml ------------------------------------------------------------------------------------


def read_description(path, faults):
    """data.yaml -> Description; a root that is not on this machine becomes a remark in `faults`.

    Raises:
        DataError: it cannot be read, or is no description of a data set.
    """
    tree = load(path)
    root = _root(path, tree.get("path"), faults)
    splits = {split: _entries(path, split, tree[split]) for split in SPLITS if tree.get(split)}
    keypoints = tree.get("kpt_shape")
    if keypoints is not None and not (
        isinstance(keypoints, list)
        and len(keypoints) == 2
        and all(type(n) is int and n > 0 for n in keypoints)
    ):
        raise DataError(f"{path}: kpt_shape must be [number of keypoints, 2 or 3]")
    fields = None if keypoints is None else BOX + keypoints[0] * keypoints[1]
    return Description(path, root, names=_names(path, tree), splits=splits, keypoints=fields)


def load(path):
    """The contents of a data.yaml.

    Raises:
        DataError: it cannot be read, or is not YAML of a dictionary.
    """
    try:
        tree = bounded_yaml.load(read_text(path))
    except yaml.YAMLError as error:
        line = bounded_yaml.line_of(error)
        where = f"{path}:{line}" if line else f"{path}"
        raise DataError(f"{where}: not YAML: {bounded_yaml.reason_of(error)}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a data.yaml: no keys train, val and names")
    return tree


def _root(path, written, faults):
    here = path.parent
    if written is None:
        return here
    if not isinstance(written, str):
        raise DataError(f"{path}: path must be a folder")
    for root in (here / slashed(written), pathlib.Path(slashed(written))):
        if os.path.isdir(root):
            return root
    faults.remarks.append(Fault(f"{path}: path: {written}", NOT_HERE))
    return _existing_end(here, written, os.path.isdir) or here


def _entries(path, split, value):
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(f"{path}: {split} must be a folder or a list of images, or several in a list")
    return entries


def _names(path, tree):
    """{class id: name} of the key names, a list or a dictionary; of nc alone class_0, class_1, ..."""
    names, count = tree.get("names"), as_int(tree.get("nc"))
    if count is not None and not 0 <= count <= bounded_yaml.MAX_NODES:
        raise DataError(f"{path}: nc is {count}, which is no number of classes")
    if names is None:
        return {number: f"class_{number}" for number in range(count)} if count else None
    if not isinstance(names, list | dict):
        raise DataError(f"{path}: names must be a list or a dictionary of class names")
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names))
    if unread := [
        name for _, name in pairs if not isinstance(name, str | int | float) or isinstance(name, bool)
    ]:
        # YAML reads no, off, yes and on as false and true
        raise DataError(f"{path}: names: {unread[0]!r} is no text: put the name in quotes")
    numbered = {as_int(number): text(name) for number, name in pairs}
    if None in numbered or min(numbered, default=0) < 0 or not all(numbered.values()):
        raise DataError(f"{path}: names: every class needs an id from 0 on and a name")
    if len(numbered) != len(names) or not names:
        raise DataError(f"{path}: names is empty, or gives an id twice")
    if count is not None and count != len(numbered):
        raise DataError(f"{path}: nc is {count}, but names has {len(numbered)} classes")
    return dict(sorted(numbered.items()))


def description_near(folder, faults):
    """The Description of a data.yaml or a list of names in a folder or the two above it, or None."""
    for place in (folder, *folder.resolve().parents[:2]):
        for name in NAMES_FILES:
            path = place / name
            if path.is_file() and path.suffix in YAML:
                return read_description(path, faults)
            if path.is_file():
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                names = [text(line) for line in lines if line.strip()]
                return Description(path, folder, names=dict(enumerate(names)))
    return None


# --- images ---------------------------------------------------------------------------------------


def images_of(description, split, faults):
    """The images of a split -> ([Image, ...], folder that holds them all).

    Raises:
        DataError: there is no such split, folder or list.
    """
    splits = description.splits
    if split not in splits:
        which = f"no split {split!r}" if split else "choose a split"
        raise DataError(f"{description.path}: {which}; it has: {', '.join(splits) or 'none'}")
    images, folders = [], []
    for entry in splits[split]:
        place = _place(description, split, entry, faults)
        if place.is_dir():
            images += images_in(place, faults)
            folders.append(place)
        else:
            listed = listed_images(place, description.root, faults)
            images += listed
            folders.append(_holding(listed, description.root))
    if not images:
        raise DataError(f"{description.path}: {split}: no images in {', '.join(map(str, folders))}")
    return images, pathlib.Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def _holding(images, root):
    """The folder of all images of a list: the root, if they are in it."""
    folders = [os.path.dirname(image.path) for image in images]
    return os.path.commonpath([os.path.abspath(root), *folders])


def _place(description, split, entry, faults):
    """The folder or list that an entry of a split names, by the rules of Ultralytics."""
    written = slashed(entry)
    places = [description.root / written]
    if written.startswith("../"):  # Roboflow writes ../train/images for train/images
        places.append(description.root / written.removeprefix("../"))
    places.append(description.path.parent / written)
    for place in places:
        if os.path.exists(place):
            path, tops = os.path.abspath(place), (description.root, description.path.parent)
            if not any(pathlib.PurePath(path).is_relative_to(os.path.abspath(top)) for top in tops):
                faults.remarks.append(Fault(f"{description.path}: {split}: {entry}", OUTSIDE_ROOT))
            return place
    if place := _existing_end(description.root, entry, os.path.exists):
        faults.remarks.append(Fault(f"{description.path}: {split}: {entry}", NOT_HERE))
        return place
    raise DataError(f"{description.path}: {split}: no such folder or list of images: {places[0]}")


def _existing_end(root, written, exists):
    """The longest end of a path that exists in a folder, or None; `exists` is of os.path: it never raises."""
    parts = [part for part in re.sub(r"^[A-Za-z]:", "", slashed(written)).split("/") if part]
    ends = [root.joinpath(*parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]]
    return next((end for end in ends if exists(end)), None)


# --- labels ---------------------------------------------------------------------------------------


def label_of(image, labels, faults):
    """Path of the label file of an Image; None without one, or where the conversion leaves the image out."""
    try:
        return None if image.fault else labels.of(image.path, faults)
    except DataError:
        return None


class Labels:
    """Finds the label file of each image.

    Args:
        images: folder of images, with `labels`.
        labels: folder of label files with the same paths. None: Ultralytics' rule for each image: labels/
                for the last images/ in its path; without these folders, beside it.
    """

    def __init__(self, images=None, labels=None):
        self.images, self.labels = images and os.path.abspath(images), labels and os.path.abspath(labels)
        self.found = 0
        self._known = {}  # folder of labels -> ({path without ending, folded: path}, Names)

    def of(self, image, faults):
        """Path of the label file of an image, or None.

        Raises:
            DataError: several files may be meant.
        """
        folder, stem = self._stem(image)
        plain = os.path.join(folder, f"{stem}.txt")
        found = plain if os.path.isfile(plain) else self._otherwise(folder, stem, faults)
        self.found += found is not None
        return found

    def _stem(self, image):
        """(folder of labels, path in it without ending)."""
        stem = os.path.splitext(image)[0]
        if self.labels:
            return self.labels, os.path.relpath(stem, self.images)
        parts = stem.split(os.sep)
        last = max((n for n, part in enumerate(parts[:-1]) if part.lower() == "images"), default=None)
        for name in ("labels", "Labels") if last else ():
            folder = os.sep.join([*parts[:last], name])
            if os.path.isdir(folder):
                return folder, os.path.join(*parts[last + 1 :])
        return os.path.split(stem)

    def _otherwise(self, folder, stem, faults):
        """The label file under another spelling, or, in a given folder, the one of the image's name."""
        if folder not in self._known:
            files = [name for name in ImageFolder(folder).files if name.lower().endswith(".txt")]
            table = {folded(os.path.splitext(name)[0]): name for name in files}
            self._known[folder] = table, Names(files, ending=False)
        table, names = self._known[folder]
        if folded(stem) in table:
            return os.path.join(folder, table[folded(stem)])
        if not self.labels:
            return None
        try:
            found, remark = names.find(stem)
        except NotFound:
            return None
        if remark:
            faults.remarks.append(Fault(f"{stem} -> {found}", remark))
        return os.path.join(folder, found)
