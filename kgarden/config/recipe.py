"""The sections of a recipe: every key, its type, its default.

Architecture numbers are not listed here: whatever stands under `model` besides `name` and `num_classes` goes
to the model's builder, which knows its own arguments.
"""

import hashlib
import json
import pathlib
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

# keys whose values name files
PATH_KEYS = {"glob", "labels", "images", "annotations", "root", "classes", "weights", "run"}


OTHERS = {"rows", "loggers"}  # keys of a recipe that say nothing of the experiment


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _as_tuple(value):
    """One value or a list of them -> tuple, so that a frozen recipe holds nothing that can change."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


AsTuple = BeforeValidator(_as_tuple)


def _as_sources(value):
    """A glob, a list of globs, a dictionary or a list of dictionaries -> tuple of dictionaries."""
    return tuple({"glob": one} if isinstance(one, str) else one for one in _as_tuple(value))


def _as_canvases(value):
    return tuple(tuple(c) if isinstance(c, list) else c for c in value) if isinstance(value, list) else value


def _named(value):
    return {"name": value} if isinstance(value, str) else value


def _convention(value):
    return {"convention": value} if isinstance(value, str) else value


def _as_augment(value):
    """Names, and names with settings -> tuple of {name: settings}."""
    entries = [{one: {}} if isinstance(one, str) else one for one in _as_tuple(value)]
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or len(entry) != 1
            or not isinstance(next(iter(entry.values())), dict | type(None))
        ):
            raise ValueError(
                f"{entry}: an entry is a name, or a name with settings, as {{mixup: {{alpha: 8}}}}"
            )
    return tuple({name: settings or {} for name, settings in entry.items()} for entry in entries)


class Model(Section):
    """What to build. Further keys are arguments of the builder of that name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str
    num_classes: PositiveInt | None = None  # None: as many as the training data has


# what a source of a format needs, and what it may have
SOURCE_KEYS = {
    None: ({"glob"}, {"labels"}),
    "coco": ({"images", "annotations"}, set()),
    "voc": (set(), {"root", "images", "annotations", "split", "classes", "one_based", "ignore_difficult"}),
    "csv": ({"images", "annotations"}, {"classes"}),
    "shapes": ({"count", "seed"}, {"size_hw"}),
}


class Source(Section):
    """Where pictures come from: shards (`glob`), or raw files to be converted once (`format`)."""

    glob: str | None = None
    labels: str | None = (
        None  # glob: classes of shards that others wrote (.pbtxt, .json, .csv); None: scanned
    )
    weight: PositiveFloat | None = None  # how often it is drawn from; None: by its number of pictures
    format: Literal["coco", "voc", "csv", "shapes"] | None = None
    images: str | None = None  # coco, voc, csv: folder of pictures
    annotations: str | None = None  # coco: json file; voc: folder of XML files; csv: the table
    root: str | None = None  # voc: folder with JPEGImages, Annotations, ImageSets
    split: str | None = None  # voc: a list in ImageSets/Main, or a file of names; None: all
    classes: str | None = None  # voc, csv: file with the classes in label order; None: by alphabet
    one_based: bool | None = None  # voc: the first pixel has the number 1; None: 0
    ignore_difficult: bool | None = None  # voc: such objects are not learned, nor judged by COCO
    count: PositiveInt | None = None  # shapes: how many pictures
    seed: NonNegativeInt | None = None  # shapes: another seed, other pictures
    size_hw: Annotated[tuple[PositiveInt, PositiveInt], AsTuple] | None = None  # shapes: px of the pictures

    @model_validator(mode="after")
    def _whole(self):
        given = {key for key in self.model_fields_set if getattr(self, key) is not None}
        given -= {"weight", "format"}
        needed, possible = SOURCE_KEYS[self.format]
        missing, extra = needed - given, given - needed - possible
        name = f"format: {self.format}" if self.format else "glob"
        if missing:
            raise ValueError(f"a source of format {self.format or 'glob'} needs {', '.join(sorted(missing))}")
        if extra:
            raise ValueError(f"{', '.join(sorted(extra))} mean nothing beside {name}")
        if self.format == "voc" and not ({"root"} <= given or {"images", "annotations"} <= given):
            raise ValueError("a source of format voc needs root, or images and annotations")
        return self


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources), Field(min_length=1)]
Sides = Annotated[tuple[PositiveInt, ...], AsTuple, Field(min_length=1)]
Canvas = tuple[PositiveInt, PositiveInt]


