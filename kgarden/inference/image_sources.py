"""Image sources: what `Predictor` and `kgarden predict` take as images, and how it is found and read."""

import collections
import glob
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from kgarden.errors import UserError
from kgarden.utils.arguments import path_of
from tfrecords.conversion_report import Faults
from tfrecords.image_lists import listed_images
from tfrecords.images import UNREAD_SUFFIXES, decoded_pixels, pixels_of, read_pixels, suffixes
from tfrecords.schema import DataError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def images_of(source: Any, say: Callable[[str], object] = warnings.warn) -> list | None:
    """Returns the images that a source stands for, or None for a single image.

    Args:
        source: a list or tuple; an array or tensor (B, H, W, 3); the path of a folder, which stands for its
                images, those of its subfolders included; or anything else, a single image.
        say:    called with a line on what a folder holds besides.
    Raises:
        UserError: the folder has no images.
    """
    if isinstance(source, list | tuple):
        return list(source)
    if getattr(source, "ndim", None) == 4:
        return list(source)
    if isinstance(source, str | os.PathLike) and not is_url(source) and path_of(source, "image").is_dir():
        return find_images([source], say=say)
    return None


def is_url(source: Any) -> bool:
    """Returns whether a source is a string such as "https://..."."""
    return isinstance(source, str) and URL.match(source) is not None


def _local(source):
    """The path of an image on this machine."""
    if is_url(source):
        raise UserError(
            f"{source}: URLs are not read; download the file first, for example with "
            f"urllib.request.urlretrieve(URL, 'photo.jpg')"
        )
    path = path_of(source, "image")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(f"{path}: a video is no image; use Predictor.video")
    return path


def read_image(source) -> np.ndarray:
    """Reads an image as RGB, with its EXIF orientation applied.

    Args:
        source: path of a file in one of `tfrecords.images.FORMATS`; the bytes of such a file, or an open
                one; a Pillow image; or an array or tensor (H, W), (H, W, 3) or (H, W, 4), RGB from 0 to 255:
                integers, or floats, which are rounded.
    Returns:
        (H, W, 3) uint8.
    Raises:
        UserError: the file is missing, damaged, a video or not an image; the values are not 0 to 255, as
                   fractions up to 1 are; or the source is of another kind.
    """
    name = "the image"
    try:
        if isinstance(source, str | os.PathLike):
            name = path = _local(source)
            if not path.is_file():
                raise DataError("no such file")
            return read_pixels(path)
        if isinstance(source, Image.Image):
            return pixels_of(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return decoded_pixels(bytes(source))
        if hasattr(source, "read"):
            return decoded_pixels(_content(source))
    except DataError as error:
        raise UserError(f"{name}: {error}") from error
    return _check_array(_as_array(source))


def _content(file):
    """The bytes of an open file."""
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}") from error
    if not isinstance(content, bytes):
        raise DataError("a file opened as text is no image: open it with mode 'rb'")
    return content


def _as_array(source):
    """An array or tensor as an array."""
    if not hasattr(source, "__array__"):
        raise UserError(
            f"an image of type {type(source).__name__} is not supported; give a path, bytes, an open file, a "
            f"Pillow image or an array (height, width, 3) uint8, or a list of these"
        )
    try:
        return np.asarray(source)
    except Exception as error:  # a tensor without values, or on a GPU
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"a {type(source).__name__} that has no NumPy array is no image: {reason}") from error


def _check_array(array):
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or 0 in array.shape:
        raise UserError(f"an array of shape {array.shape} is not supported; images are (height, width, 3)")
    array = _as_bytes(array)
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array[..., :3]


def _as_bytes(array):
    """Values from 0 to 255 as uint8. Floats up to 1 may be fractions: they are refused, black ones apart."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise UserError(f"an array of {array.dtype} is not supported; images are RGB from 0 to 255")
    array = array.astype("float64")
    low, high = array.min(), array.max()
    if not (0 <= low and high <= 255):  # also NaN
        raise UserError(f"an array with values from {low:g} to {high:g} is no image; RGB is 0 to 255")
    if 0 < high <= 1:
        raise UserError("an array of fractions up to 1 is not supported: multiply it by 255")
    return np.rint(array).astype("uint8")


def find_images(
    sources: Iterable[str | os.PathLike],
    skip: str | os.PathLike | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[pathlib.Path]:
    """Lists the image files of paths, directories, glob patterns and lists, each once and in order.

    A directory stands for its files with the ending of an image, those of its subdirectories included; a .txt
    file for the images that it lists, one path a line, relative to the list; see `tfrecords.image_lists`.

    Args:
        sources: paths, directories, glob patterns, .txt files.
        skip:    directory that is not searched: that of the output.
        say:     called with a line on what a directory holds besides.
    Raises:
        UserError: a source has no images.
    """
    images = []
    for source in map(str, sources):
        path = pathlib.Path(source)
        if path.is_file() and path.suffix.lower() == ".txt":
            found = _listed(path, say)
        elif path.is_dir() or path.is_file():
            found = [path]
        else:
            found = sorted(map(pathlib.Path, glob.glob(source, recursive=True)))
        matches = [
            one for path in found for one in (_in_folder(path, skip, say) if path.is_dir() else [path])
        ]
        if not matches:
            raise UserError(f"{source}: no image found")
        images += matches
    return list(dict.fromkeys(images))


def _listed(path, say):
    """The images of a list; those that do not exist too, which are faults when they are read."""
    faults = Faults()
    try:
        images = listed_images(path, path.parent, faults)
    except DataError as error:
        raise UserError(str(error)) from None
    for fault in faults.remarks:
        say(str(fault))
    return [pathlib.Path(image.path) for image in images]


def _in_folder(folder, skip, say):
    """The images of a folder and its subfolders, in order."""
    endings, skip = suffixes() | UNREAD_SUFFIXES, skip and pathlib.Path(skip).resolve()
    images, others = [], collections.Counter()

    def unread(error):
        others[f"folder that cannot be read ({error.filename})"] += 1

    for root, folders, files in os.walk(folder, onerror=unread):
        here = pathlib.Path(root)
        linked = [name for name in folders if (here / name).is_symlink()]
        others["linked folder"] += len(linked)
        others["hidden folder"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(
            name
            for name in folders
            if name not in linked and not name.startswith(".") and (here / name).resolve() != skip
        )
        for name in sorted(files):
            ending = "hidden" if name.startswith(".") else pathlib.Path(name).suffix.lower()
            if ending in endings:
                images.append(here / name)
            else:
                others[ending or "without an ending"] += 1
    if listed := ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()) if count):
        say(f"{folder}: {len(images)} images; passed over: {listed}")
    return images
