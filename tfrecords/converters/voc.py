"""Pascal VOC converter: one XML file per image, one list of images per split."""

import collections
import pathlib
import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from tfrecords.conversion_report import Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.converters.common import as_hw, as_int, as_numbers, text
from tfrecords.schema import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = pathlib.PurePath("ImageSets", "Main")
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def build(
    to,
    *,
    root=None,
    images=None,
    annotations=None,
    split=None,
    classes=None,
    rename=None,
    one_based=False,
    ignore_difficult=False,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a data set in Pascal VOC format.

    An image is found by the name of its XML file; <filename> is used only if there is no such image, because
    many tools write a stale name there. Image ids are the names if all of them are numbers, else 1, 2, ...
    in the order of the list.

    Args:
        to:          directory to make.
        root:        folder with JPEGImages, Annotations and ImageSets/Main. Or give the two folders:
        images:      folder of images.
        annotations: folder of XML files.
        split:       a list of names: train for ImageSets/Main/train.txt, or a path. None: every XML file.
        classes, rename: see `tfrecords.converters.classes.Classes`. Without a list: all that occur in the
                     folder of annotations, in any split, in alphabetical order.
        one_based:   coordinates start at 1 and xmax, ymax are inside the box, as in the original Pascal
                     files: 1 is subtracted from xmin and ymin. False: coordinates start at 0, as LabelImg
                     and most other tools write them.
        ignore_difficult: objects marked difficult become crowds: not trained on, and ignored by the COCO
                     metrics. False: ordinary objects, except in the VOC metrics.
        shards, workers, strict, progress: see `tfrecords.write.write`.
    Returns:
        tfrecords.conversion_report.Report
    """
    images, annotations, split = _places(root, images, annotations, split)
    names = _names(annotations, split)
    trees, faults = {}, Faults()
    for name in names:
        try:
            trees[name] = read_xml(annotations / f"{name}.xml")
        except DataError as error:
            faults.images.append(Fault(f"{name}.xml", str(error)))
    found = _all_names(annotations, trees)
    categories, number_of = Classes(classes, rename).of_names(found, annotations, faults)
    if not categories:
        raise DataError(f"{annotations}: no XML file contains a class")
    files = _images(images)
    jobs = [
        {
            "id": number,
            "file_name": _image_of(name, trees[name], files),
            "hw": as_hw(trees[name].findtext("size/height"), trees[name].findtext("size/width")),
            "objects": _objects(
                name,
                trees[name],
                number_of,
                one_based=one_based,
                ignore_difficult=ignore_difficult,
                faults=faults,
            ),
        }
        for name, number in _numbered(trees)
    ]
    return common.convert(
        to,
        jobs,
        categories,
        folder=images,
        source={
            "format": "voc",
            "split": split.name if split else None,
            "one_based": one_based,
            "ignore_difficult": ignore_difficult,
        },
        boxes_total=sum(len(tree.findall("object")) for tree in trees.values()),
        before=faults,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def read_xml(path):
    """Parse an XML file -> its root element.

    A document with a DOCTYPE is rejected: annotations need none, and nested entities can exhaust memory.

    Raises:
        DataError: missing, not XML, or with a DOCTYPE; the message is the reason alone.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except FileNotFoundError:
        raise DataError("no such annotation file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not XML: {error}") from None


def _refuse_doctype(*_):
    raise DataError("XML with a DOCTYPE is rejected: remove the declaration")


def _places(root, images, annotations, split):
    """(folder of images, folder of XML files, path of the list or None)."""
    if root is not None:
        images, annotations = (
            images or pathlib.Path(root, "JPEGImages"),
            annotations or pathlib.Path(root, "Annotations"),
        )
    if images is None or annotations is None:
        raise DataError("voc: give root, or both images and annotations")
    images, annotations = pathlib.Path(images), pathlib.Path(annotations)
    if not annotations.is_dir():
        raise DataError(f"{annotations}: no such folder of XML files")
    if split is None:
        return images, annotations, None
    listed = pathlib.Path(root or annotations.parent) / LISTS / f"{split}.txt"
    if not listed.is_file() and not pathlib.Path(split).is_file():
        raise DataError(f"{listed}: no such list of images, and {split} is not a file")
    return images, annotations, listed if listed.is_file() else pathlib.Path(split)


def _names(annotations, split):
    """Names of the XML files, without suffix, each once."""
    if split is None:
        return [path.relative_to(annotations).with_suffix("").as_posix() for path in _xml_files(annotations)]
    try:
        lines = split.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{split}: cannot be read: {error}") from None
    # lists of one class have a second column, 1 or -1
    names = [line.split()[0].removesuffix(".xml") for line in lines if line.strip()]
    if not names:
        raise DataError(f"{split}: the list is empty")
    unsafe = [name for name in names if not common.is_safe(name)]
    if unsafe:
        raise DataError(f"{split}: {unsafe[0]!r} must be a name that stays in the folder")
    return list(dict.fromkeys(names))


def _xml_files(folder):
    return sorted(folder.rglob("*.xml"))


def _all_names(folder, trees):
    """All classes of the folder, so that all splits of a data set have the same list."""
    names = set()
    for path in _xml_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            tree = trees[name] if name in trees else read_xml(path)
        except DataError:  # reported with its split
            continue
        names |= {_name_of(thing) for thing in tree.findall("object")}
    return sorted(names - {""})


def _name_of(thing):
    return text(thing.findtext("name") or "")


def _images(folder):
    """{name without suffix: [file names]} of a folder, recursively."""
    files = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() in ENDINGS:
            name = path.relative_to(folder)
            files[name.with_suffix("").as_posix()].append(name.as_posix())
    return files


def _image_of(name, tree, files):
    """File name of the image of an XML file; without an image, the name to report as missing."""
    annotated = text(tree.findtext("filename") or "")
    if name in files:
        return annotated if annotated in files[name] else files[name][0]
    return annotated or f"{name}.jpg"


def _numbered(names):
    numbers = [as_int(name) if name.isdecimal() else None for name in names]
    plain = None not in numbers and len(set(numbers)) == len(numbers)
    return zip(names, numbers if plain else range(1, len(numbers) + 1), strict=True)


def _objects(name, tree, number_of, one_based, ignore_difficult, faults):
    """The objects of an XML file, in the form of `common`; unusable ones become faults."""
    objects = []
    for count, thing in enumerate(tree.findall("object"), 1):
        where = f"object {count}"
        category = _name_of(thing)
        corners = as_numbers([thing.findtext(f"bndbox/{side}") for side in CORNERS], 4)
        if category not in number_of:
            faults.boxes.append(Fault(f"{where} of {name}.xml", NOT_LISTED))
        elif corners is None:
            faults.boxes.append(Fault(f"{where} of {name}.xml", "bndbox is not four finite numbers"))
        else:
            x0, y0, x1, y1 = corners
            x0, y0 = x0 - one_based, y0 - one_based
            difficult = int(bool(as_int(thing.findtext("difficult"))))
            objects.append(
                {
                    "where": where,
                    "category_id": number_of[category],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "difficult": difficult,
                    "iscrowd": int(difficult and ignore_difficult),
                }
            )
    return objects
