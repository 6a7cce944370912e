"""A detector with a dense head alone: backbone, neck, dense head, selection, and maybe a mask head."""

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import instantiate
from kgarden.heads.selection import Selection
from kgarden.layers.pixels import pixel_settings
from kgarden.models.base.detector import Detector
from kgarden.necks import make_neck
from kgarden.structures import MASKS


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
        terms = self.dense_head.losses(raw, y, step=self.step if training else None)
        if self.mask_head is None:
            return terms
        return terms | self.mask_head.losses(raw[MASKS], y, self.dense_head, raw)

    def candidates(self, x, raw):
        return self.dense_head.candidates(raw, x["size_hw"])

    def masks(self, raw, detections):
        return self.mask_head.masks(raw[MASKS], detections)


def dense_detector(name, head, num_classes, seed, backbone, neck, dense_head, selection, pixels):
    """A paper's dense head with its neck and selection: the frame of builders.

    Args:
        name:        of the model.
        head:        class of the dense head, of the form of kgarden/heads/dense.py.
        num_classes: C.
        seed:        of random choices in training.
        backbone, neck, dense_head, selection, pixels: names or settings of the parts.
    Returns:
        OneStage.
    """
    neck = make_neck({"name": "fpn", "channels": 256, **(neck or {})})
    settings = {"width": neck.channels, **(dense_head or {})}
    return OneStage(
        backbone=make_backbone(backbone),
        neck=neck,
        dense_head=instantiate(
            head, settings, "model.dense_head", strides=neck.strides, num_classes=num_classes
        ),
        selection=instantiate(Selection, selection or {}, "model.selection"),
        pixels=pixel_settings(pixels),
        num_classes=num_classes,
        seed=seed,
        name=name,
    )
