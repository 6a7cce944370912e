"""Cascade R-CNN: box heads in a row, each refining the boxes of the one before.

Cai and Vasconcelos 2017, arXiv:1712.00726, section 4. Each stage has its own IoU threshold and delta weights
and learns from the boxes of the stage before; boxes are not differentiated through. What proposes is RPN, as
in Faster R-CNN. CascadeHead alone, with detectron2's settings, is CenterNet2's second stage.

    paper                       here
    H1, H2, H3                  CascadeHead.box_heads
    u = 0.5, 0.6, 0.7           `ious` (CenterNet2: 0.6, 0.7, 0.8)
    B0 -> B1 -> B2 -> B3        "boxes" of raw["stages"], then `candidates`
    resampling (4.2)            `resample`, `truth`
    testing by all heads        `ensemble`

What the public implementations do differently, CONVENTIONS:

                                detectron2          mmdetection          the authors' Detectron
    a stage's losses            alike               1, 1/2, 1/4          alike
    gradient into the features  1/3 of each         as it is             1, 1/2, 1/4
    RoIs of stages 1 and 2      all refined ones    drawn anew, objects  all refined ones but
                                                    among them           objects, then objects
    scores                      mean probability    mean logit, then     of all heads on the
                                                    softmax              last RoIs, mean probability
"""

import keras
from keras import ops

from kgarden.config.instantiate import merge_defaults
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.roi_features import RoIFeatures
from kgarden.losses.roi import make_box_loss
from kgarden.models.faster_rcnn import (
    FUSIONS,
    OWN,
    BoxHead,
    Coder,
    class_probability,
    clip_groups,
    decode,
    fuse_scores,
    rcnn,
    stage_losses,
)
from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, CROWD, LABELS, SCORES, VALID, truth_is_valid
from kgarden.targets.roi import are_objects, sample_rois

DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
DECREASING = (1.0, 0.5, 0.25)
CONVENTIONS = {  # of CascadeHead, beside those of kgarden/models/faster_rcnn.py
    "detectron2": {},
    "mmdetection": {
        "delta_weights": (*DELTA_WEIGHTS[:2], (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067)),
        "stage_weights": DECREASING,
        "feature_gradient": 1.0,
        "resample": True,
        "truth": "removed",
        "ensemble": "logits",
        "box_beta": 1.0,
    },
    "maskrcnn_benchmark": {  # the authors' Detectron, which has these boxes and losses
        "feature_gradient": DECREASING,
        "truth": "added_again",
        "ensemble": "last_rois",
    },
}
RPN = {"detectron2": {}, "mmdetection": {"box_beta": 1 / 9, "straddle": 0.0}, "maskrcnn_benchmark": {}}
PROPOSALS = {"train": {"total": 2000}, "test": {}}
TRUTH, RANDOM = "truth", "random"  # keys of a sample, for later stages
TRUTHS = ("kept", "removed", "added_again")
ENSEMBLES = ("probability", "logits", "last_rois", "last")


