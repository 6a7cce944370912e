"""Detector: the base class of all models, a keras.Model with `fit`, losses and detection.

`call` returns raw outputs; `compute_loss` turns them and the ground truth into named terms; `detect`
turns them into detections. Parts fill slots; a paper is a choice of parts (kgarden/models/<paper>.py),
never a subclass.

    part         call                                      what it also offers
    backbone     (images) -> [C2..C5]                      strides, channels
    neck         ([C2..C5]) -> pyramid                     strides, levels, channels
    dense head   (pyramid) -> raw                          losses(raw, y, step), candidates(raw, size_hw)
    proposer     as a dense head                           proposals(raw, training)
    RoI head     (pyramid, proposals, size_hw) -> raw      sample, losses(raw, y), candidates(raw, proposals)
    selection    (candidates) -> detections
    mask head    of a dense head:
                 (pyramid, raw) -> raw of its own          losses(raw, y, dense_head, dense_raw, random),
                                                           masks(raw, detections)
                 of a RoI head:                            losses(pyramid, sampled, y),
                                                           masks(pyramid, detections)

A mask head may be missing. It draws after the selection, for the detections that are left. That of a dense
head reads from `source` where each came from, and its raw outputs are raw["masks"]; that of a RoI head looks
at the pyramid again, under the boxes that are left, and learns from the RoIs that were sampled.

`step` is the number of the step in training and None while evaluating; only a head whose losses remember
earlier steps looks at it. FCOS, ATSS, GFL and RetinaNet are heads of one form (kgarden/heads/dense.py):
their raw outputs carry the towers' features, and `boxes(raw)`, `score_logits(raw)`, `assign(raw, y)` and
`candidate_mask(raw, y, rule)` tell what lies at each place, so that another head
can be laid over any of them.

Terms are float32 scalars named "<part>/<what>", sums over this replica divided by a normaliser over
all replicas, times the number of replicas: their mean over replicas is the loss of the global batch.
"""

import importlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import keras

from kgarden.backbones import make_backbone
from kgarden.backbones.adapted import AdaptedBackbone
from kgarden.config.loading import recipe_from
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.heads.selection import clipped
from kgarden.layers.pixels import Normalize, pixel_settings, pixels_of_preset
from kgarden.layers.precision import dtype_policy_scope
from kgarden.models.base.batches import inputs_of, training_data, validation_pair
from kgarden.models.base.non_finite import FirstNonFiniteStep
from kgarden.models.base.part_shapes import part_shapes, shown_in_summary
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops import replicas
from kgarden.structures import IMAGES, MASKS, SIZE_HW

SUMMARY_SIDE = 512  # px, of the canvas of `summary`
ABSTRACT = "a subclass implements this; use OneStage or TwoStage"


