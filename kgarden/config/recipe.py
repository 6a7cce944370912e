"""The recipe and its sections: every key with its type and default.

Architecture settings are not listed here: the keys of `model` other than `name` and `num_classes` are passed
to the builder of the model, which checks them against its arguments.
"""

import hashlib
import json
import pathlib
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from kgarden.config.fields import (
    AsTuple,
    Section,
    as_augment,
    as_canvases,
    as_sides,
    as_sources,
    convention,
    named,
)
from kgarden.config.schedule import Schedule
from kgarden.config.source import Source

PATH_KEYS = {  # hold paths
    *("glob", "labels", "images", "annotations", "root", "classes", "weights", "run"),
    *("descriptions", "image_labels", "hierarchy", "image_counts", "name_fixes"),
}

NOT_IN_DIGEST = {"rows", "loggers"}  # keys of a recipe that do not affect the experiment


class Model(Section):
    """The model. Further keys are arguments of its builder."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str  # `kgarden list models` lists them
    num_classes: PositiveInt | None = None  # None: that of the training data


Sources = Annotated[tuple[Source, ...], BeforeValidator(as_sources), Field(min_length=1)]
Sides = Annotated[tuple[PositiveInt, ...], BeforeValidator(as_sides), Field(min_length=1)]
Canvas = tuple[PositiveInt, PositiveInt]


class Sampling(Section):
    """Sampling of training images."""

    name: Literal["natural", "repeat_factor", "class_aware", "class_rounds"] = "natural"  # natural: all
    threshold: PositiveFloat | None = None  # repeat_factor: rarer classes (fraction of images) are repeated

    @model_validator(mode="after")
    def _whole(self):
        if (self.name == "repeat_factor") != (self.threshold is not None):
            raise ValueError(
                "threshold is required by repeat_factor, and not a parameter of the other samplers"
            )
        return self


class Data(Section):
    """Data sources, image sizes and batches."""

    train: Sources
    val: Sources
    short_side_px: Sides  # one, or several to sample from, or {from, to}
    long_side_px: PositiveInt  # at most; an image whose long side would be larger is resized to it
    test_short_side_px: PositiveInt | None = None  # None: the largest of short_side_px
    test_long_side_px: PositiveInt | None = None  # None: long_side_px
    canvases: Annotated[tuple[Canvas, ...], BeforeValidator(as_canvases)] | None = None  # [height, width]
    test_canvases: Annotated[tuple[Canvas, ...], BeforeValidator(as_canvases)] | None = None  # None: canvases
    max_objects: PositiveInt = 100  # ground-truth boxes of an image, padded; more are dropped
    batch_size: PositiveInt  # over all replicas
    sampling: Annotated[Sampling, BeforeValidator(named)] = Sampling()
    masks: bool = False  # load the objects' masks
    antialias: bool = True  # of resizing
    scaled_decode: bool = False  # let the JPEG decoder downscale images by powers of two
    cache: Literal["none", "encoded", "decoded"] = "none"  # keep records, or resized images, in memory
    keep_empty: bool = False  # also train on images without objects


Metric = Literal["coco", "voc07", "voc_area", "open_images", "lvis"]


class Views(Section):
    """Test-time augmentation: every image at each size, with `flip` also mirrored."""

    short_side_px: Sides | None = None  # None: data.test_short_side_px
    long_side_px: PositiveInt | None = None  # None: data.test_long_side_px
    flip: bool = False  # also the mirrored image

    @property
    def number(self) -> int:
        """Number of views of each image."""
        return len(self.short_side_px or (None,)) * (1 + self.flip)

    @model_validator(mode="after")
    def _whole(self):
        sides = self.short_side_px or ()
        if len(set(sides)) < len(sides):
            raise ValueError("short_side_px lists a size twice")
        return self


class Merge(Section):
    """Merging of the predictions of several views; None: as in the model's selection."""

    convention: Literal["detectron2", "maskrcnn_benchmark", "mmdetection_1"] = "detectron2"  # whose rules
    method: Literal["nms", "soft_nms"] | None = None  # None: the model's, or nms
    iou: Annotated[float, Field(ge=0, le=1)] | None = None  # threshold of the NMS
    soft: Literal["linear", "gaussian"] | None = None  # soft_nms
    sigma: PositiveFloat | None = None  # soft_nms, gaussian
    min_score: NonNegativeFloat | None = None  # soft_nms


class OpenImages(Section):
    """Rules of the metric open_images; they matter where the data has what they are about."""

    # Which detections count: of verified and annotated classes of the image; of annotated ones; also of the
    # first class (TSD's release); all. None: verified if the data has image-level labels, else none
    filter: Literal["verified", "annotated", "release", "none"] | None = None
    hierarchy: bool = True  # repeat objects and detections under the classes above theirs


