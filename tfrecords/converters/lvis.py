"""LVIS converter: the JSON of versions 0.5 and 1, whose images are annotated for some of the classes only.

Gupta, Dollár, Girshick 2019, arXiv:1908.03195. An image lists the categories that people looked for in vain
("neg_category_ids") and those of which not every object has a box ("not_exhaustive_category_ids"); of all
others without a box nothing is known. Categories have the number of training images that have them, and by it
a "frequency": r (rare, up to 10), c (common, up to 100) or f (frequent).
"""

from tfrecords.converters import coco
from tfrecords.schema import DataError

KEPT = ("synset", "frequency", "image_count", "instance_count")  # of a category
UP_TO = ((10, "r"), (100, "c"))  # images of the frequencies; f above
OTHER_YEAR = "COCO_"  # COCO_val2014_000000266409.jpg is 000000266409.jpg since 2017


def build(
    to,
    *,
    images,
    annotations,
    classes=None,
    rename=None,
    with_masks=True,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert LVIS, version 0.5 or 1.

    As `coco.build`. Images of the data set also have "pos_category_ids" (of the annotations),
    "neg_category_ids" and "not_exhaustive_category_ids", and categories "frequency", "image_count",
    "instance_count" and "synset", as far as the json has them. Without a count of their own classes that were
    joined have no frequency.

    Args:
        images: folder that has train2017 and val2017, or the images themselves; also those of 2014.
        to, annotations, classes, rename, with_masks, shards, workers, strict, progress: see `coco.build`.
    Returns:
        tfrecords.conversion_report.Report
    """
    return coco.convert(
        to,
        LVIS(),
        images=images,
        annotations=annotations,
        classes=classes,
        rename=rename,
        with_masks=with_masks,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def categories_of(annotations, classes=None, rename=None):
    """The classes that `build` gives a data set -> [{"id", "name", ...}, ...] in label order."""
    return coco.categories_of(annotations, classes, rename, dialect=LVIS())


class LVIS(coco.Dialect):
    """Image-level labels and frequencies of LVIS; images under their COCO URL."""

    format = "lvis"

    def described(self, category, entries):
        if len(entries) != 1:
            return category
        category = {**category, **{key: entries[0][key] for key in KEPT if entries[0].get(key) is not None}}
        if "frequency" not in category and "image_count" in category:
            category["frequency"] = frequency_of(category["image_count"])
        return category

    def completed(self, job, entry, number_of, folder):
        def chosen(key):
            listed = {number_of.get(one) for one in entry.get(key) or ()}
            return sorted(listed - {None})

        present = {thing["category_id"] for thing in job["objects"]}
        absent = [one for one in chosen("neg_category_ids") if one not in present]
        return {
            **job,
            "file_name": _file_of(entry, folder),
            "verified": (sorted(present), absent),
            "not_exhaustive": chosen("not_exhaustive_category_ids"),
        }


def frequency_of(image_count):
    """The frequency of a category by its number of training images: r, c or f."""
    return next((name for limit, name in UP_TO if image_count <= limit), "f")


def _file_of(entry, folder):
    """The first name of an image that is in the folder: of its URL, with and without the year, or its own."""
    url = str(entry.get("coco_url") or "").split("/")
    own = str(entry.get("file_name") or "")
    names = ["/".join(url[-2:]), url[-1], own]
    if own.startswith(OTHER_YEAR):
        names.append(own.rsplit("_", 1)[-1])
    names = [name for name in names if name]
    for name in names:
        if (folder.folder / name).is_file():
            return name
    for name in names:
        try:
            return folder.find(name).name
        except DataError:
            continue
    return names[0] if names else ""
