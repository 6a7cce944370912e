"""Two-stage detectors: backbone, neck, proposer, RoI head, selection and an optional mask head."""

import keras
from keras import ops

from kgarden.config.instantiate import instantiate
from kgarden.heads.selection import Selection
from kgarden.models.base.detector import Detector
from kgarden.ops.gather import gather
from kgarden.ops.random import hash_uniform
from kgarden.structures import BOXES, IMAGE_ID, SCORES, SIZE_HW, SOURCE, VALID


class AsProposer(keras.layers.Layer):
    """A class-agnostic dense head and a selection as the first stage.

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
        self.channels = pyramid_shapes[0][-1]
        self.head.build(pyramid_shapes)

    def call(self, pyramid, training=False):
        first = [level[..., : self.channels] for level in pyramid]  # of two pyramids, see necks/twin.py
        return self.head(first, training=training)

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
            probability = gather(candidates["probability"], rows)[..., 0]
            proposals["probability"] = ops.stop_gradient(probability)
        return proposals


@keras.saving.register_keras_serializable("kgarden")
class TwoStage(Detector):
    """Two-stage detector: proposals, each classified and refined by a RoI head.

    Args:
        proposer:  AsProposer, or anything with its methods.
        roi_head:  see kgarden/models/base/detector.py.
        selection: kgarden.heads.selection.Selection of the final detections.
        fuse:      function (scores (B, P, C), proposals) -> scores (B, P, C) that combines the RoI head's
                   class probabilities with the proposals' scores; None: the RoI head's alone.
        mask_head: see there; None: boxes alone.
    """

    def __init__(self, *, proposer, roi_head, selection, fuse=None, mask_head=None, **kwargs):
        super().__init__(**kwargs)
        self.proposer = proposer
        self.roi_head = roi_head
        self.selection = selection
        self.fuse = fuse
        self.mask_head = mask_head

    def parts(self):
        parts = {**super().parts(), "proposer": self.proposer, "roi_head": self.roi_head}
        return parts if self.mask_head is None else {**parts, "mask_head": self.mask_head}

    def call(self, x, training=False):
        pyramid = self.pyramid(x, training)
        return {"pyramid": pyramid, "proposer": self.proposer(pyramid, training=training)}

    def candidates(self, x, raw):
        """Boxes and scores of every proposal; with `call` before and the selection behind, all of inference.

        images -> pyramid -> proposals -> RoI head -> class scores, fused -> selection -> detections -> masks
        """
        return self.classified(x, raw, self.proposals(x, raw))

    def proposals(self, x, raw):
        """Proposals of inference, as in kgarden.structures."""
        return self.proposer.proposals(raw["proposer"], x[SIZE_HW], training=False)

    def classified(self, x, raw, proposals):
        """Candidates of given proposals, such as those of several views; px of the network input."""
        predictions = self.refined(x, raw, proposals)
        return self.fused(self.roi_head.candidates(predictions, proposals, x[SIZE_HW]), proposals)

    def refined(self, x, raw, proposals):
        """Raw outputs of the RoI head for given proposals, in inference."""
        return self.roi_head(raw["pyramid"], proposals, x[SIZE_HW], training=False)

    def fused(self, candidates, proposals):
        """The RoI head's candidates with their final scores."""
        if self.fuse is None:
            return candidates
        return {**candidates, SCORES: self.fuse(candidates[SCORES], proposals)}

    def masks(self, raw, detections):
        return self.mask_head.masks(raw["pyramid"], detections)

    def loss_terms(self, x, y, raw, training):
        def random(n):
            return hash_uniform(self.seed, self.step, y[IMAGE_ID], n)

        pyramid, size_hw = raw["pyramid"], x[SIZE_HW]
        proposals = self.proposer.proposals(raw["proposer"], size_hw, training=True)
        sampled = self.roi_head.sample(proposals, y, random)
        predictions = self.roi_head(pyramid, sampled, size_hw, training=True)
        y = {**y, SIZE_HW: size_hw}  # RPN may ignore anchors that cross the border of the image
        terms = self.proposer.losses(raw["proposer"], y, step=self.step if training else None)
        terms |= self.roi_head.losses(predictions, y)
        if self.mask_head is not None:
            terms |= self.mask_head.losses(pyramid, sampled, y)
        return terms


def roi_selection(settings, where="model.selection", **defaults):
    """Builds the selection behind a RoI head: no limit for each level, NMS on the best 4096 pairs."""
    return instantiate(Selection, {"per_level": None, "pool": 4096, **defaults, **(settings or {})}, where)