class Evaluate(Section):
    """Evaluation during and after training."""

    every: PositiveInt | None = None  # steps; None: at the end
    batch_size: PositiveInt = 1  # images at a time
    limit: PositiveInt | None = None  # images of data.val, for evaluation during training
    pictures: NonNegativeInt = 8  # images drawn at the end
    metrics: Annotated[tuple[Metric, ...], AsTuple, Field(min_length=1)] = (
        "coco",
    )  # the first selects the best weights
    max_detections: PositiveInt = 100  # per class and image, that COCO's metrics judge; 100: COCO's own
    open_images: OpenImages = OpenImages()
    views: Views | None = None  # of each image; None: one, at the test size of data
    merge: Annotated[Merge, BeforeValidator(convention)] = Merge()  # of several views

    @property
    def flip(self) -> bool:
        """Whether mirrored views are used."""
        return self.views is not None and self.views.flip

    @model_validator(mode="after")
    def _whole(self):
        if self.merge != Merge() and (self.views is None or self.views.number == 1):
            raise ValueError("merge requires several views; give views several sizes, or flip: true")
        return self


class Init(Section):
    """Initial weights, from a file or a run."""

    weights: str | None = None  # .weights.h5, a file of another project, or "imagenet": of the backbone
    run: str | None = None  # a run directory: its best weights
    parts: Annotated[tuple[str, ...], AsTuple] | None = None  # None: all

    @model_validator(mode="after")
    def _whole(self):
        if (self.weights is None) == (self.run is None):
            raise ValueError("give either weights or run")
        return self


class Row(Section):
    """One row of a paper's table: this recipe with overrides."""

    set: dict[str, Any] = {}  # {dotted key: value}
    reported: dict[str, float] = {}  # {metric: the paper's value}
    evaluates: str | None = None  # re-evaluates the run of that row, without training
    recipe: str | None = None  # another recipe that defines this row
    row: str | None = None  # row of that recipe; None: without overrides

    @model_validator(mode="after")
    def _whole(self):
        if self.row is not None and self.recipe is None:
            raise ValueError(
                "row refers to another recipe; give recipe too, or use evaluates for a row of this one"
            )
        return self


class Recipe(Section):
    """A training: model, data, schedule and evaluation."""

    name: str  # of runs and in reports
    seed: NonNegativeInt = 0  # of weights, order, augmentation and sampling
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"  # dtype policy of Keras
    allow_tf32: bool = True  # False: float32 convolutions and products are true float32 on every GPU
    remat: Annotated[tuple[str, ...], AsTuple] = ()  # parts with rematerialisation (activation checkpointing)
    jit: bool = False  # XLA for the step on TensorFlow; JAX always compiles
    replicas: PositiveInt | Literal["all"] = 1  # devices of this machine
    deterministic: bool = False  # bitwise reproducible on the same machine; slower
    model: Model
    init: Init | None = None
    freeze: Annotated[tuple[str, ...], AsTuple] = ()  # parts that are not trained
    data: Data
    augment: Annotated[tuple[dict[str, dict[str, Any]], ...], BeforeValidator(as_augment)] = (  # transforms
        {"horizontal_flip": {}},
    )
    schedule: Schedule
    stages: tuple[dict[str, Any], ...] = ()  # partial recipes, trained in turn
    evaluate: Evaluate = Evaluate()
    loggers: Annotated[tuple[Literal["csv", "mlflow", "wandb"], ...], AsTuple] = ()  # besides TensorBoard
    rows: dict[str, Row] = {}

    @model_validator(mode="after")
    def _whole(self):
        if not self.allow_tf32 and self.precision != "float32":
            raise ValueError(
                f"allow_tf32: false has no effect on the 16 bits of precision: {self.precision}; "
                f"use precision: float32"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Returns every key with its value, including defaults, as JSON types."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Returns the SHA-256 of the experiment: all keys but NOT_IN_DIGEST, paths by their last two parts.

        The digest does not depend on where the data is stored.
        """
        experiment = {
            key: _without_folders(value) for key, value in self.plain().items() if key not in NOT_IN_DIGEST
        }
        text = json.dumps(experiment, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Returns the resolved recipe as YAML; `load_recipe` reads it back equal."""
        kept = {
            key: value
            for key, value in self.model_dump(mode="json", exclude_none=True).items()
            if key == "augment" or (key != "rows" and value not in ([], {}))
        }
        # an explicit null may differ from the builder's default
        kept["model"] |= {key: None for key, value in (self.model.model_extra or {}).items() if value is None}
        return yaml.safe_dump(kept, sort_keys=False, width=110, allow_unicode=True)


def _without_folders(value, key=None):
    if isinstance(value, dict):
        return {k: v if k == "rename" else _without_folders(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v, key) for v in value]
    if key in PATH_KEYS | {"split"} and isinstance(value, str):
        return "/".join(pathlib.PurePath(value).parts[-2:])
    return value