class Detector(StaticShapeModel):
    """Pixels, backbone, neck, and the slots that subclasses add.

    Args:
        backbone, neck: layers as above.
        pixels:      {"mean", "std", "order"}: what the backbone was trained with.
        num_classes: C.
        seed:        of every random choice in training.
        divisor:     canvases must be divisible by it; None: that of the neck.
    """

    mask_head = None
    builder: Callable | None = None  # `kgarden.models.build_detector`, which sets it
    reports_first_bad_step = False  # whether logs have "first_bad_step", which the trainer reads
    origin: str | None = None  # the builder's arguments as JSON, for .keras files; None: some are layers
    recipe: Recipe | None = None  # what it is trained with; gives image sizes to Predictor and export
    _categories: str | None = None  # as JSON, which Keras does not wrap

    def __init__(self, backbone, neck, pixels, num_classes, seed=0, divisor=None, **kwargs):
        super().__init__(**kwargs)
        self.pixels = Normalize(**pixels, name="pixels")
        self.backbone = backbone
        self.neck = neck
        self.num_classes = num_classes
        self.seed = seed
        self.divisor = divisor or getattr(neck, "divisor", 32)

    @property
    def categories(self) -> list[dict] | None:
        """The classes, [{"id": of the data set, "name"}, ...] in label order; None: not known."""
        return None if self._categories is None else json.loads(self._categories)

    @categories.setter
    def categories(self, categories):
        categories = [{"id": int(one["id"]), "name": str(one["name"])} for one in categories]
        if len(categories) != self.num_classes:
            raise UserError(f"{len(categories)} classes, the detector has {self.num_classes}")
        self._categories = json.dumps(categories)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in label order; None: not known. Set, they give the classes the ids 0..C-1."""
        return None if self._categories is None else [one["name"] for one in self.categories]

    @class_names.setter
    def class_names(self, names):
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise UserError(f"class_names: a list of strings is needed, not {names!r}")
        self.categories = [{"id": number, "name": name} for number, name in enumerate(names)]

    # The slots. OneStage and TwoStage fill them.

    def parts(self):
        """The parts in the order of the data.   dict name -> layer."""
        return {"backbone": self.backbone, "neck": self.neck}

    def loss_terms(self, x, y, raw, training):
        """Named terms of the loss.   dict name -> () float32."""
        raise NotImplementedError(ABSTRACT)

    def candidates(self, x, raw):
        """Everything that the model proposes as an answer, before selection."""
        raise NotImplementedError(ABSTRACT)

    def masks(self, raw, detections):
        """What the mask head draws for detections.   (B, K, S, S) float32, as in kgarden.structures."""
        raise NotImplementedError(ABSTRACT)

    # What Keras asks for.

    def build(self, input_shape=None):
        """Create every variable, also those that only the loss uses, and the counters of the terms."""
        self.pixels.build((None, None, None, 3))
        self.backbone.build((None, None, None, 3))
        self.neck.build([(None, None, None, width) for width in self.backbone.channels])
        pyramid = [(None, None, None, self.neck.channels)] * len(self.neck.strides)
        for name, part in self.parts().items():
            if name not in ("backbone", "neck"):
                part.build(pyramid)
        # Steps trained: what random choices depend on, besides the seed and the image.
        self.step = self.add_weight(
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            name="step",
            aggregation="only_first_replica",
        )
        self.terms = {name: keras.metrics.Mean(name=name) for name in self.loss_names}
        self.first_bad = FirstNonFiniteStep()
        self.built = True

    @property
    def loss_names(self):
        """Names of all terms, in a fixed order."""
        return [name for part in self.parts().values() for name in getattr(part, "loss_names", ())]

    def pyramid(self, x, training=False):
        """Levels of the neck, finest first."""
        self._check_canvas(x[IMAGES])
        pixels = self.pixels(x[IMAGES], x[SIZE_HW])
        return self.neck(self.backbone(pixels, training=training), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The weighted sum of all terms, divided by the number of parts of the batch, which are summed."""
        terms = self.loss_terms(x, y, y_pred, training)
        if terms.keys() != self.terms.keys():
            raise RuntimeError(f"terms {sorted(terms)} are not those announced, {sorted(self.terms)}")
        for name, term in terms.items():
            self.terms[name].update_state(term)
        loss = sum(terms.values())
        if training:
            self.step.assign_add(1)
            self.first_bad.update_state(self.step, loss)
        return loss / replicas.num_batch_parts()

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        if not self.reports_first_bad_step:
            logs.pop(self.first_bad.name, None)
        return logs

    def detect(self, x, raw):
        """Detections in px of the network input, clipped to the image, padded to K."""
        found = self.select(x, self.candidates(x, raw))
        if self.mask_head is not None:
            found[MASKS] = self.masks(raw, found)
        return found

    def select(self, x, candidates):
        """Detections among candidates as in `detect`, without masks."""
        return clipped(self.selection(candidates), x[SIZE_HW])

    def inference_model(self):
        """This detector as a keras.Model x -> detections."""
        return InferenceModel(self)

    def freeze(self, patterns):
        """Stop training every layer whose path fits one of the regular expressions.

        Args:
            patterns: searched in paths such as "backbone/res2_0/conv1".
        Raises:
            UserError: a pattern that fits nothing.
        """
        layers = self._flatten_layers(include_self=False)
        paths = {(layer.path or layer.name).split("/", 1)[-1]: layer for layer in layers}
        for pattern in patterns:
            found = [layer for path, layer in paths.items() if re.search(pattern, path)]
            if not found:
                raise UserError(f"freeze: {pattern!r} fits no layer; see `kgarden describe`")
            for layer in found:
                layer.trainable = False

    def summary(self, canvas: tuple[int, int] | None = None, **options) -> None:
        """Prints Keras' summary, with the output shapes on one canvas.

        Args:
            canvas:  (height, width) px; None: the first that the recipe names, or about 512 x 512.
            options: as in keras.Model.summary.
        """
        if canvas is None:
            canvases = self.recipe and self.recipe.data.canvases
            canvas = canvases[0] if canvases else [-(-SUMMARY_SIDE // self.divisor) * self.divisor] * 2
        with shown_in_summary(part_shapes(self, tuple(canvas))):
            super().summary(**options)

    # .keras files: the builder's arguments, the recipe, the classes, and the weights.

    def save(self, filepath: str | os.PathLike, **options) -> None:
        """Saves a .keras file; `keras.saving.load_model` reads it after `from kgarden import Detector`.

        The file holds the weights, how the detector is built, its recipe and its classes, but no optimizer:
        to resume a training, use `kgarden train`.

        Args:
            filepath: ends with .keras.
            options:  as in keras.Model.save.
        """
        if not str(filepath).endswith(".keras"):
            raise UserError(
                f"{filepath}: detectors are saved as .keras; use save_weights for .weights.h5, and kgarden "
                f"export RUN to serve without Keras"
            )
        super().save(filepath, **options)

    def get_config(self):
        if self.origin is None:
            raise UserError(
                "only detectors that are built from settings alone can be saved as .keras; use "
                "save_weights('NAME.weights.h5') and load_weights on a detector that is built in the same way"
            )
        return {
            **json.loads(self.origin),
            "pixels": {"mean": self.pixels.mean, "std": self.pixels.std, "order": self.pixels.order},
            "recipe": None if self.recipe is None else {**self.recipe.plain(), "rows": {}},
            "categories": self.categories,
        }

    @classmethod
    def from_config(cls, config):
        with dtype_policy_scope(config["precision"]):
            detector = Detector.builder(config["settings"], config["num_classes"], config["seed"])
        if (pixels := config.get("pixels")) is not None:  # those that the weights were trained with
            detector.pixels.mean, detector.pixels.std = pixels["mean"], pixels["std"]
            detector.pixels.order = pixels["order"]
        if (recipe := config.get("recipe")) is not None:
            detector.recipe = recipe_from(recipe, "the recipe in the .keras file")
        if (categories := config.get("categories")) is not None:
            detector.categories = categories
        return detector

    def get_build_config(self):
        return None  # the builder builds

    def get_compile_config(self):
        return None

    def export(
        self,
        path: str | os.PathLike,
        format: str = "saved_model",
        *,
        canvases: Sequence[tuple[int, int]] | None = None,
        batch: int | None = None,
    ) -> pathlib.Path:
        """Exports the detector to PATH/1/, or the next free version number, as `kgarden export` does.

        It need not have been called, compiled or trained. The export computes in float32.

        Args:
            path:     parent of the version directory.
            format:   "saved_model", "onnx" or "litert".
            canvases: [(height, width), ...] of ONNX and LiteRT files; None: all of the recipe.
            batch:    batch size of ONNX and LiteRT files; None: 1.
        Returns:
            path of the version directory.
        Raises:
            UserError: the detector has no recipe, the format is unknown or does not support the model, `path`
                       cannot be written to, or the backend is JAX.
        """
        if keras.backend.backend() != "tensorflow":
            raise UserError(
                f"export does not support KERAS_BACKEND={keras.backend.backend()}: save the detector as "
                f".keras, and export that on the TensorFlow backend"
            )
        # The writers are above the models: they are imported when they are asked for.
        writers = importlib.import_module("kgarden.exporters.export_formats")
        return writers.export_detector(self, path, format=format, canvases=canvases, batch=batch)

    # fit, evaluate and predict, on batches as Keras users have them.

    def fit(self, x=None, y=None, *arguments, validation_data=None, **settings):
        """As keras.Model.fit.

        Args:
            x, y: images (B, H, W, 3), or {"images", "size_hw"}, and {"boxes": (B, M, 4) xyxy px, "labels":
                  (B, M)}, padded by label -1 or as lists of arrays; or a tf.data.Dataset of such batches, or
                  of `kgarden.build_datasets`. The rest of what kgarden.structures names is filled in.
            validation_data: (x, y) or a data set, likewise.
        Raises:
            UserError: ground truth is missing, of another form, or out of range.
        """
        x, y = training_data(x, y, self)
        validation_data = validation_pair(validation_data, self)
        return super().fit(x, y, *arguments, validation_data=validation_data, **settings)

    def evaluate(self, x=None, y=None, *arguments, **settings):
        """As keras.Model.evaluate, for losses; x and y as in `fit`. For AP see kgarden.CocoMetrics."""
        x, y = training_data(x, y, self)
        return super().evaluate(x, y, *arguments, **settings)

    def predict(self, x, *arguments, **settings):
        """Detections, as keras.Model.predict returns them.

        Args:
            x: images (B, H, W, 3), {"images", "size_hw"}, or a data set whose elements begin with them.
            arguments, settings: as in keras.Model.predict.
        Returns:
            {"boxes": (N, K, 4) xyxy px, "scores", "labels", "valid": (N, K), ...} as NumPy arrays, see
            kgarden.structures. For files and for boxes in px of the original image use kgarden.Predictor.
        """
        return self.inference_model_to_predict().predict(inputs_of(x, self), *arguments, **settings)

    def inference_model_to_predict(self):
        """The `inference_model` of this detector, compiled and kept."""
        if "_predicts" not in self.__dict__:  # not tracked as a layer of this model, which it contains
            self.__dict__["_predicts"] = ready_to_predict(self.inference_model())
        return self.__dict__["_predicts"]

    def _check_canvas(self, images):
        height, width = images.shape[1:3]
        if height % self.divisor or width % self.divisor:
            raise UserError(
                f"canvas {height}x{width}: both sides must be divisible by {self.divisor}; mend data.canvases"
            )


@keras.saving.register_keras_serializable("kgarden")
class InferenceModel(StaticShapeModel):
    """{"images", "size_hw"} -> detections, in px of the network input."""

    def __init__(self, detector, **kwargs):
        super().__init__(**kwargs)
        self.detector = detector
        self.built = True

    def call(self, x, training=False):
        return self.detector.detect(x, self.detector(x, training=False))

    def get_config(self):
        return {"detector": keras.saving.serialize_keras_object(self.detector)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["detector"]))

    def get_compile_config(self):
        return None


def trunk(backbone, neck, pixels):
    """Arguments of a Detector for what all heads share.

    Args:
        backbone: a name, {name, and settings}, or a layer; see kgarden/backbones.
        neck:     a layer of kgarden/necks.
        pixels:   "msra", "torchvision", or {mean, std, order}; see kgarden/layers/pixels.py.
    """
    backbone = make_backbone(backbone)
    if isinstance(backbone, AdaptedBackbone):
        pixels = pixels_of_preset(pixels, backbone.pixels, backbone.source)
    return {"backbone": backbone, "neck": neck, "pixels": pixel_settings(pixels)}