class CascadeHead(keras.layers.Layer):
    """Box heads in a row, class-agnostic boxes.

    Args:
        strides, num_classes, num_samples, positive_fraction, fuse, roi_levels, pool_size, sampling_ratio,
        width, num_fcs, sigmoid, box_beta, aligned, clamp_below, plus_one, box_loss: see FasterHead.
        ious:             foreground threshold of each stage; as many stages as thresholds.
        delta_weights:    factors on the deltas of each stage.
        stage_weights:    factors on the losses of each stage; None: 1.
        feature_gradient: factor on the gradient into the pooled features, or one for each stage; None: one
                          over the number of stages.
        resample:         later stages draw `num_samples` of the refined boxes and the objects, as the first
                          one does of the proposals; otherwise they learn from all refined boxes.
        truth:            objects among the RoIs of the stage before are "kept" and refined like others;
                          "removed"; or removed and "added_again" as they are.
        ensemble:         whose scores count: the mean "probability" of all stages, each on its own RoIs; the
                          softmax of their mean "logits"; the mean probability of all heads on the
                          "last_rois"; or the "last" stage's.
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
        box_loss="smooth_l1",
        aligned=True,
        clamp_below=False,
        plus_one=False,
        stage_weights=None,
        feature_gradient=None,
        resample=False,
        truth="kept",
        ensemble="probability",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.fuse", fuse, FUSIONS)
        one_of("roi_head.truth", truth, TRUTHS)
        one_of("roi_head.ensemble", ensemble, ENSEMBLES)
        if resample and truth == "added_again":
            raise UserError("model.roi_head.truth 'added_again': a draw (resample) has the objects anyway")
        self.num_classes = num_classes
        self.ious = tuple(ious)
        weights = self._of_stages("delta_weights", delta_weights)
        self.coders = [Coder(tuple(of_stage), clamp_below, plus_one) for of_stage in weights]
        self.stage_weights = self._of_stages("stage_weights", stage_weights or 1.0)
        share = 1.0 / len(self.ious) if feature_gradient is None else feature_gradient
        self.feature_gradient = self._of_stages("feature_gradient", share)
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.resample, self.truth = resample, truth
        self.fuse, self.ensemble = fuse, ensemble
        self.sigmoid = sigmoid
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.pool = RoIFeatures(
            strides, roi_levels, pool_size, sampling_ratio, aligned, plus_one=plus_one, name="pool"
        )
        self.box_heads = [
            BoxHead(num_classes, width, num_fcs, True, sigmoid, name=f"box_head{stage}")
            for stage in range(len(self.ious))
        ]

    def _of_stages(self, name, values):
        """A value for each stage; a single number is that of all.   tuple"""
        if isinstance(values, int | float):
            return (float(values),) * len(self.ious)
        if len(values) < len(self.ious):
            raise UserError(f"model.roi_head: {len(self.ious)} ious but {len(values)} {name}")
        return tuple(values)[: len(self.ious)]

    @property
    def loss_names(self):
        return [f"stage{stage}/{what}" for stage in range(len(self.ious)) for what in ("class", "box")]

    def build(self, pyramid_shapes):
        for head in self.box_heads:
            head.build((None, None, self.pool.size, self.pool.size, pyramid_shapes[0][-1]))

    # RoIs to learn from.

    def sample(self, proposals, y, random):
        """Those of the first stage, and what later stages need to find theirs; see kgarden/targets/roi.py."""
        sampled = sample_rois(proposals, y, self.ious[0], self.num_samples, self.positive_fraction, random)
        if self.resample or self.truth != "kept":
            sampled[TRUTH] = {key: y[key] for key in (BOXES, LABELS, CROWD)}
        if self.resample:
            objects = y[BOXES].shape[1]
            first, count = proposals[BOXES].shape[1] + objects, self.num_samples + objects
            draws = random(first + (len(self.ious) - 1) * count)[:, first:]
            sampled[RANDOM] = ops.reshape(draws, (-1, len(self.ious) - 1, count))
        return sampled

    def _next(self, stage, before, refined, sampled):
        """RoIs that a later stage learns from.

        Args:
            stage:   its number.
            before:  raw of the stage before.
            refined: (B, S or S + M, 4) what that stage made of its RoIs.
            sampled: of `sample`.
        Returns:
            boxes (B, S or S + M, 4), valid; S + M where objects are added again.
        """
        valid = before[VALID] & (box_ops.area(refined) > 0)
        if self.truth != "kept":
            valid = valid & ~are_objects(before[BOXES], sampled[TRUTH])
        if self.resample:
            proposals, random = {BOXES: refined, VALID: valid}, sampled[RANDOM][:, stage - 1]
            how = self.ious[stage], self.num_samples, self.positive_fraction, lambda n: random[:, :n]
            drawn = sample_rois(proposals, sampled[TRUTH], *how)
            return drawn[BOXES], drawn[VALID]
        if self.truth == "added_again":
            count = sampled[BOXES].shape[1]  # what stands behind them are the objects of the stage before
            objects = sampled[TRUTH]
            refined = ops.concatenate([refined[:, :count], objects[BOXES]], axis=1)
            valid = ops.concatenate([valid[:, :count], truth_is_valid(objects)], axis=1)
        return refined, valid

    # Both ways.

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"stages": for each box head {"logits", "deltas", "boxes", "valid"}}, boxes being its input.

        With the ensemble "last_rois", outside of training, also "on_last": logits of all heads there.
        """
        boxes, valid, stages = proposals[BOXES], proposals[VALID], []
        for number, head in enumerate(self.box_heads):
            if stages:
                refined = box_ops.clip(decode(stages[-1], self.coders[number - 1])[:, :, 0], size_hw)
                boxes = ops.stop_gradient(refined)
                if training:
                    boxes, valid = self._next(number, stages[-1], boxes, proposals)
            features = self.pool(pyramid, boxes)
            if training:
                features = scale_gradient(features, self.feature_gradient[number])
            logits, deltas = head(features)
            stages.append({"logits": logits, "deltas": deltas, BOXES: boxes, VALID: valid})
        if training or self.ensemble != "last_rois":
            return {"stages": stages}
        return {"stages": stages, "on_last": [*(head(features)[0] for head in self.box_heads[:-1]), logits]}

    def losses(self, raw, y):
        """Terms stage<k>/class and stage<k>/box, weighted; every stage matches its own boxes anew."""
        terms = []
        for number, stage in enumerate(raw["stages"]):
            how = self.ious[number], self.coders[number], self.num_classes, self.sigmoid, self.box_loss
            terms += [term * self.stage_weights[number] for term in stage_losses(stage, y, *how)]
        return dict(zip(self.loss_names, terms, strict=True))

    def answers(self, raw, size_hw):
        """{OWN: {"boxes": (B, P, 4) of the last stage, "scores": `probability`}}."""
        boxes = clip_groups(decode(raw["stages"][-1], self.coders[-1]), size_hw)
        return {OWN: {BOXES: boxes, SCORES: self.probability(raw)}}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) of the last stage; `probability` (B, P, C), fused with the proposal's."""
        own = self.answers(raw, size_hw)[OWN]
        scores = fuse_scores(own[SCORES], proposals, self.fuse)
        return {BOXES: own[BOXES], SCORES: scores, VALID: proposals[VALID][..., None]}

    def probability(self, raw):
        """P(C | O) by `ensemble`.   (B, P, C)."""
        logits = raw["on_last"] if self.ensemble == "last_rois" else [one["logits"] for one in raw["stages"]]
        if self.ensemble == "last":
            logits = logits[-1:]
        if self.ensemble == "logits":
            return class_probability(sum(logits) / len(logits), self.sigmoid)
        return sum(class_probability(one, self.sigmoid) for one in logits) / len(logits)


