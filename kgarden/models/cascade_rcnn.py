"""Cascade R-CNN's second stage: box heads in a row, each refining the boxes of the one before.

Cai and Vasconcelos 2017, arXiv:1712.00726, section 4, as detectron2 and CenterNet2 have it: sampling
before the first head only, all refined boxes go on, each head with its own IoU threshold and delta
weights; the gradient into the pooled features is divided by the number of heads; at test the class
probabilities of all heads are averaged, boxes come from the last.

    paper                       here
    H1, H2, H3                  CascadeHead.box_heads
    u = 0.5, 0.6, 0.7           `ious` (CenterNet2: 0.6, 0.7, 0.8)
    B0 -> B1 -> B2 -> B3        "boxes" of raw["stages"], then `candidates`
"""

import keras
from keras import ops

from kgarden.heads.roi_features import RoIFeatures
from kgarden.models.faster_rcnn import (
    FUSIONS,
    OWN,
    BoxHead,
    Coder,
    class_probability,
    clip_groups,
    decode,
    fuse_scores,
    stage_losses,
)
from kgarden.ops import boxes as box_ops
from kgarden.schema import BOXES, SCORES, VALID, UserError
from kgarden.targets.roi import sample_rois

DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class CascadeHead(keras.layers.Layer):
    """Box heads in a row, class-agnostic boxes.

    Args:
        strides, num_classes, num_samples, positive_fraction, fuse, roi_levels, pool_size,
        sampling_ratio, width, num_fcs, sigmoid, box_beta: see FasterHead.
        ious:          foreground threshold of each stage; as many stages as thresholds.
        delta_weights: factors on the deltas of each stage.
    """

    def __init__(
        self,
        strides,
        num_classes,
        ious=(0.5, 0.6, 0.7),
        delta_weights=DELTA_WEIGHTS,
        num_samples=512,
        positive_fraction=0.25,
        fuse="off",
        roi_levels=None,
        pool_size=7,
        sampling_ratio=0,
        width=1024,
        num_fcs=2,
        sigmoid=False,
        box_beta=0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        if fuse not in FUSIONS:
            raise UserError(f"model.roi_head.fuse {fuse!r}: one of {', '.join(FUSIONS)}")
        if len(ious) > len(delta_weights):
            raise UserError(f"model.roi_head: {len(ious)} ious but {len(delta_weights)} delta_weights")
        self.num_classes = num_classes
        self.ious = tuple(ious)
        self.coders = [Coder(tuple(weights)) for weights in delta_weights][: len(ious)]
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.fuse = fuse
        self.sigmoid = sigmoid
        self.box_beta = box_beta
        self.pool = RoIFeatures(strides, roi_levels, pool_size, sampling_ratio, name="pool")
        self.box_heads = [
            BoxHead(num_classes, width, num_fcs, True, sigmoid, name=f"box_head{stage}")
            for stage in range(len(ious))
        ]

    @property
    def loss_names(self):
        return [f"stage{stage}/{what}" for stage in range(len(self.ious)) for what in ("class", "box")]

    def build(self, pyramid_shapes):
        for head in self.box_heads:
            head.build((None, None, self.pool.size, self.pool.size, pyramid_shapes[0][-1]))

    def sample(self, proposals, y, random):
        """RoIs to learn from; see kgarden/targets/roi.py."""
        return sample_rois(proposals, y, self.ious[0], self.num_samples, self.positive_fraction, random)

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"stages": for each box head {"logits", "deltas", "boxes", "valid"}}, boxes being its input."""
        boxes, valid, stages = proposals[BOXES], proposals[VALID], []
        before = None  # coder of the stage before
        for head, coder in zip(self.box_heads, self.coders, strict=True):
            if stages:
                refined = decode(stages[-1], before)[:, :, 0]
                boxes = ops.stop_gradient(box_ops.clip(refined, size_hw))
                if training:
                    valid = valid & (box_ops.area(boxes) > 0)
            features = self.pool(pyramid, boxes)
            if training:
                features = scale_gradient(features, 1.0 / len(self.box_heads))
            logits, deltas = head(features)
            stages.append({"logits": logits, "deltas": deltas, BOXES: boxes, VALID: valid})
            before = coder
        return {"stages": stages}

    def losses(self, raw, y):
        """Terms stage<k>/class and stage<k>/box; every stage matches its own boxes anew."""
        terms = []
        for stage, iou, coder in zip(raw["stages"], self.ious, self.coders, strict=True):
            terms += stage_losses(stage, y, iou, coder, self.num_classes, self.sigmoid, self.box_beta)
        return dict(zip(self.loss_names, terms, strict=True))

    def answers(self, raw, size_hw):
        """{OWN: {"boxes": (B, P, 4) of the last stage, "scores": (B, P, C) mean of all stages}}."""
        stages = raw["stages"]
        boxes = clip_groups(decode(stages[-1], self.coders[-1]), size_hw)
        probability = sum(class_probability(stage["logits"], self.sigmoid) for stage in stages) / len(stages)
        return {OWN: {BOXES: boxes, SCORES: probability}}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) of the last stage; mean probability of all, fused with the proposal's."""
        own = self.answers(raw, size_hw)[OWN]
        scores = fuse_scores(own[SCORES], proposals, self.fuse)
        return {BOXES: own[BOXES], SCORES: scores, VALID: proposals[VALID][..., None]}


def scale_gradient(x, factor):
    """x itself, but its gradient times `factor`."""
    return x * factor + ops.stop_gradient(x * (1.0 - factor))
