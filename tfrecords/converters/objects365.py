"""Objects365 converter: its JSON in COCO form, images in folders of patches, names of classes as corrected.

Shao et al. 2019, ICCV. The json's "images/v1/patch8/objects365_v1_00420917.jpg" lies in "patch8" of the
folder of its part. Some names of classes have stray spaces, and some are misspelt; a table of corrections is
part of Detic's release. "isfake" (a drawing, a statue) and "isreflected" (in a mirror) are ordinary objects.
"""

import csv
import pathlib

from tfrecords.converters import coco
from tfrecords.files import read_text
from tfrecords.schema import DataError
from tfrecords.values import as_int


def build(
    to,
    *,
    images,
    annotations,
    name_fixes=None,
    classes=None,
    rename=None,
    shards=None,
    workers=None,
    strict=False,
    progress=None,
):
    """Convert a part of Objects365: train or val.

    As `coco.build`, without masks, which there are none of.

    Args:
        images:     folder of the part, which has patch0, patch1, ..., or the folder above images/v1.
        name_fixes: table of lines id,name,corrected name (Objects365_names_fix.csv). None: names as they are,
                    without stray spaces.
        to, annotations, classes, rename, shards, workers, strict, progress: see `coco.build`.
    Returns:
        tfrecords.conversion_report.Report
    """
    return coco.convert(
        to,
        Objects365(name_fixes),
        images=images,
        annotations=annotations,
        classes=classes,
        rename=rename,
        with_masks=False,
        shards=shards,
        workers=workers,
        strict=strict,
        progress=progress,
    )


def categories_of(annotations, name_fixes=None, classes=None, rename=None):
    """The classes that `build` gives a data set -> [{"id", "name"}, ...] in label order."""
    return coco.categories_of(annotations, classes, rename, dialect=Objects365(name_fixes))


class Objects365(coco.Dialect):
    """Corrected names and folders of patches."""

    format = "objects365"

    def __init__(self, name_fixes=None):
        self.path = name_fixes and pathlib.Path(name_fixes)
        self.fixed = _fixes(self.path) if self.path else {}

    def source(self):
        return {"name_fixes": self.path and self.path.name}

    def named(self, categories):
        return [{**one, "name": self.fixed.get(one["id"], one["name"])} for one in categories]

    def completed(self, job, entry, number_of, folder):
        parts = job["file_name"].split("/")
        for name in (job["file_name"], "/".join(parts[-2:]), parts[-1]):
            if name and (folder.folder / name).is_file():
                return {**job, "file_name": name}
        return job


def _fixes(path):
    """{category id: corrected name} of a table of id,name,corrected name."""
    fixed = {}
    for number, row in enumerate(csv.reader(read_text(path).splitlines()), 1):
        if not row:
            continue
        if len(row) != 3 or as_int(row[0]) is None or not row[2].strip():
            raise DataError(f"{path}, line {number}: not id,name,corrected name")
        fixed[as_int(row[0])] = row[2].strip()
    return fixed
