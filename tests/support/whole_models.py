"""Whole models against the reference files `whole_*`: from images to detections, losses and gradients.

s = params(golden)
x, y = batch_of(examples_of(golden), s["canvas_hw"])
settings = published_settings("retinanet", "detectron2.1x", backbone_widths(s) | {"neck.channels": 64})
detector = build_detector(settings, s["num_classes"])
load_state_dict(detector, golden.state_dict(), TABLE)
step = train_step(detector, x, y)
got = named_maps("head_cls", levels, step.raw["classes"])
got |= named_terms(step.terms, {"fcos/class": "loss_cls", ...})
got |= named_gradients(golden, step.gradients, TABLE)
got |= named_detections("det", detections_of(detector, x, step.raw))
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from support.jit import fast

from kgarden.config.loading import load_recipe
from kgarden.structures import MASK_SIDE
from kgarden.weights.state_dict import our_name


class Example(NamedTuple):
    """One image of a file with its ground truth.

    Attributes:
        image:  (H, W, 3) uint8 RGB.
        boxes:  (n, 4) float32 xyxy px.
        labels: (n,) int.
        masks:  (n, H, W) bool, or None.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def cut(self, size_hw, rows):
        """The top left part of the image, with some of its objects."""
        height, width = size_hw
        masks = None if self.masks is None else self.masks[rows][:, :height, :width]
        return Example(self.image[:height, :width], self.boxes[rows], self.labels[rows], masks)


class Step(NamedTuple):
    """What one forward and backward pass gives: raw outputs, {name: term}, {path: gradient}."""

    raw: Any
    terms: dict
    gradients: dict


# --- batches ------------------------------------------------------------------------------------------------


def examples_of(golden):
    """All images of a file, without objects where it names none.   list of Example."""
    return [_example(golden, number) for number in range(len(golden.matching("image_[0-9]+")))]


def _example(golden, number):
    boxes, labels, masks = (f"gt_{key}_{number}" for key in ("boxes", "classes", "masks"))
    return Example(
        golden[f"image_{number}"],
        golden[boxes].reshape(-1, 4) if boxes in golden else np.zeros((0, 4), "float32"),
        golden[labels] if labels in golden else np.zeros(0, "int32"),
        golden.raw(masks) > 0 if masks in golden else None,
    )


