"""A detector in two stages: backbone, neck, proposer, RoI head, selection, and maybe a mask head."""

import keras
from keras import ops

from kgarden.models.base.detector import Detector
from kgarden.ops.random import hash_uniform
from kgarden.structures import BOXES, IMAGE_ID, SCORES, SIZE_HW, SOURCE, VALID


class AsProposer(keras.layers.Layer):
    """Any dense head that looks for one class of things, with a selection, as the first stage.

    Args:
        head:        dense head, see kgarden/models/base/detector.py; its candidates have C = 1.
        train, test: Selection of the proposals, of P rows each.
    """

    def __init__(self, head, train, test, **kwargs):
        super().__init__(**kwargs)
        self.head = head
        self.train = train
        self.test = test

    @property
    def loss_names(self):
        return self.head.loss_names

    def build(self, pyramid_shapes):
        self.head.build(pyramid_shapes)

    def call(self, pyramid, training=False):
        return self.head(pyramid, training=training)

    def losses(self, raw, y, step=None):
        return self.head.losses(raw, y, step=step)

    def proposals(self, raw, size_hw, training):
        """Proposals as in kgarden.structures, without gradient.

        "probability" (B, P) is P(O = 1) of each, where the head's candidates carry one.
        """
        candidates = self.head.candidates(raw, size_hw)
        found = (self.train if training else self.test)(candidates)
        proposals = {key: ops.stop_gradient(found[key]) for key in (BOXES, SCORES, VALID)}
        if candidates.get("probability") is not None:
            rows = ops.maximum(found[SOURCE], 0)
            probability = ops.take_along_axis(candidates["probability"][..., 0], rows, axis=1)
            proposals["probability"] = ops.stop_gradient(probability)
        return proposals


class TwoStage(Detector):
    """Two-stage detector.

    Args:
        proposer:  AsProposer, or anything with its methods.
        roi_head:  see kgarden/models/base/detector.py.
        selection: kgarden.heads.selection.Selection of the final detections.
        mask_head: see there; None: boxes alone.
    """

    def __init__(self, *, proposer, roi_head, selection, mask_head=None, **kwargs):
        super().__init__(**kwargs)
        self.proposer = proposer
        self.roi_head = roi_head
        self.selection = selection
        self.mask_head = mask_head

    def parts(self):
        parts = {**super().parts(), "proposer": self.proposer, "roi_head": self.roi_head}
        return parts if self.mask_head is None else {**parts, "mask_head": self.mask_head}

    def call(self, x, training=False):
        pyramid = self.pyramid(x, training)
        return {"pyramid": pyramid, "proposer": self.proposer(pyramid, training=training)}

    def loss_terms(self, x, y, raw, training):
        def random(n):
            return hash_uniform(self.seed, self.step, y[IMAGE_ID], n)

        proposals = self.proposer.proposals(raw["proposer"], x[SIZE_HW], training=True)
        sampled = self.roi_head.sample(proposals, y, random)
        refined = self.roi_head(raw["pyramid"], sampled, x[SIZE_HW], training=True)
        step = self.step if training else None
        y = {**y, SIZE_HW: x[SIZE_HW]}  # RPN may leave out anchors that reach out of the picture
        terms = self.proposer.losses(raw["proposer"], y, step=step) | self.roi_head.losses(refined, y)
        if self.mask_head is None:
            return terms
        return terms | self.mask_head.losses(raw["pyramid"], sampled, y)

    def candidates(self, x, raw):
        proposals = self.proposer.proposals(raw["proposer"], x[SIZE_HW], training=False)
        refined = self.roi_head(raw["pyramid"], proposals, x[SIZE_HW], training=False)
        return self.roi_head.candidates(refined, proposals, x[SIZE_HW])

    def masks(self, raw, detections):
        return self.mask_head.masks(raw["pyramid"], detections)