class Sampling(Section):
    """How often each picture of a data set comes."""

    name: Literal["natural", "repeat_factor", "class_aware"] = "natural"
    threshold: PositiveFloat | None = (
        None  # repeat_factor: classes in a smaller share of pictures come more often
    )

    @model_validator(mode="after")
    def _whole(self):
        if (self.name == "repeat_factor") != (self.threshold is not None):
            raise ValueError("repeat_factor needs a threshold, the other kinds of sampling have none")
        return self


class Data(Section):
    train: Sources
    val: Sources
    short_side_px: Sides  # one, or several to draw from
    long_side_px: PositiveInt
    test_short_side_px: PositiveInt | None = None  # None: the largest of short_side_px
    test_long_side_px: PositiveInt | None = None  # None: long_side_px
    canvases: Annotated[tuple[Canvas, ...], BeforeValidator(_as_canvases)] | None = None  # [height, width]
    max_objects: PositiveInt = 100  # ground truth boxes of a picture, padded; more are dropped
    batch_size: PositiveInt  # over all replicas
    sampling: Annotated[Sampling, BeforeValidator(_named)] = Sampling()
    masks: bool = False  # hand out the objects' masks too
    antialias: bool = True
    scaled_decode: bool = False  # let the JPEG decoder halve pictures that are halved anyway
    cache: Literal["none", "encoded", "decoded"] = "none"  # keep records, or resized pictures, in memory
    keep_empty: bool = False  # train on pictures without objects too