def batch_of(examples, canvas_hw=None, divisor=32, mask_side=MASK_SIDE):
    """Images top left on one canvas, and their padded ground truth, as in kgarden.structures.

    Args:
        examples:  list of Example.
        canvas_hw: px; None: the smallest that holds all images and is divisible by `divisor`.
        mask_side: S of the masks.
    Returns:
        x, y.
    """
    if canvas_hw is None:
        largest = np.max([example.image.shape[:2] for example in examples], axis=0)
        canvas_hw = -(-largest // divisor) * divisor
    count, most = len(examples), max(1, *(len(example.labels) for example in examples))
    x = {
        "images": np.zeros((count, *canvas_hw, 3), "uint8"),
        "size_hw": np.int32([example.image.shape[:2] for example in examples]),
    }
    y = {
        "boxes": np.zeros((count, most, 4), "float32"),
        "labels": np.full((count, most), -1, "int32"),
        "crowd": np.zeros((count, most), bool),
        "image_id": np.arange(count, dtype="int64"),
    }
    if any(example.masks is not None for example in examples):
        y["masks"] = np.zeros((count, most, mask_side, mask_side), bool)
    for row, (image, boxes, labels, masks) in enumerate(examples):
        x["images"][row, : image.shape[0], : image.shape[1]] = image
        y["boxes"][row, : len(labels)] = boxes
        y["labels"][row, : len(labels)] = labels
        for number, box in enumerate(boxes if masks is not None else ()):
            y["masks"][row, number] = _bitmap(masks[number], box, mask_side)
    return x, y


def _bitmap(mask, box, side):
    """A mask over its box, sampled at the centres of the bitmap's cells.   (H, W) -> (S, S)."""
    part = (np.arange(side) + 0.5) / side
    column = np.clip(box[0] + part * (box[2] - box[0]), 0, mask.shape[1] - 1).astype(int)
    row = np.clip(box[1] + part * (box[3] - box[1]), 0, mask.shape[0] - 1).astype(int)
    return mask[row[:, None], column]


# --- models -------------------------------------------------------------------------------------------------


def published_settings(recipe, row, overrides):
    """The `model` section of a published configuration, with other settings laid over it.

    Args:
        recipe, row: name of a packaged recipe and of one of its rows, or None.
        overrides:   {"neck.channels": 64, ...}.
    """
    overrides = {f"model.{key}": value for key, value in overrides.items()}
    model = load_recipe(recipe, row=row, overrides=overrides).model
    return model.model_dump(exclude={"num_classes"})


def backbone_widths(s):
    """Depth and widths of a file's backbone, as `published_settings` takes them."""
    widths = {key: s["backbone"][key] for key in ("stem_channels", "res2_channels", "width_per_group")}
    widths["name"] = f"resnet{s['backbone']['depth']}"
    return {f"backbone.{key}": value for key, value in widths.items()}


# --- forward and backward -----------------------------------------------------------------------------------


def pools_rois(detector):
    """Whether a detector has a second stage, so that its programs are worth optimising."""
    return getattr(detector, "roi_head", None) is not None


def forward(detector, x, training=False):
    """Raw outputs of a detector."""
    return fast(lambda x: detector(x, training=training))(x)


def train_step(detector, x, y):
    """Raw outputs, terms of the loss and gradients of their sum; states that training changes are changed."""

    def loss():
        raw = detector(x, training=True)
        terms = detector.loss_terms(x, y, raw, training=True)
        return sum(terms.values()), (raw, terms)

    variables = detector.trainable_variables
    if keras.backend.backend() == "jax":
        states, optimized = detector.non_trainable_variables, pools_rois(detector)
        raw, terms, gradients = _run_on_jax(loss, variables, states, optimized=optimized)
    else:
        raw, terms, gradients = _run_on_tensorflow(loss, variables)
    terms = {name: ops.convert_to_numpy(term) for name, term in terms.items()}
    paths = [variable.path for variable in variables]
    return Step(raw, terms, dict(zip(paths, map(np.asarray, gradients), strict=True)))


def _run_on_tensorflow(loss, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        total, (raw, terms) = loss()
    sources = [variable.value for variable in variables]
    gradients = tape.gradient(total, sources, unconnected_gradients="zero")
    return raw, terms, [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def _run_on_jax(loss, variables, states, optimized):
    import jax

    def stateless(values, state_values):
        mapping = [*zip(variables, values, strict=True), *zip(states, state_values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            total, found = loss()
        return total, (*found, [scope.get_current_value(state) for state in states])

    at = [[variable.value for variable in group] for group in (variables, states)]
    step = fast(jax.value_and_grad(stateless, has_aux=True), optimized=optimized)
    (_, (raw, terms, after)), gradients = step(*at)
    for state, value in zip(states, after, strict=True):
        if value is not None:
            state.assign(value)
    return raw, terms, gradients


# --- the references' names ----------------------------------------------------------------------------------


def named_maps(name, levels, maps, channels=None):
    """{"name_p3": (B, H, W, D), ...}, or the first channels of each."""
    return {
        f"{name}_{level}": ops.convert_to_numpy(map_)[..., :channels]
        for level, map_ in zip(levels, maps, strict=True)
    }


def named_terms(terms, names):
    """Terms of a loss under other names; a term without one is an error."""
    return {names[name]: ops.convert_to_numpy(term) for name, term in terms.items()}


def named_gradients(golden, gradients, table, pool_size=7, prefix="grad/"):
    """The gradients that a file has, by its names, in our layout.

    Args:
        gradients: {path of a variable: array}.
        table:     of kgarden/weights.
        pool_size: side of the RoI features that "fc1" reads: its rows are put in the file's order.
        prefix:    of the names in the file.
    """
    found = {}
    for name in golden.files:
        if name.startswith(prefix):
            gradient = gradient_named(name.removeprefix(prefix), gradients, table)
            if "fc1." in name and gradient.ndim == 2:
                by_cell = gradient.reshape(pool_size, pool_size, -1, gradient.shape[1])
                gradient = by_cell.transpose(2, 0, 1, 3).reshape(gradient.shape)
            found[name] = gradient.reshape(golden[name].shape) if gradient.size == 1 else gradient
    return found


def gradient_named(name, gradients, table):
    """The gradient of the variable that carries a reference's name, in our layout."""
    module, suffix = our_name(name, table).rsplit(".", 1)
    if module.endswith("]"):
        module, number = module.removesuffix("]").split("[")
        path = next(path for path in gradients if path.endswith(f"/{module}"))
        return gradients[path][int(number)].reshape(1)
    leaves = ("kernel", "gamma") if suffix == "weight" else ("bias", "beta")
    path = next(path for path in gradients for leaf in leaves if path.endswith(f"/{module}/{leaf}"))
    return gradients[path]


# --- detections ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def selecting(detector, **settings):
    """The detector with other settings of its final selection."""
    usual = detector.selection
    detector.selection = dataclasses.replace(usual, **settings)
    try:
        yield detector
    finally:
        detector.selection = usual


def detections_of(detector, x, raw, **settings):
    """Valid detections of each image, in the order of the detector.

    Args:
        raw:      of the detector's call.
        settings: of the final selection, where they differ from the detector's.
    Returns:
        list of {"boxes": (n, 4) px, "scores": (n,), "labels": (n,), ...}, arrays of numpy.
    """
    with selecting(detector, **settings):
        found = fast(detector.detect, optimized=pools_rois(detector))(x, raw)
    found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
    return [
        {key: value[image][valid] for key, value in found.items()}
        for image, valid in enumerate(found["valid"])
    ]


def named_detections(name, detections):
    """{"name_boxes_0": ..., "name_scores_0": ..., "name_classes_0": ...} of `detections_of`."""
    keys = {"boxes": "boxes", "scores": "scores", "labels": "classes"}
    return {
        f"{name}_{theirs}_{image}": found[ours]
        for image, found in enumerate(detections)
        for ours, theirs in keys.items()
    }
