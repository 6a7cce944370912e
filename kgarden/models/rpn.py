"""Region proposal network (RPN): objectness and box deltas for every anchor.

Ren, He, Girshick, Sun, "Faster R-CNN", 2015, arXiv:1506.01497, section 3.1; on a pyramid: Lin et al. 2016,
arXiv:1612.03144, section 4.1. One convolution, then for every anchor a logit "object or not" and four deltas.
A few anchors of each image are drawn to learn from; the best boxes of each level, after NMS within it, go
on.

    paper                               here
    anchors (3.1.1)                     kgarden/ops/anchors.py; `sizes`, `ratios`, `anchor_form`
    positive, negative (3.1.2)          kgarden/targets/max_iou.py; `positive`, `negative`,
                                        `low_quality_matches`
    256 anchors, half positive (3.1.3)  `num_samples`, `positive_fraction`
    L_cls, L_reg (Eq. 1)                terms rpn/objectness, rpn/box
    proposals                           `candidates`, PROPOSALS, OF_CONVENTION

The public implementations differ in small things, and the papers of the garden rest on different ones:
CONVENTIONS and OF_CONVENTION hold their settings; detectron2's are the defaults. A score of RPN only says
which box is better: the scores of `candidates` rank, they are no probabilities.
"""

from keras import ops

from kgarden.config.instantiate import instantiate, merge_defaults
from kgarden.errors import UserError
from kgarden.heads.dense import DenseHead, one_of
from kgarden.heads.selection import Selection
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal
from kgarden.losses.roi import smooth_l1
from kgarden.models.base.two_stage import AsProposer
from kgarden.ops import boxes as box_ops
from kgarden.ops.anchors import FORMS, anchor_grid
from kgarden.ops.gather import gather
from kgarden.ops.matcher import IGNORE, NEGATIVE, POSITIVE, sample
from kgarden.ops.points import flatten
from kgarden.ops.random import hash_uniform
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, IMAGE_ID, SCORES, SIZE_HW, truth_is_valid
from kgarden.targets.assign_result import BACKGROUND, IGNORED, truth_at
from kgarden.targets.max_iou import LOW_QUALITY, MaxIoU, assign

CONVENTIONS = {
    "detectron2": {},
    "mmdetection": {
        "anchor_order": "ratio",
        "low_quality_matches": "all",
        "low_quality_above": 0.3,
        "normalizer": "sampled",
        "clamp_below": True,
        "pad_divisor": 32,
        "match_discarded": False,
    },
    "torchvision": {
        "anchor_order": "ratio",
        "anchor_form": "torchvision",
        "normalizer": "sampled",
        "box_beta": 1 / 9,
    },
    "mmdetection_1": {  # boxes from edge to edge, as everywhere here: its px of x2 and y2 count as inside
        "anchor_order": "ratio",
        "anchor_form": "mmdetection_1_edges",
        "low_quality_matches": "all",
        "low_quality_above": 0.3,
        "normalizer": "sampled",
        "box_beta": 1 / 9,
        "clamp_below": True,
        "straddle": 0.5,  # its 0: an edge of an anchor, a whole number, may lie on that of the image
        "pad_divisor": 32,
        "match_discarded": False,
        "least_px": 1.0,
    },
    "maskrcnn_benchmark": {
        "anchor_order": "ratio",
        "anchor_form": "maskrcnn_benchmark",
        "normalizer": "sampled",
        "box_beta": 1 / 9,
        "straddle": 0.0,
        "plus_one": True,
    },
}
PROPOSALS = {
    "train": {"per_level": 2000, "total": 1000},
    "test": {"per_level": 1000, "total": 1000},
}
# maskrcnn-benchmark's release keeps the best 2000 of a device's batch, in published trainings two images.
OF_CONVENTION = {
    "torchvision": {"train": {"total": 2000}},
    "maskrcnn_benchmark": {"train": {"total": 2000, "shared_by": 2}},
    "mmdetection_1": {"train": {"total": 2000}},
}
OF_EACH_LEVEL = {"score_threshold": 0.0, "iou": 0.7, "class_wise": False, "level_wise": True}
NORMALIZERS = ("slots", "sampled")
SALT = 0x52504E  # draws of RPN are not those of the second stage