def scale_gradient(x, factor):
    """x itself, but its gradient times `factor`."""
    return x if factor == 1 else x * factor + ops.stop_gradient(x * (1.0 - factor))


def cascade_rcnn(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    rpn=None,
    proposals=None,
    roi_head=None,
    selection=None,
    pixels=None,
    convention="mmdetection",
):
    """Cascade R-CNN on a pyramid (40.3 AP on COCO with mmdetection, ResNet-50, 1x).

    Args:
        num_classes: C.
        convention:  whose settings are the defaults, a key of CONVENTIONS; "maskrcnn_benchmark" is the
                     authors' Detectron on that codebase's RPN.
        roi_head:    settings of CascadeHead.
        seed, rpn, proposals, backbone, neck, selection, pixels: see `faster_rcnn`.
    Returns:
        TwoStage.
    """
    one_of("convention", convention, CONVENTIONS)
    given = merge_defaults({"train": {}, "test": {}}, proposals, "model.proposals")
    return rcnn(
        "cascade_rcnn",
        CascadeHead,
        CONVENTIONS[convention],
        num_classes,
        seed,
        backbone,
        neck,
        {**RPN[convention], **(rpn or {})},
        {when: {**PROPOSALS[when], **given[when]} for when in PROPOSALS},
        roi_head,
        selection,
        pixels,
        convention,
    )
