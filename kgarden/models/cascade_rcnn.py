"""Cascade R-CNN: a sequence of box heads, each refining the boxes of the previous one.

Cai and Vasconcelos 2017, arXiv:1712.00726, section 4. Each stage has its own IoU threshold and delta weights
and trains on the boxes of the previous stage, without a gradient through the boxes. The proposer is RPN, as
in Faster R-CNN. CascadeHead alone, with detectron2's settings, is CenterNet2's second stage.

    paper                       here
    H1, H2, H3                  CascadeHead.box_heads
    u = 0.5, 0.6, 0.7           `ious` (CenterNet2: 0.6, 0.7, 0.8)
    B0 -> B1 -> B2 -> B3        "boxes" of raw["stages"], then `candidates`
    resampling (4.2)            `resample`, `gt_rois`
    testing by all heads        `ensemble`
    stages 1, 2, 3 (4.3)        `test_stage`

What the public implementations do differently, CONVENTIONS:

                                detectron2          mmdetection          the authors' Detectron
    a stage's losses            alike               1, 1/2, 1/4          alike
    gradient into the features  1/3 of each         as it is             1, 1/2, 1/4
    RoIs of stages 1 and 2      all refined ones    drawn anew, objects  all refined ones but
                                                    among them           objects, then objects
    RoIs without area           left out            kept                 left out
    scores                      mean probability    mean logit, then     of all heads on the
                                                    softmax              last RoIs, mean probability
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, merge_defaults, take
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.roi_features import RoIFeatures, RoIPooling
from kgarden.losses.federated import CLASS_RANDOM, make_subsets, with_numbers_of
from kgarden.losses.roi import make_box_loss
from kgarden.models.faster_rcnn import (
    FUSED,
    BoxHead,
    Coder,
    class_probability,
    clip_groups,
    decode,
    rcnn,
    stage_losses,
)
from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, CROWD, LABELS, SCORES, VALID, truth_is_valid
from kgarden.targets.roi import RoISampling, are_objects, sample_rois

DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
DECREASING = (1.0, 0.5, 0.25)
MMDETECTION = {
    "delta_weights": (*DELTA_WEIGHTS[:2], (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067)),
    "stage_weights": DECREASING,
    "feature_gradient": 1.0,
    "resample": True,
    "gt_rois": "drop",
    "drop_empty": False,
    "ensemble": "logits",
    "box_beta": 1.0,
}
CONVENTIONS = {  # of CascadeHead, beside those of kgarden/models/faster_rcnn.py
    "detectron2": {},
    "mmdetection": MMDETECTION,
    "mmdetection_1": MMDETECTION,
    "maskrcnn_benchmark": {  # the authors' Detectron, which has these boxes and losses
        "feature_gradient": DECREASING,
        "gt_rois": "readd",
        "ensemble": "last_rois",
    },
}
RPN = {
    "detectron2": {},
    "mmdetection": {"box_beta": 1 / 9, "straddle": 0.0},
    "mmdetection_1": {},
    "maskrcnn_benchmark": {},
}
PROPOSALS = {"train": {"total": 2000}, "test": {}}
GROUND_TRUTH, RANDOM = "ground_truth", "random"  # keys of a sample, for later stages
GT_ROIS = ("refine", "drop", "readd")
ENSEMBLES = ("probability", "logits", "last_rois", "last")


class CascadeRoIs:
    """The stages of a cascade and the RoIs that they train on; the base class of its heads.   Section 4.2.

    Attributes:
        ious, resample, gt_rois, drop_empty, test_stage: see CascadeHead.
        samplings: RoISampling of each stage; `sampling` is that of the first.
    """

    number_or_list = ("stage_weights", "feature_gradient")  # settings that a recipe may give either way

    def _plan(self, ious, sampling, *, resample, gt_rois, drop_empty, test_stage):
        """Takes the settings.

        Raises:
            UserError: some that do not fit each other.
        """
        one_of("roi_head.gt_rois", gt_rois, GT_ROIS)
        if resample and gt_rois == "readd":
            raise UserError("model.roi_head.gt_rois 'readd': resample adds ground truth anyway; use 'drop'")
        self.ious = tuple(ious)
        self.samplings = [sampling._replace(iou=iou) for iou in self.ious]
        self.sampling = self.samplings[0]
        self.resample, self.gt_rois, self.drop_empty = resample, gt_rois, drop_empty
        numbered = type(test_stage) is int and 1 <= test_stage <= len(self.ious)
        if test_stage is not None and not numbered:
            raise UserError(
                f"model.roi_head.test_stage {test_stage!r}: a number from 1 to {len(self.ious)}, the stages "
                "of this cascade, or null"
            )
        self.test_stage = test_stage

    def stages_to_run(self, training):
        """Numbers of the stages that a forward pass computes, from 0.   range"""
        return range(len(self.ious) if training or self.test_stage is None else self.test_stage)

    def _of_stages(self, name, values):
        """A value for each stage; a single number is that of all.   tuple"""
        if isinstance(values, int | float):
            return (float(values),) * len(self.ious)
        if len(values) < len(self.ious):
            raise UserError(f"model.roi_head: {len(self.ious)} ious but {len(values)} {name}")
        return tuple(values)[: len(self.ious)]

    def sample(self, proposals, y, random):
        """RoIs of the first stage, and what later stages need for theirs; see kgarden/targets/roi.py."""
        sampled = sample_rois(proposals, y, self.sampling, random)
        if self.resample or self.gt_rois != "refine":
            sampled[GROUND_TRUTH] = {key: y[key] for key in (BOXES, LABELS, CROWD)}
        if self.resample:
            objects = y[BOXES].shape[1]
            first, count = proposals[BOXES].shape[1] + objects, self.sampling.num_samples + objects
            draws = random(first + (len(self.ious) - 1) * count)[:, first:]
            sampled[RANDOM] = ops.reshape(draws, (-1, len(self.ious) - 1, count))
        return sampled

    def _next_rois(self, stage, before, refined, sampled):
        """RoIs that a later stage trains on.   Section 4.2.

        Args:
            stage:   its number.
            before:  raw of the previous stage.
            refined: (B, S or S + M, 4) boxes that the previous stage made of its RoIs.
            sampled: of `sample`.
        Returns:
            boxes (B, S or S + M, 4), valid; S + M where the ground truth is added again.
        """
        valid = before[VALID]
        if self.drop_empty:
            valid = valid & (box_ops.area(refined) > 0)
        if self.gt_rois != "refine":
            valid = valid & ~are_objects(before[BOXES], sampled[GROUND_TRUTH])
        if self.resample:
            return self._resampled(stage, refined, valid, sampled)
        if self.gt_rois == "readd":
            return self._with_ground_truth(refined, valid, sampled)
        return refined, valid

    def _resampled(self, stage, refined, valid, sampled):
        """A sample of the refined boxes and the ground truth, by the stage's own IoU threshold."""
        proposals, random = {BOXES: refined, VALID: valid}, sampled[RANDOM][:, stage - 1]
        gt = sampled[GROUND_TRUTH]
        drawn = sample_rois(proposals, gt, self.samplings[stage], lambda n: random[:, :n])
        return drawn[BOXES], drawn[VALID]

    def _with_ground_truth(self, refined, valid, sampled):
        """The refined boxes, with the original ground truth behind them."""
        count = sampled[BOXES].shape[1]  # what is behind them is the ground truth of the previous stage
        gt = sampled[GROUND_TRUTH]
        boxes = ops.concatenate([refined[:, :count], gt[BOXES]], axis=1)
        return boxes, ops.concatenate([valid[:, :count], truth_is_valid(gt)], axis=1)