class RPNHead(DenseHead):
    """One convolution, objectness and deltas of every anchor.

    Args:
        strides:       px for one cell of each level.
        num_classes:   None: RPN knows no classes.
        sizes:         sides of the square anchors in px, a list for each level.
        ratios:        height over width.
        anchor_order:  the channels of a cell hold all ratios of a "size" or all sizes of a "ratio" together.
        anchor_form:   see kgarden/ops/anchors.py.
        anchor_offset: where in its cell an anchor sits, in strides; only for plain anchors.
        positive, negative, low_quality_matches, low_quality_above: see MaxIoU in kgarden/targets/max_iou.py.
        straddle:      anchors that reach further than so many px out of the image are discarded, which means
                       that they are not learned from; None: none are.
        pad_divisor:   anchors are discarded whose cell begins beyond their image as it would be padded alone,
                       to a multiple of so many px (mmdetection's `pad_shape`); None: none are.
        match_discarded: whether an object's best anchor may be a discarded one, so that the object keeps none
                       (maskrcnn-benchmark), or is sought among the others (mmdetection).
        num_samples, positive_fraction: anchors of an image to learn from.
        normalizer:    both terms are divided by the "slots", `num_samples` for each image, or by the number
                       of anchors that were "sampled".
        box_beta:      of the smooth L1; 0 is L1.
        clamp_below:   see `decode_deltas`.
        plus_one:      see `encode_deltas`.
        least_px:      what is left at the border of a proposal that lies outside of its image (mmdetection
                       1); with 0 it is dropped.
        seed:          of the draw.
        kwargs:        width, num_convs, ..., see DenseHead.
    """

    terms = ("objectness", "box")
    fixed_arguments = ("code_size", "anchors", "centerness", "scaled", "shared_tower", "prior", "clip")
    fixed_arguments += ("sqrt_scores", "rank_by", "gate_by")

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        sizes=((32,), (64,), (128,), (256,), (512,)),
        ratios=(0.5, 1.0, 2.0),
        anchor_order="size",
        anchor_form="plain",
        anchor_offset=0.0,
        positive=0.7,
        negative=0.3,
        low_quality_matches="own",
        low_quality_above=0.0,
        straddle=None,
        pad_divisor=None,
        match_discarded=True,
        num_samples=256,
        positive_fraction=0.5,
        normalizer="slots",
        box_beta=0.0,
        clamp_below=False,
        plus_one=False,
        least_px=0.0,
        seed=0,
        num_convs=1,
        norm=None,
        name="rpn",
        **kwargs,
    ):
        if num_classes is not None:
            raise UserError("model.dense_head.name 'rpn' knows no classes: it is a proposer of two_stage")
        if len(sizes) != len(strides) or len({len(of_level) for of_level in sizes}) != 1:
            given = f"{len(sizes)} lists for {len(strides)} levels"
            raise UserError(f"model.rpn.sizes: {given}; give one of equal length for each")
        super().__init__(
            strides,
            None,
            4,
            anchors=len(sizes[0]) * len(ratios),
            shared_tower=True,
            scaled=False,
            prior=0.5,
            num_convs=num_convs,
            norm=norm,
            name=name,
            **kwargs,
        )
        one_of("rpn.anchor_order", anchor_order, ("ratio", "size"))
        one_of("rpn.anchor_form", anchor_form, FORMS)
        one_of("rpn.low_quality_matches", low_quality_matches, LOW_QUALITY)
        one_of("rpn.normalizer", normalizer, NORMALIZERS)
        self.anchor_settings = dict(
            strides=self.strides,
            sizes=[list(of_level) for of_level in sizes],
            ratios=ratios,
            offset=anchor_offset,
            size_major=anchor_order == "size",
            form=anchor_form,
        )
        self.rule = MaxIoU(positive, negative, low_quality_matches, low_quality_above)
        self.straddle, self.pad_divisor, self.match_discarded = straddle, pad_divisor, match_discarded
        self.num_samples, self.positive_fraction = num_samples, positive_fraction
        self.normalizer, self.box_beta = normalizer, box_beta
        self.clamp_below, self.plus_one, self.least_px = clamp_below, plus_one, least_px
        self.seed = seed

    def _output(self, channels, name, bias="zeros", dtype=None):
        weights = dict(kernel_initializer=normal(0.01), bias_initializer=bias)
        return Conv(channels, 1, **weights, dtype=dtype, name=name)

    def anchors_of(self, raw):
        """kgarden.ops.anchors.Anchors."""
        return anchor_grid([level.shape[1:3] for level in raw["classes"]], **self.anchor_settings)

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        return box_ops.decode_deltas(
            flatten(raw["code"], 4),
            self.anchors_of(raw).boxes,
            clamp_below=self.clamp_below,
            plus_one=self.plus_one,
        )

    # Training.

    def assign(self, raw, y):
        """The object that an anchor overlaps most, by the rule.   (B, A) int32."""
        anchors = self.anchors_of(raw)
        iou, gt_valid = box_ops.iou(y[BOXES], anchors.boxes), truth_is_valid(y)
        if self.straddle is None and self.pad_divisor is None:
            return assign(iou, gt_valid, self.rule)[0]
        discarded = ~self._learned_from(anchors, y[SIZE_HW])
        matched, _ = assign(iou, gt_valid, self.rule, None if self.match_discarded else discarded)
        return ops.where(discarded, IGNORED, matched)

    def _learned_from(self, anchors, size_hw):
        """Anchors that are not discarded.   (B, A) bool."""
        kept = ops.ones((ops.shape(size_hw)[0], len(anchors.boxes)), "bool")
        if self.straddle is not None:
            kept = kept & _inside(anchors.boxes, size_hw, self.straddle)
        if self.pad_divisor is not None:
            kept = kept & anchors.inside(size_hw, self.pad_divisor)
        return kept

    def losses(self, raw, y, step=None):
        """Terms rpn/objectness and rpn/box, on the anchors that this step draws."""
        matched = self.assign(raw, y)
        kind = ops.where(matched >= 0, POSITIVE, ops.where(matched == BACKGROUND, NEGATIVE, IGNORE))
        random = hash_uniform(self.seed ^ SALT, 0 if step is None else step, y[IMAGE_ID], kind.shape[1])
        rows, drawn, is_positive = sample(kind, self.num_samples, self.positive_fraction, random)

        gt_boxes, _ = truth_at(gather(matched, rows), y)
        objectness, box = sums_of_losses(
            gather(flatten(raw["classes"], 1), rows)[..., 0],
            gather(flatten(raw["code"], 4), rows),
            ops.where(drawn, ops.where(is_positive, POSITIVE, NEGATIVE), IGNORE),
            anchors=ops.take(self.anchors_of(raw).boxes, rows, axis=0),
            gt_boxes=gt_boxes,
            box_beta=self.box_beta,
            plus_one=self.plus_one,
        )
        if self.normalizer == "sampled":
            count = ops.sum(ops.cast(drawn, "float32"))
        else:
            count = ops.cast(ops.shape(drawn)[0], "float32") * self.num_samples
        terms = [global_mean(objectness, count), global_mean(box, count)]
        return dict(zip(self.loss_names, terms, strict=True))

    # Inference.

    def candidates(self, raw, size_hw=None):
        """Every anchor's box, rank and probability; a box empty in the image still takes its level's slot."""
        boxes, logits = self.boxes(raw), flatten(raw["classes"], 1)
        if size_hw is not None:
            boxes = box_ops.clip(boxes, size_hw, self.least_px)
        return {
            BOXES: boxes,
            SCORES: ranking(logits),
            "probability": ops.sigmoid(logits),
            "levels": self.levels(raw),
            "keep_after_topk": box_ops.nonempty(boxes),
        }


