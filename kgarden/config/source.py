"""The data sources of a recipe: formats of raw data, and the keys of each."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from kgarden.config.fields import AsTuple, Section, as_names

SOURCE_KEYS = {  # format -> (required keys, optional keys)
    None: ({"glob"}, {"labels"}),
    "coco": ({"images", "annotations"}, {"classes", "rename"}),
    "voc": (
        set(),
        {"root", "images", "annotations", "split", "classes", "rename", "one_based", "ignore_difficult"},
    ),
    "csv": ({"images", "annotations"}, {"classes", "rename"}),
    "yolo": ({"annotations"}, {"images", "split", "classes", "rename"}),
    "openimages": (
        {"images", "annotations", "descriptions"},
        {"image_labels", "hierarchy", "classes", "rename"},
    ),
    "lvis": ({"images", "annotations"}, {"classes", "rename"}),
    "objects365": ({"images", "annotations"}, {"name_fixes", "classes", "rename"}),
    "shapes": ({"count", "seed"}, {"size_hw", "num_classes", "zipf"}),
}


class Source(Section):
    """A data source: shards (`glob`), or raw files that are converted once (`format`)."""

    glob: str | None = None  # shards: a folder, a pattern, or several with commas
    labels: str | None = None  # glob: class list of shards of other tools; None: from the records
    weight: PositiveFloat | None = None  # sampling weight; None: its number of images
    format: Literal[tuple(key for key in SOURCE_KEYS if key)] | None = None  # of raw files
    images: str | None = None  # all but shapes: folder of images
    # coco, lvis, objects365: JSON; voc: folder of XML; csv, openimages: table; yolo: data.yaml or folder
    annotations: str | None = None
    descriptions: str | None = None  # openimages: table of class codes and names
    image_labels: str | None = None  # openimages: table of labels that people verified; None: not known
    hierarchy: str | None = None  # openimages: JSON of the class tree; None: no class is above another
    name_fixes: str | None = None  # objects365: table of corrected class names; None: as they are
    root: str | None = None  # voc: folder with JPEGImages, Annotations, ImageSets
    split: str | None = None  # voc: list in ImageSets/Main, or a file of names; yolo: train, val, test
    classes: str | None = None  # class list in label order: chooses and orders; None: all
    rename: Annotated[dict[str, str], BeforeValidator(as_names)] | None = None  # {old class: new class}
    one_based: bool | None = None  # voc: coordinates start at 1; None: at 0
    ignore_difficult: bool | None = None  # voc: exclude them from training and COCO metrics
    count: PositiveInt | None = None  # shapes: number of images
    seed: NonNegativeInt | None = None  # shapes: seed of the images
    size_hw: Annotated[tuple[PositiveInt, PositiveInt], AsTuple] | None = None  # shapes: px
    num_classes: PositiveInt | None = None  # shapes: long-tailed, up to 216; None: six shapes
    zipf: NonNegativeFloat | None = None  # shapes with num_classes: frequencies are 1 / rank^zipf; None: 1

    @model_validator(mode="after")
    def _whole(self):
        present = {key for key in self.model_fields_set if getattr(self, key) is not None}
        present -= {"weight", "format"}
        needed, possible = SOURCE_KEYS[self.format]
        missing, extra = needed - present, present - needed - possible
        name = f"format: {self.format}" if self.format else "glob"
        if missing:
            raise ValueError(
                f"a source of format {self.format or 'glob'} requires {', '.join(sorted(missing))}"
            )
        if extra:
            raise ValueError(f"unexpected {', '.join(sorted(extra))} with {name}; remove it")
        if self.format == "voc" and not ({"root"} <= present or {"images", "annotations"} <= present):
            raise ValueError("a source of format voc requires root, or images and annotations")
        return self