class CascadeHead(CascadeRoIs, keras.layers.Layer):
    """Box heads in a row, class-agnostic boxes.

    Args:
        strides, num_classes, width, num_fcs, initializer, sigmoid, box_beta, box_loss: as in FasterHead.
        federated, clamp_below, plus_one, least_px: as in FasterHead.
        ious:             foreground threshold of each stage; as many stages as thresholds.
        delta_weights:    factors on the deltas of each stage.
        stage_weights:    factors on the losses of each stage; None: 1.
        feature_gradient: factor on the gradient into the pooled features, or one for each stage; None: one
                          over the number of stages.
        resample:         whether later stages sample `num_samples` of the refined boxes and the ground truth,
                          as the first stage does of the proposals; otherwise they train on all refined boxes.
        gt_rois:          ground-truth boxes among the RoIs of the previous stage: "refine" them like
                          proposals, "drop" them, or drop them and "readd" the original boxes.
        drop_empty:       whether RoIs of later stages are left out of training that have no area after
                          refinement (detectron2); mmdetection keeps them as background.
        ensemble:         scores of the detections: the mean "probability" of all stages, each on its own
                          RoIs; the softmax of their mean "logits"; the mean probability of all heads on the
                          "last_rois"; or the "last" stage's.
        test_stage:       which stage alone detects, from 1: its scores, of the RoIs that come to it, without
                          an `ensemble`, and the boxes that it makes of them; None: all of them.
        settings:         of RoIPooling (kgarden/heads/roi_features.py), and num_samples and
                          positive_fraction of RoISampling (kgarden/targets/roi.py).
    """

    takes = (RoIPooling, RoISampling)
    fixed_arguments = ("iou",)

    def __init__(
        self,
        strides,
        num_classes,
        ious=(0.5, 0.6, 0.7),
        delta_weights=DELTA_WEIGHTS,
        width=1024,
        num_fcs=2,
        initializer="c2_xavier",
        sigmoid=False,
        federated=None,
        box_loss="smooth_l1",
        box_beta=0.0,
        clamp_below=False,
        plus_one=False,
        least_px=0.0,
        stage_weights=None,
        feature_gradient=None,
        resample=False,
        gt_rois="refine",
        drop_empty=True,
        ensemble="probability",
        test_stage=None,
        **settings,
    ):
        pooling, settings = take(RoIPooling, settings)
        sampling, kwargs = take(RoISampling, settings)
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.ensemble", ensemble, ENSEMBLES)
        rois = dict(resample=resample, gt_rois=gt_rois, drop_empty=drop_empty)
        self._plan(ious, sampling, **rois, test_stage=test_stage)
        self.num_classes = num_classes
        weights = self._of_stages("delta_weights", delta_weights)
        self.coders = [Coder(tuple(of_stage), clamp_below, plus_one, least_px) for of_stage in weights]
        self.stage_weights = self._of_stages("stage_weights", stage_weights or 1.0)
        share = 1.0 / len(self.ious) if feature_gradient is None else feature_gradient
        self.feature_gradient = self._of_stages("feature_gradient", share)
        self.ensemble = ensemble
        self.sigmoid, self.federated = sigmoid, make_subsets(federated, sigmoid, num_classes)
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.pool = RoIFeatures(strides, pooling, plus_one=plus_one, name="pool")
        how = dict(width=width, num_fcs=num_fcs, initializer=initializer, sigmoid=sigmoid)
        self.box_heads = [
            self._box_head(stage, num_classes, **how, name=f"box_head{stage}")
            for stage in range(len(self.ious))
        ]

    def _box_head(self, stage, num_classes, **how):
        """The layers of a stage, a BoxHead."""
        return BoxHead(num_classes, **how)

    @property
    def loss_names(self):
        return [f"stage{stage}/{what}" for stage in range(len(self.ious)) for what in ("class", "box")]

    def build(self, pyramid_shapes):
        for head in self.box_heads:
            head.build((None, None, self.pool.size, self.pool.size, pyramid_shapes[0][-1]))

    def sample(self, proposals, y, random):
        """As CascadeRoIs; with `federated` also the draws of the classes of every stage."""
        sampled = super().sample(proposals, y, random)
        if self.federated:
            rows = proposals[BOXES].shape[1] + 2 * y[BOXES].shape[1] + self.sampling.num_samples
            stages = len(self.ious)
            sampled[CLASS_RANDOM] = self.federated.numbers(random, used=stages * rows, stages=stages)
        return sampled

    # Forward pass: B0 -> B1 -> B2 -> B3.

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"stages": for each box head {"logits", "deltas", "boxes", "valid"}}, boxes being its input.

        With the ensemble "last_rois", outside of training, also "on_last": logits of all heads there. With
        `test_stage`, outside of training, the stages up to that one.
        """
        boxes, valid, stages = proposals[BOXES], proposals[VALID], []
        for number in self.stages_to_run(training):
            if stages:
                coder = self.coders[number - 1]
                boxes = ops.stop_gradient(clip_groups(decode(stages[-1], coder), size_hw, coder))
                if training:
                    boxes, valid = self._next_rois(number, stages[-1], boxes, proposals)
            features = self.pool(pyramid, boxes)
            if training:
                features = scale_gradient(features, self.feature_gradient[number])
            logits, deltas = self._outputs(number, features)
            raw = {"logits": logits, "deltas": deltas, BOXES: boxes, VALID: valid}
            stages.append(with_numbers_of(raw, proposals, stage=number))
        if training or self.test_stage is not None or self.ensemble != "last_rois":
            return {"stages": stages}
        earlier = [self._outputs(number, features)[0] for number in range(len(stages) - 1)]
        return {"stages": stages, "on_last": [*earlier, logits]}

    def _outputs(self, stage, features):
        """Logits and deltas of a stage for features of any RoIs, see BoxHead."""
        return self.box_heads[stage](features)

    def losses(self, raw, y):
        """Terms stage<k>/class and stage<k>/box, weighted; every stage matches its own boxes anew."""
        shared = dict(num_classes=self.num_classes, sigmoid=self.sigmoid, box_loss=self.box_loss)
        shared["federated"] = self.federated
        terms = []
        for stage, iou, coder, weight in zip(
            raw["stages"], self.ious, self.coders, self.stage_weights, strict=True
        ):
            terms += [term * weight for term in stage_losses(stage, y, iou=iou, coder=coder, **shared)]
        return dict(zip(self.loss_names, terms, strict=True))

    def branch_predictions(self, raw, size_hw):
        """{FUSED: {"boxes": (B, P, 4) of the last stage, "scores": `probability`}}, or by `test_stage`."""
        last = self.of_stage(raw, len(raw["stages"]), size_hw)
        return {FUSED: last if self.test_stage is not None else {**last, SCORES: self.probability(raw)}}

    def of_stage(self, raw, stage, size_hw):
        """What a stage alone predicts, from its own RoIs.

        Args:
            raw:     of a forward pass outside of training.
            stage:   from 1.
            size_hw: (B, 2).
        Returns:
            {"boxes": (B, P, 4), clipped, "scores": (B, P, C)}
        """
        one, coder = raw["stages"][stage - 1], self.coders[stage - 1]
        boxes = clip_groups(decode(one, coder), size_hw, coder)
        return {BOXES: boxes, SCORES: class_probability(one["logits"], self.sigmoid)}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) of the last stage; scores (B, P, C) are P(C | O): `branch_predictions`."""
        return {**self.branch_predictions(raw, size_hw)[FUSED], VALID: proposals[VALID][..., None]}

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


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def cascade_rcnn(num_classes, rpn=None, proposals=None, convention="mmdetection", **parts):
    """Cascade R-CNN on a pyramid (40.3 AP on COCO with mmdetection, ResNet-50, 1x).

    Args:
        num_classes: C.
        convention:  implementation whose settings are the defaults, a key of CONVENTIONS;
                     "maskrcnn_benchmark" is the authors' Detectron on that codebase's RPN.
        rpn, proposals: see `rcnn`.
        parts:       seed, backbone, neck, roi_head, selection, pixels; see `rcnn`.
    Returns:
        TwoStage.
    """
    one_of("convention", convention, CONVENTIONS)
    return cascade_on_rpn(
        num_classes,
        name="cascade_rcnn",
        head=CascadeHead,
        head_defaults=CONVENTIONS[convention],
        rpn=rpn,
        proposals=proposals,
        convention=convention,
        **parts,
    )


def cascade_on_rpn(num_classes, *, convention, rpn=None, proposals=None, **parts):
    """`rcnn` with a cascade's defaults of RPN and of the number of proposals."""
    given = merge_defaults({"train": {}, "test": {}}, proposals, "model.proposals")
    return rcnn(
        num_classes,
        rpn={**RPN[convention], **(rpn or {})},
        proposals={when: {**PROPOSALS[when], **given[when]} for when in PROPOSALS},
        convention=convention,
        **parts,
    )
