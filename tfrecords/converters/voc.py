"""Pascal VOC converter: one XML file per image, one list of images per split."""

import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from tfrecords.conversion_report import Fault, Faults
from tfrecords.converters import common
from tfrecords.converters.classes import NOT_LISTED, Classes
from tfrecords.files import read_text
from tfrecords.image_names import ELSEWHERE, ImageFolder, Names, NotFound, is_safe
from tfrecords.images import UNREAD_SUFFIXES, suffixes
from tfrecords.schema import DataError
from tfrecords.values import as_flag, as_hw, as_numbers, text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = pathlib.PurePath("ImageSets", "Main")
MARKS = {"1", "0", "-1"}  # the second column of lists of one class


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
        split:       a list of names or of image files: train for ImageSets/Main/train.txt, or a path. None:
                     every XML file.
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
    images, annotations, split = places(root, images, annotations, split)
    trees, faults = {}, Faults()
    files = xml_files(annotations)
    for name in listed(split, files, faults) if split else files:
        try:
            trees[name] = read_xml(annotations / files.get(name, f"{name}.xml"))
        except DataError as error:
            faults.images.append(Fault(f"{name}.xml", str(error)))
    found = _all_names(annotations, files, trees)
    categories, number_of = Classes(classes, rename).of_names(found, annotations, faults)
    if not categories:
        raise DataError(f"{annotations}: no XML file contains a class")
    folder = ImageFolder(images)
    jobs = [
        {
            "id": number,
            **_image_of(name, trees[name], folder, faults),
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
        for name, number in common.numbered({name: name for name in trees})
    ]
    return common.convert(
        to,
        jobs,
        categories,
        folder=folder,
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


def places(root, images, annotations, split):
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
    path = pathlib.Path(root or annotations.parent) / LISTS / f"{split}.txt"
    if not path.is_file() and not pathlib.Path(split).is_file():
        raise DataError(f"{path}: no such list of images, and {split} is not a file")
    return images, annotations, path if path.is_file() else pathlib.Path(split)


def xml_files(folder):
    """{path without ending: path} of the XML files of a folder, both relative to it."""
    files = [name for name in ImageFolder(folder).files if name.lower().endswith(".xml")]
    return {os.path.splitext(name)[0]: name for name in files}


def listed(split, files, faults):
    """The paths without ending that a list names, each once."""
    lines = read_text(split).splitlines()
    known, names = Names(files.values(), ending=False), {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, remark = _of_line(line.strip(), files, known, where=f"{split}:{number}")
            names[name] = None
            if remark:
                faults.remarks.append(
                    Fault(f"{split.name}:{number}: {line.strip()} -> {files[name]}", remark)
                )
    if not names:
        raise DataError(f"{split}: the list is empty")
    return list(names)


def _of_line(line, files, known, where):
    """(path without ending that a line of a list means, remark), also where no such XML file exists."""
    *words, last = line.split()
    texts = [line] if not words or last not in MARKS else [line, line[: -len(last)].rstrip()]
    stems = [*texts, *(os.path.splitext(text)[0] for text in texts if _has_ending(text))]
    for stem in stems:
        if stem in files:
            return stem, None
    for stem in stems:
        try:
            file, remark = known.find(stem)
            return os.path.splitext(file)[0], remark
        except NotFound:
            continue
        except DataError as error:
            raise DataError(f"{where}: {line!r}: {error}") from None
    return stems[-1] if is_safe(stems[-1]) else re.split(r"[/\\]", stems[-1])[-1], None


def _has_ending(text):
    return os.path.splitext(text)[1].lower() in {".xml", *suffixes(), *UNREAD_SUFFIXES}


def _all_names(folder, files, trees):
    """All classes of the folder, so that all splits of a data set have the same list."""
    names = set()
    for name, file in files.items():
        try:
            tree = trees[name] if name in trees else read_xml(folder / file)
        except DataError:  # reported with its split
            continue
        names |= {name_of(thing) for thing in tree.findall("object")}
    return sorted(names - {""})


def name_of(thing):
    return text(thing.findtext("name") or "")


def _image_of(name, tree, folder, faults):
    """{"file_name"} of the image of an XML file, and "fault" if several have its name."""
    annotated = text(tree.findtext("filename") or "")
    written = annotated or (name if _has_ending(name) else f"{name}.jpg")
    try:
        found = folder.find_stem(name, preferred=annotated)
    except NotFound:
        return {"file_name": written}
    except DataError as error:
        return {"file_name": written, "fault": str(error)}
    if found.remark == ELSEWHERE:
        faults.remarks.append(Fault(f"{name}.xml -> {found.name}", found.remark))
    return {"file_name": found.name}


def _objects(name, tree, number_of, one_based, ignore_difficult, faults):
    """The objects of an XML file, in the form of `common`; unusable ones become faults."""
    objects = []
    for count, thing in enumerate(tree.findall("object"), 1):
        where = f"object {count}"
        category = name_of(thing)
        corners = as_numbers([thing.findtext(f"bndbox/{side}") for side in CORNERS], 4)
        if category not in number_of:
            faults.boxes.append(Fault(f"{where} of {name}.xml", NOT_LISTED))
        elif corners is None:
            faults.boxes.append(Fault(f"{where} of {name}.xml", "bndbox is not four finite numbers"))
        else:
            x0, y0, x1, y1 = corners
            x0, y0 = x0 - one_based, y0 - one_based
            difficult = as_flag(thing.findtext("difficult"))
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
