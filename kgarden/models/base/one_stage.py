"""One-stage detectors: backbone, neck, dense head, selection and an optional mask head."""

import keras

from kgarden.config.instantiate import instantiate
from kgarden.heads.selection import Selection
from kgarden.models.base.detector import Detector, trunk
from kgarden.necks import make_neck
from kgarden.ops.random import hash_uniform
from kgarden.structures import IMAGE_ID, MASKS, SIZE_HW


@keras.saving.register_keras_serializable("kgarden")
class OneStage(Detector):
    """Dense detector.

    Args:
        dense_head: see kgarden/models/base/detector.py.
        selection:  kgarden.heads.selection.Selection.
        mask_head:  see there; None: boxes alone.
    """

    def __init__(self, *, dense_head, selection, mask_head=None, **kwargs):
        super().__init__(**kwargs)
        self.dense_head = dense_head
        self.selection = selection
        self.mask_head = mask_head

    def parts(self):
        parts = {**super().parts(), "dense_head": self.dense_head}
        return parts if self.mask_head is None else {**parts, "mask_head": self.mask_head}

    def call(self, x, training=False):
        pyramid = self.pyramid(x, training)
        raw = self.dense_head(pyramid, training=training)
        if self.mask_head is None:
            return raw
        return {**raw, MASKS: self.mask_head(pyramid, raw, training=training)}

    def loss_terms(self, x, y, raw, training):
        y = {**y, SIZE_HW: x[SIZE_HW]}  # some heads leave out anchors in the padding
        terms = self.dense_head.losses(raw, y, step=self.step if training else None)
        if self.mask_head is None:
            return terms

        def random(n):
            return hash_uniform(self.seed, self.step, y[IMAGE_ID], n)

        return terms | self.mask_head.losses(raw[MASKS], y, self.dense_head, raw, random=random)

    def candidates(self, x, raw):
        return self.dense_head.candidates(raw, x[SIZE_HW])

    def masks(self, raw, detections):
        return self.mask_head.masks(raw[MASKS], detections)


def dense_detector(
    num_classes,
    *,
    name,
    head,
    seed=0,
    backbone="resnet50",
    neck=None,
    dense_head=None,
    selection=None,
    pixels=None,
):
    """Builds a dense detector from a paper's head; the papers' builders forward to it.

    Args:
        num_classes: C.
        name:        of the model.
        head:        class of the dense head; see kgarden/heads/dense.py.
        seed:        of random choices in training.
        backbone:    a name, or {name, and settings}; see kgarden/backbones.
        neck:        settings of the FPN.
        dense_head:  settings of `head`.
        selection:   settings of the final Selection.
        pixels:      "msra", "torchvision", or {mean, std, order}; see kgarden/layers/pixels.py.
    Returns:
        OneStage.
    """
    neck = make_neck(neck or {})
    settings = {"width": neck.channels, **(dense_head or {})}
    made = dict(strides=neck.strides, num_classes=num_classes)
    return OneStage(
        **trunk(backbone, neck, pixels),
        dense_head=instantiate(head, settings, "model.dense_head", **made),
        selection=instantiate(Selection, selection or {}, "model.selection"),
        num_classes=num_classes,
        seed=seed,
        name=name,
    )
