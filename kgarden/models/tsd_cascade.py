"""Cascade R-CNN whose stages are TSD heads, each with offsets, sibling and constraint of its own.

Song, Liu, Wang 2020, arXiv:2003.07540, Table 6; the paper does not describe it, the settings are those of the
authors' release. A stage passes on the boxes that TSD's regressor makes of P^_r, those of the label's class;
without a label, in inference and for background, those of the best class of objects. (The release has boxes
of background and may pass on those.) Scores are the softmax of the mean logits of all TSD heads.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, take
from kgarden.heads.dense import one_of
from kgarden.models.cascade_rcnn import CONVENTIONS, GROUND_TRUTH, CascadeRoIs
from kgarden.models.faster_rcnn import FUSED, class_probability, clip_groups, decode, of_labels, rcnn
from kgarden.models.tsd import CONFIGURATIONS, MOVED, TSDHead
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import RoISampling, label_rois

RELEASED_WEIGHTS = CONVENTIONS["mmdetection_1"]["delta_weights"]


class TSDCascadeHead(CascadeRoIs, keras.layers.Layer):
    """TSD heads in a row, class-specific boxes.

    Args:
        strides, num_classes: as in TSDHead.
        ious, delta_weights, stage_weights, resample, gt_rois, drop_empty, test_stage: as in CascadeHead; the
                  defaults are the release's.
        settings: of TSDHead, for all stages, and of RoISampling (kgarden/targets/roi.py).
    """

    passes_to = TSDHead
    ensemble = "logits"  # as CascadeHead names it; there is no other
    fixed_arguments = ("iou", "own_pyramids")

    def __init__(
        self,
        strides,
        num_classes,
        ious=(0.5, 0.6, 0.7),
        delta_weights=RELEASED_WEIGHTS,
        stage_weights=None,
        resample=True,
        gt_rois="drop",
        drop_empty=False,
        test_stage=None,
        name=None,
        **settings,
    ):
        sampling, settings = take(RoISampling, settings)
        super().__init__(autocast=False, name=name)  # boxes stay float32 under mixed precision
        self.num_classes = num_classes
        rois = dict(resample=resample, gt_rois=gt_rois, drop_empty=drop_empty)
        self._plan(ious, sampling, **rois, test_stage=test_stage)
        self.stage_weights = self._of_stages("stage_weights", stage_weights or 1.0)
        weights = self._of_stages("delta_weights", delta_weights)
        self.heads = [
            TSDHead(
                strides,
                num_classes,
                delta_weights=weights[stage],
                iou=self.ious[stage],
                **settings,
                name=f"stage{stage}",
            )
            for stage in range(len(self.ious))
        ]

    @property
    def loss_names(self):
        return [_of_stage(stage, name) for stage, head in enumerate(self.heads) for name in head.loss_names]

    def build(self, pyramid_shapes):
        for head in self.heads:
            head.build(pyramid_shapes)

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"stages": for each what TSDHead returns}; outside of training, up to `test_stage`."""
        boxes, valid, stages = proposals[BOXES], proposals[VALID], []
        for number in self.stages_to_run(training):
            if stages:
                gt = proposals[GROUND_TRUTH] if training else None
                boxes = ops.stop_gradient(self._refined(stages[-1], number - 1, size_hw, gt=gt))
                if training:
                    boxes, valid = self._next_rois(number, stages[-1], boxes, proposals)
            rois = {BOXES: boxes, VALID: valid}
            stages.append(self.heads[number](pyramid, rois, size_hw, training=training))
        return {"stages": stages}

    def _refined(self, raw, stage, size_hw, gt):
        """What a stage makes of its proposals, clipped; `gt` None: without labels.   (B, P, 4) px."""
        labels = ops.cast(ops.argmax(raw["logits"][..., :-1], axis=-1), "int32")
        if gt is not None:
            how = dict(iou=self.ious[stage], num_classes=self.num_classes)
            known, _ = label_rois(raw[BOXES], raw[VALID], gt, **how)
            labels = ops.where((known >= 0) & (known < self.num_classes), known, labels)
        deltas = of_labels(raw["deltas"], labels)[:, :, None]
        coder = self.heads[stage].coder
        return clip_groups(decode({"deltas": deltas, BOXES: raw[MOVED]}, coder), size_hw, coder)

    def losses(self, raw, y):
        """Terms of every stage, named stage<k>/..., weighted."""
        terms = {}
        for stage, (head, outputs) in enumerate(zip(self.heads, raw["stages"], strict=True)):
            for name, term in head.losses(outputs, y).items():
                terms[_of_stage(stage, name)] = term * self.stage_weights[stage]
        return terms

    def branch_predictions(self, raw, size_hw):
        """{FUSED: {"boxes": those of the last stage, "scores": (B, P, C)}}, or by `test_stage`."""
        logits = [stage["logits"] for stage in raw["stages"]]
        last = self.of_stage(raw, len(logits), size_hw)
        if self.test_stage is not None:
            return {FUSED: last}
        return {FUSED: {**last, SCORES: class_probability(sum(logits) / len(logits), sigmoid=False)}}

    def of_stage(self, raw, stage, size_hw):
        """What a stage alone predicts, see CascadeHead; boxes (B, P, 4) or (B, P, C, 4)."""
        one, coder = raw["stages"][stage - 1], self.heads[stage - 1].coder
        boxes = clip_groups(decode({**one, BOXES: one[MOVED]}, coder), size_hw, coder)
        return {BOXES: boxes, SCORES: class_probability(one["logits"], sigmoid=False)}

    def derived_proposals(self, raw):
        """What the tasks of each computed stage see; see TSDHead."""
        stages = zip(self.heads, raw["stages"], strict=False)  # `test_stage`
        return [one for head, outputs in stages for one in head.derived_proposals(outputs)]

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4) of the last stage; scores (B, P, C) are P(C | O)."""
        return {**self.branch_predictions(raw, size_hw)[FUSED], VALID: proposals[VALID][..., None]}


def _of_stage(stage, name):
    """roi/class -> stage0/class."""
    return f"stage{stage}/{name.split('/')[1]}"


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def tsd_cascade(num_classes, configuration="tsd", convention="mmdetection_1", **parts):
    """Cascade R-CNN with TSD (42.0 AP on COCO in the release, ResNet-50).

    Args:
        num_classes:   C.
        configuration: "tsd" or "release", see kgarden/models/tsd.py.
        convention:    see `rcnn`.
        parts:         seed, backbone, neck, rpn, proposals, roi_head (settings of TSDCascadeHead), selection,
                       pixels; see `rcnn`.
    Returns:
        TwoStage.
    """
    one_of("configuration", configuration, ("tsd", "release"))
    return rcnn(
        num_classes,
        name="tsd_cascade",
        head=TSDCascadeHead,
        head_defaults=CONFIGURATIONS[configuration],
        convention=convention,
        **parts,
    )