def _inside(boxes, size_hw, straddle):
    """Anchors that reach no more than `straddle` px out of their image.   (B, A) bool."""
    size_hw = ops.cast(size_hw, "float32") + straddle
    height, width = size_hw[:, :1], size_hw[:, 1:]
    begins = (boxes[:, 0] >= -straddle) & (boxes[:, 1] >= -straddle)
    return begins & (boxes[:, 2] < width) & (boxes[:, 3] < height)


def make_proposer(neck, seed, convention="detectron2", rpn=None, proposals=None):
    """RPN with its selections, as a first stage.

    Args:
        neck:       what it reads.
        seed:       of the draw of anchors.
        convention: a key of CONVENTIONS.
        rpn:        settings of RPNHead, laid over those of the convention.
        proposals:  {"train", "test": settings of Selection}, laid over those of the convention.
    Returns:
        AsProposer.
    """
    settings = {"width": neck.channels, **CONVENTIONS[convention], **(rpn or {})}
    head = instantiate(RPNHead, settings, "model.rpn", strides=neck.strides, num_classes=None, seed=seed)
    given = merge_defaults({"train": {}, "test": {}}, proposals, "model.proposals")
    selections = {}
    for when, usual in PROPOSALS.items():
        own = OF_CONVENTION.get(convention, {}).get(when, {})
        settings = {**OF_EACH_LEVEL, **usual, **own, **given[when]}
        selections[when] = instantiate(Selection, settings, f"model.proposals.{when}")
    return AsProposer(head, **selections, name="proposer")


def sums_of_losses(logits, deltas, kind, anchors, gt_boxes, box_beta=0.0, plus_one=False):
    """Binary cross-entropy and smooth L1, summed.   Eq. 1.

    Args:
        logits:   (B, N).
        deltas:   (B, N, 4).
        kind:     (B, N) POSITIVE, NEGATIVE or IGNORE.
        anchors:  (N, 4) or (B, N, 4) px.
        gt_boxes: (B, N, 4) px, meaningful where positive.
    Returns:
        objectness (), box () float32.
    """
    positive = kind == POSITIVE
    objectness = ops.softplus(logits) - ops.where(positive, logits, 0.0)
    target = ops.where(positive[..., None], gt_boxes, anchors)
    target = box_ops.encode_deltas(anchors, target, plus_one=plus_one)
    box = ops.sum(smooth_l1(deltas, target, box_beta), axis=-1)
    return ops.sum(ops.where(kind != IGNORE, objectness, 0.0)), ops.sum(ops.where(positive, box, 0.0))


def ranking(logits):
    """Positive numbers in the order of the logits; a sigmoid would call all large ones 1."""
    above, below = ops.maximum(logits, 0.0), ops.minimum(logits, 0.0)
    return ops.where(logits >= 0, 1.0 + above, 1.0 / (1.0 - below))