class Optimizer(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    momentum: NonNegativeFloat | None = None  # sgd; None: 0.9
    betas: Annotated[tuple[float, float], AsTuple] | None = None  # adamw; None: 0.9, 0.999
    weight_decay: NonNegativeFloat = 0.0
    decay_norms: bool = False
    decay_biases: bool = True
    bias_lr_factor: PositiveFloat = 1.0
    clip_value: PositiveFloat | None = None  # every element of the gradient
    clip_norm: PositiveFloat | None = None  # the norm over the gradients of all weights

    @model_validator(mode="after")
    def _whole(self):
        foreign = "betas" if self.name == "sgd" else "momentum"
        if getattr(self, foreign) is not None:
            raise ValueError(f"{foreign} means nothing to {self.name}: leave it out")
        return self


class Warmup(Section):
    steps: PositiveInt
    factor: NonNegativeFloat  # of the learning rate, at step 0; linear from there


class Decay(Section):
    name: Literal["steps", "cosine"] = "steps"
    at: Annotated[tuple[NonNegativeInt, ...], AsTuple] | None = None
    factor: PositiveFloat | None = None

    @model_validator(mode="after")
    def _whole(self):
        given = self.at is not None, self.factor is not None
        if self.name == "steps" and not all(given):
            raise ValueError("decay in steps needs at and factor")
        if self.name == "cosine" and any(given):
            raise ValueError("at and factor mean nothing beside name: cosine")
        return self


class Ema(Section):
    decay: Annotated[float, Field(gt=0, lt=1)]  # grows towards this value as min(decay, (1 + t) / (10 + t))


class Schedule(Section):
    optimizer: Optimizer = Optimizer()
    base_lr: PositiveFloat
    warmup: Warmup | None = None
    decay: Decay | None = None  # None: constant
    steps: PositiveInt
    micro_batches: PositiveInt = 1  # a batch goes through in so many parts, for one update
    checkpoint_every: PositiveInt | None = None  # steps; one is written after each evaluation in any case
    ema: Ema | None = None


Metric = Literal["coco", "voc07", "voc_area", "open_images"]


class Views(Section):
    """Test-time augmentation: every picture at each size, with `flip` also in a mirror at each."""

    short_side_px: Sides | None = None  # None: data.test_short_side_px
    long_side_px: PositiveInt | None = None  # None: data.test_long_side_px
    flip: bool = False

    @property
    def number(self):
        """How many views of each picture there are."""
        return len(self.short_side_px or (None,)) * (1 + self.flip)

    @model_validator(mode="after")
    def _whole(self):
        sides = self.short_side_px or ()
        if len(set(sides)) < len(sides):
            raise ValueError("short_side_px names a size twice")
        return self


class Merge(Section):
    """How several views become one answer; None: as the model's own selection has it."""

    convention: Literal["detectron2", "maskrcnn_benchmark"] = "detectron2"
    method: Literal["nms", "soft_nms"] | None = None  # None: the model's, nms where it has none
    iou: Annotated[float, Field(ge=0, le=1)] | None = None
    soft: Literal["linear", "gaussian"] | None = None  # soft_nms
    sigma: PositiveFloat | None = None  # soft_nms, gaussian
    min_score: NonNegativeFloat | None = None  # soft_nms


class Evaluate(Section):
    every: PositiveInt | None = None  # steps; None: at the end
    batch_size: PositiveInt = 1
    limit: PositiveInt | None = None  # pictures of data.val, for evaluation while training
    pictures: NonNegativeInt = 8  # drawn at the end
    metrics: Annotated[tuple[Metric, ...], AsTuple, Field(min_length=1)] = ("coco",)  # the first chooses
    views: Views | None = None  # of each picture; None: one, at the test size of data
    merge: Annotated[Merge, BeforeValidator(_convention)] = Merge()  # of several views

    @property
    def flip(self):
        """Whether each picture is seen in a mirror too."""
        return self.views is not None and self.views.flip

    @model_validator(mode="after")
    def _whole(self):
        if self.merge != Merge() and (self.views is None or self.views.number == 1):
            raise ValueError("merge means nothing to one view: give views several sizes, or flip: true")
        return self


class Init(Section):
    weights: str | None = None  # a .weights.h5 file
    run: str | None = None  # a run directory: its best weights
    parts: Annotated[tuple[str, ...], AsTuple] | None = None  # None: all

    @model_validator(mode="after")
    def _whole(self):
        if (self.weights is None) == (self.run is None):
            raise ValueError("give either weights or run")
        return self


class Row(Section):
    """One row of a paper's table: this recipe with some keys set otherwise."""

    set: dict[str, Any] = {}
    reported: dict[str, float] = {}
    evaluates: str | None = None  # scores that row's run again, nothing is trained
    recipe: str | None = None  # the row's system stands in this other recipe
    row: str | None = None  # of that one; None: as it stands

    @model_validator(mode="after")
    def _whole(self):
        if self.row is not None and self.recipe is None:
            raise ValueError("row names one of another recipe: give recipe too, or evaluates for one of this")
        return self


class Recipe(Section):
    name: str
    seed: NonNegativeInt = 0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    remat: Annotated[tuple[str, ...], AsTuple] = ()  # parts whose features are computed again instead of kept
    jit: bool = False  # XLA for the step on TensorFlow; JAX always compiles
    replicas: PositiveInt | Literal["all"] = 1  # devices of this machine that share a batch
    deterministic: bool = False  # the same bits again on the same machine; slower
    model: Model
    init: Init | None = None
    freeze: Annotated[tuple[str, ...], AsTuple] = ()
    data: Data
    augment: Annotated[tuple[dict[str, dict[str, Any]], ...], BeforeValidator(_as_augment)] = (
        {"horizontal_flip": {}},
    )
    schedule: Schedule
    stages: tuple[dict[str, Any], ...] = ()  # partial recipes, run in turn, each from the one before
    evaluate: Evaluate = Evaluate()
    loggers: Annotated[tuple[Literal["csv", "mlflow", "wandb"], ...], AsTuple] = ()  # besides TensorBoard
    rows: dict[str, Row] = {}

    def plain(self):
        """Every key with its value, defaults included, as JSON knows them."""
        return self.model_dump(mode="json")

    def digest(self):
        """sha256 of the experiment: all but OTHERS, and of file names only their last two parts.

        So the same experiment has the same digest wherever its data lies.
        """
        experiment = {
            key: _without_folders(value) for key, value in self.plain().items() if key not in OTHERS
        }
        text = json.dumps(experiment, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self):
        """The resolved recipe; `load_recipe` of it gives an equal one."""
        kept = {
            key: value
            for key, value in self.model_dump(mode="json", exclude_none=True).items()
            if key == "augment" or (key != "rows" and value not in ([], {}))
        }
        # what is null there was chosen, and may not be the builder's default
        kept["model"] |= {key: None for key, value in (self.model.model_extra or {}).items() if value is None}
        return yaml.safe_dump(kept, sort_keys=False, width=110, allow_unicode=True)


def _without_folders(value, key=None):
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v, key) for v in value]
    if key in PATH_KEYS and isinstance(value, str):
        return "/".join(pathlib.PurePath(value).parts[-2:])
    return value
