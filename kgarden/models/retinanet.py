"""RetinaNet: nine anchors for each cell, trained with the focal loss.

Lin, Goyal, Girshick, He, Dollár, "Focal loss for dense object detection", 2017, arXiv:1708.02002. A dense
detector sees some hundred thousand places of which a handful hold an object; the focal loss takes weight from
those that are right already.

    paper                           here
    FL (Eq. 5), alpha, gamma        kgarden/losses/focal.py; term <name>/class
    anchors of section 4            kgarden/ops/anchors.py; `octaves`, `ratios`, `anchor_scale`
    IoU of 0.5 and 0.4              MaxIoU in kgarden/targets/max_iou.py; `thresholds`
    pi = 0.01                       `prior`
    smooth L1 on deltas             `box_loss`, `box_beta`; term <name>/box

Defaults are those of mmdetection (36.5 AP, ResNet-50, 1x); what the sources have differently, as arguments
("-": not given). detectron2's are those of its published configuration, which sets box_beta to 0 where the
code's default is 0.1; the paper names smooth L1 without a beta.

                         mmdetection      detectron2      torchvision     paper
    anchor_order         "ratio"          "size"          "ratio"         -
    anchor_form          "plain"          "plain"         "torchvision"   -
    low_quality_matches  "all"            "own"           "own"           None
    normalizer           "count_empty"    "ema"           "image"         "positives"
    box_beta             0 (L1)           0 (L1)          0 (L1)          -
    clip                 True             False           True            -
    pad_divisor          32               None            None            -
    selection.total      100              100             300             -
    neck.top             "p6p7_of_c5"     "p6p7_of_c5"    "p6p7_of_p5"    "p6p7_of_c5"
    neck.relu_before_p7  False            True            True            True
    neck.initializer     "xavier"         "c2_xavier"     "c2_xavier"     -
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, merge_defaults
from kgarden.heads.dense import DenseHead, one_of
from kgarden.losses.box_iou import KINDS, box_iou_loss
from kgarden.losses.focal import sigmoid_focal_loss
from kgarden.losses.roi import smooth_l1
from kgarden.models.base.one_stage import dense_detector
from kgarden.ops import boxes as box_ops
from kgarden.ops import replicas
from kgarden.ops.anchors import FORMS, anchor_grid
from kgarden.ops.points import flatten
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, truth_is_valid
from kgarden.targets.assign_result import IGNORED, in_own_padding, one_hot
from kgarden.targets.max_iou import LOW_QUALITY, MaxIoU, assign

NORMALIZERS = ("count_empty", "positives", "ema", "image")


class RetinaNetHead(DenseHead):
    """Classes and deltas of every anchor; no norm in the towers.

    Args:
        strides, num_classes: see DenseHead.
        anchor_scale: side of the smallest square anchor in strides.
        octaves:      sizes of a cell's anchors, each 2^(1/octaves) larger than the one before.
        ratios:       height over width.
        anchor_order: the channels of a cell hold all sizes of a "ratio" or all ratios of a "size" together.
        anchor_form:  see kgarden/ops/anchors.py.
        anchor_offset: where in its cell an anchor sits, in strides: 0 top left, 0.5 middle.
        thresholds, low_quality_matches: see MaxIoU in kgarden/targets/max_iou.py.
        pad_divisor:  px; anchors in cells outside of their image, padded by itself to a multiple of it, take
                      no part (mmdetection); None: padding of the batch is background.
        normalizer:   what both terms are divided by. "positives" of the batch; "count_empty": an image
                      without any counts as one; "ema": their average over the steps so far; "image": each
                      image's terms by its own positives, 1 at least, before the mean over images.
        ema_momentum, ema_start: of "ema"; ema_start is a number of positives of one image (detectron2
                      starts at 100 for the two images of a device).
        deviations:   what deltas are divided by in training.
        box_loss:     "smooth_l1" on deltas, or a kind of kgarden/losses/box_iou.py on decoded boxes.
        box_beta:     where smooth L1 turns from a square into a line; 0: L1.
        alpha, gamma: of the focal loss.
        weights:      {"class", "box"} of the terms.
        kwargs:       width, num_convs, ..., see DenseHead.
    """

    fixed_arguments = ("code_size", "anchors", "centerness", "scaled")

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        anchor_scale=4,
        octaves=3,
        ratios=(0.5, 1.0, 2.0),
        anchor_order="ratio",
        anchor_form="plain",
        anchor_offset=0.0,
        thresholds=(0.4, 0.5),
        low_quality_matches="all",
        pad_divisor=32,
        normalizer="count_empty",
        ema_momentum=0.9,
        ema_start=50.0,
        deviations=(1.0, 1.0, 1.0, 1.0),
        box_loss="smooth_l1",
        box_beta=0.0,
        alpha=0.25,
        gamma=2.0,
        weights=None,
        norm=None,
        name="retinanet",
        **kwargs,
    ):
        of_cell = octaves * len(ratios)
        super().__init__(
            strides, num_classes, 4, anchors=of_cell, norm=norm, scaled=False, name=name, **kwargs
        )
        one_of("dense_head.anchor_order", anchor_order, ("ratio", "size"))
        one_of("dense_head.anchor_form", anchor_form, FORMS)
        one_of("dense_head.normalizer", normalizer, NORMALIZERS)
        one_of("dense_head.low_quality_matches", low_quality_matches, LOW_QUALITY)
        one_of("dense_head.box_loss", box_loss, ("smooth_l1", *KINDS))
        sides = [anchor_scale * 2 ** (octave / octaves) for octave in range(octaves)]
        self.anchor_settings = dict(
            strides=self.strides,
            sizes=[[side * stride for side in sides] for stride in self.strides],
            ratios=ratios,
            offset=anchor_offset,
            size_major=anchor_order == "size",
            form=anchor_form,
        )
        negative, positive = thresholds
        literal = low_quality_matches == "own"  # as in detectron2's Matcher
        self.rule = MaxIoU(
            positive,
            negative,
            low_quality_matches=low_quality_matches,
            low_quality_above=None if literal else 0.0,
        )
        self.pad_divisor = pad_divisor
        self.normalizer = normalizer
        self.ema_momentum, self.ema_start = ema_momentum, ema_start
        self.delta_weights = tuple(1 / deviation for deviation in deviations)
        self.box_loss, self.box_beta = box_loss, box_beta
        self.focal = dict(alpha=alpha, gamma=gamma)
        self.weights_of_terms = merge_defaults(
            {"class": 1.0, "box": 1.0}, weights, "model.dense_head.weights"
        )

    def build(self, pyramid_shapes):
        super().build(pyramid_shapes)
        if self.normalizer == "ema":
            self._build_ema()

    def anchors_of(self, raw):
        """kgarden.ops.anchors.Anchors."""
        return anchor_grid([level.shape[1:3] for level in raw["classes"]], **self.anchor_settings)

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        return box_ops.decode_deltas(
            flatten(raw["code"], 4), self.anchors_of(raw).boxes, self.delta_weights, clamp_below=True
        )

    def assign(self, raw, y):
        """The object that an anchor overlaps most, by the thresholds.   (B, A) int32."""
        anchors = self.anchors_of(raw)
        inside = in_own_padding(anchors, y, self.pad_divisor)
        outside = None if inside is None else ~inside
        return assign(box_ops.iou(y[BOXES], anchors.boxes), truth_is_valid(y), self.rule, outside)[0]

    def losses(self, raw, y, step=None):
        """Terms <name>/class and <name>/box."""
        matched, gt_boxes, labels = self.truth(raw, y)
        positive = matched >= 0
        focal = sigmoid_focal_loss(
            flatten(raw["classes"], self.num_scores), one_hot(labels, self.num_scores), **self.focal
        )
        focal = ops.sum(ops.where((matched == IGNORED)[..., None], 0.0, focal), axis=(1, 2))
        box = ops.sum(ops.where(positive, self._box_loss(raw, gt_boxes, positive), 0.0), axis=1)
        terms = dict(zip(self.terms, self._normalized([focal, box], positive, step), strict=True))
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in self.terms}

    def _box_loss(self, raw, gt_boxes, positive):
        """(B, A); finite and without meaning where there is no object."""
        anchors = self.anchors_of(raw).boxes
        target = ops.where(positive[..., None], gt_boxes, anchors)
        if self.box_loss != "smooth_l1":
            predicted = ops.where(positive[..., None], self.boxes(raw), anchors)
            return box_iou_loss(predicted, target, self.box_loss)
        target = box_ops.encode_deltas(ops.convert_to_tensor(anchors), target, self.delta_weights)
        return ops.sum(smooth_l1(flatten(raw["code"], 4), target, self.box_beta), axis=-1)

    # What sums are divided by.

    def _normalized(self, of_images, positive, step):
        """Terms of the batch from those of its images, a list of (B,)."""
        count_of_image = ops.sum(ops.cast(positive, "float32"), axis=1)
        at_least_one = ops.maximum(count_of_image, 1.0)
        images = ops.cast(ops.shape(positive)[0], "float32")
        if self.normalizer == "image":
            return [global_mean(ops.sum(term / at_least_one), images) for term in of_images]
        totals = [ops.sum(term) for term in of_images]
        of_image = at_least_one if self.normalizer == "count_empty" else count_of_image
        if self.normalizer != "ema":
            return [global_mean(total, ops.sum(of_image)) for total in totals]
        images = images * replicas.num_batch_parts()
        count = replicas.sum_over_batch(ops.sum(of_image))
        average = self._averaged(ops.maximum(count, 1.0) / images, step) * images
        return [total / average * replicas.num_batch_parts() for total in totals]

    def _build_ema(self):
        state = dict(shape=(), trainable=False, autocast=False, aggregation="only_first_replica")
        # Positives of an image, averaged up to the last step and up to the one before.
        for name in ("average", "average_before"):
            start = keras.initializers.Constant(self.ema_start)
            setattr(self, name, self.add_weight(initializer=start, name=name, **state))
        self.average_step = self.add_weight(
            dtype="int32", initializer=keras.initializers.Constant(-1), name="average_step", **state
        )

    def _averaged(self, seen, step):
        """The average with this step's number in it. A step in several parts counts once."""
        if step is None:
            return self.average.value
        step = ops.cast(step, "int32")
        is_new = self.average_step.value != step
        before = ops.where(is_new, self.average.value, self.average_before.value)
        average = self.ema_momentum * before + (1 - self.ema_momentum) * seen
        self.average_before.assign(before)
        self.average.assign(average)
        self.average_step.assign(step)
        return average


@forwards_to(dense_detector, fixed=("name", "head"))
def retinanet(num_classes, neck=None, selection=None, **parts):
    """RetinaNet (36.5 AP on COCO with mmdetection, ResNet-50, 1x).

    Args:
        num_classes: C.
        neck:        settings of the FPN, which override the defaults below.
        selection:   settings of the final Selection, which override the defaults below.
        parts:       seed, backbone, dense_head, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="retinanet",
        head=RetinaNetHead,
        neck={"top": "p6p7_of_c5", "relu_before_p7": False, "initializer": "xavier", **(neck or {})},
        selection={"iou": 0.5, **(selection or {})},
        **parts,
    )
