"""Faster R-CNN: boxes that RPN proposes, each looked at again by one box head.

Ren, He, Girshick, Sun 2015, arXiv:1506.01497; on a pyramid: Lin et al. 2016, arXiv:1612.03144. The first
stage is in kgarden/models/rpn.py, this is the second.

    paper / detectron2              here
    box_head.fc1, fc2               BoxHead.features (kgarden/heads/fc_head.py)
    cls_score, bbox_pred            BoxHead.classes, BoxHead.boxes
    t_x, t_y, t_w, t_h (Eq. 2)      kgarden.ops.boxes.encode_deltas
    L_cls, L_reg                    roi/class, roi/box
    MULT_PROPOSAL_SCORE             fuse="released" (CenterNet2's rule; the paper's is "product")

Detectron2's settings are the defaults: class loss is the mean over RoIs, the box loss is L1 summed
over foreground and divided by *all* RoIs. Those of the other public implementations: CONVENTIONS.
"""

from typing import NamedTuple

import keras
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.heads.roi_features import RoIFeatures
from kgarden.heads.selection import Selection
from kgarden.layers.initializers import normal, prior_bias
from kgarden.layers.pixels import pixel_settings
from kgarden.losses.roi import make_box_loss, sigmoid_class_loss, smooth_l1, softmax_class_loss
from kgarden.models import rpn as first_stage
from kgarden.models.base.two_stage import TwoStage
from kgarden.necks import make_neck
from kgarden.ops import boxes as box_ops
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import label_rois, sample_rois

FUSIONS = ("released", "product", "off")
ROI_LEVELS = (2, 5)  # of a pyramid, first and last, that RoIs are cut out of
OWN = "own"  # among the answers of a RoI head: the one that becomes detections
CONVENTIONS = {  # settings of FasterHead; those of RPN stand in kgarden/models/rpn.py
    "detectron2": {},
    "mmdetection": {"clamp_below": True},
    "maskrcnn_benchmark": {"plus_one": True, "box_beta": 1.0, "sampling_ratio": 2, "aligned": False},
}


class BoxHead(keras.layers.Layer):
    """Features of RoIs -> class logits and box deltas.

    Args:
        num_classes:    C.
        width, num_fcs: of the fully connected layers.
        class_agnostic: one box for a RoI instead of one for each class.
        sigmoid:        classes are independent of each other; the class bias starts at a prior of 0.01.
        num_convs:      see FCHead.
        features:       a layer (B, P, S, S, D) -> (B, P, `width` of it) in place of FCHead.
    Call:
        roi_features: (B, P, S, S, D).
    Returns:
        logits (B, P, C + 1), background last; deltas (B, P, 1 or C, 4); both float32.
    """

    def __init__(
        self,
        num_classes,
        width=1024,
        num_fcs=2,
        class_agnostic=True,
        sigmoid=False,
        num_convs=0,
        features=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups = 1 if class_agnostic else num_classes
        self.features = features or FCHead(width, num_fcs, num_convs, name="features")
        bias = prior_bias(0.01) if sigmoid else "zeros"
        self.classes = keras.layers.Dense(
            num_classes + 1, kernel_initializer=normal(0.01), bias_initializer=bias, name="classes"
        )
        self.boxes = keras.layers.Dense(
            4 * self.groups, kernel_initializer=normal(0.001), dtype="float32", name="boxes"
        )

    def build(self, input_shape):
        self.features.build(input_shape)
        for output in (self.classes, self.boxes):
            output.build((None, None, self.features.width))

    def call(self, roi_features):
        x = self.features(roi_features)  # Keras hands `training` on
        logits, deltas = (ops.cast(output(x), "float32") for output in (self.classes, self.boxes))
        return logits, ops.reshape(deltas, (*ops.shape(deltas)[:2], self.groups, 4))


class FasterHead(keras.layers.Layer):
    """One box head on RoI features.

    Args:
        strides:           of the pyramid.
        num_classes:       C.
        iou:               a RoI is foreground from this IoU on.
        delta_weights:     factors on the deltas, wx, wy, ww, wh.
        num_samples, positive_fraction: RoIs of an image to learn from.
        fuse:              how the proposal's score enters the final score: "released" sqrt(P(C|O) * score)
                           with a score that is sqrt(P(O)) already; "product" P(C|O) * P(O); "off".
        roi_levels, pool_size, sampling_ratio, aligned: see kgarden/heads/roi_features.py.
        width, num_fcs, class_agnostic, sigmoid: see BoxHead.
        box_loss:          "smooth_l1" or "balanced_l1", see kgarden/losses/roi.py.
        box_beta:          of the box loss; smooth L1 with 0 is L1.
        num_convs:         3x3 convolutions in front of the fully connected layers, see FCHead.
        clamp_below:       see `decode_deltas`.
        plus_one:          see `encode_deltas`.
        features:          see BoxHead.
    """

    loss_names = ("roi/class", "roi/box")
    fixed_arguments = ("features",)

    def __init__(
        self,
        strides,
        num_classes,
        iou=0.5,
        delta_weights=(10.0, 10.0, 5.0, 5.0),
        num_samples=512,
        positive_fraction=0.25,
        fuse="off",
        roi_levels=None,
        pool_size=7,
        sampling_ratio=0,
        width=1024,
        num_fcs=2,
        class_agnostic=False,
        sigmoid=False,
        box_beta=0.0,
        num_convs=0,
        aligned=True,
        clamp_below=False,
        plus_one=False,
        box_loss="smooth_l1",
        features=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.fuse", fuse, FUSIONS)
        self.num_classes = num_classes
        self.iou = iou
        self.coder = Coder(tuple(delta_weights), clamp_below, plus_one)
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.fuse = fuse
        self.sigmoid = sigmoid
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.pool = RoIFeatures(
            strides, roi_levels, pool_size, sampling_ratio, aligned, plus_one=plus_one, name="pool"
        )
        self.box_head = BoxHead(
            num_classes, width, num_fcs, class_agnostic, sigmoid, num_convs, features, name="box_head"
        )

    def build(self, pyramid_shapes):
        self.box_head.build((None, None, self.pool.size, self.pool.size, pyramid_shapes[0][-1]))

    def sample(self, proposals, y, random):
        """RoIs to learn from; see kgarden/targets/roi.py."""
        return sample_rois(proposals, y, self.iou, self.num_samples, self.positive_fraction, random)

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"logits", "deltas"} of BoxHead, and the "boxes" and "valid" that they belong to."""
        logits, deltas = self.box_head(self.pool(pyramid, proposals[BOXES]))
        return {"logits": logits, "deltas": deltas, BOXES: proposals[BOXES], VALID: proposals[VALID]}

    def losses(self, raw, y):
        """Terms roi/class and roi/box."""
        terms = stage_losses(raw, y, self.iou, self.coder, self.num_classes, self.sigmoid, self.box_loss)
        return dict(zip(self.loss_names, terms, strict=True))

    def answers(self, raw, size_hw):
        """{OWN: {"boxes": those of `candidates`, "scores": (B, P, C) without a proposal's}}."""
        probability = class_probability(raw["logits"], self.sigmoid)
        return {OWN: {BOXES: clip_groups(decode(raw, self.coder), size_hw), SCORES: probability}}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4); scores (B, P, C), fused with the proposal's."""
        own = self.answers(raw, size_hw)[OWN]
        scores = fuse_scores(own[SCORES], proposals, self.fuse)
        return {BOXES: own[BOXES], SCORES: scores, VALID: proposals[VALID][..., None]}


# What Cascade R-CNN does once for each stage.


class Coder(NamedTuple):
    """How deltas stand for boxes; see `encode_deltas` and `decode_deltas`."""

    weights: tuple
    clamp_below: bool = False
    plus_one: bool = False


def decode(raw, coder):
    """Boxes of all groups, not clipped.   (B, P, 1 or C, 4) px."""
    return box_ops.decode_deltas(
        raw["deltas"],
        raw[BOXES][:, :, None],
        coder.weights,
        clamp_below=coder.clamp_below,
        plus_one=coder.plus_one,
    )


def clip_groups(boxes, size_hw):
    """Boxes of all groups, cut off at the picture.   (B, P, G, 4) -> the same, (B, P, 4) where G is 1."""
    rows, groups = boxes.shape[1:3]
    clipped = box_ops.clip(ops.reshape(boxes, (-1, rows * groups, 4)), size_hw)
    return ops.reshape(clipped, (-1, rows, groups, 4)) if groups > 1 else clipped


def class_probability(logits, sigmoid):
    """P(C | O) of the foreground classes.   (B, P, C + 1) -> (B, P, C)."""
    return (ops.sigmoid(logits) if sigmoid else ops.softmax(logits))[..., :-1]


def fuse_scores(probability, proposals, how):
    """The final score of every class.   CenterNet2, Eq. 3 ("product"), and its release.

    Raises:
        UserError: a proposer whose score, as RPN's, is a ranking and no probability.
    """
    if how == "off":
        return probability
    if proposals.get("probability") is None:
        raise UserError(f"model.roi_head.fuse {how!r}: this proposer's score is no probability; use 'off'")
    if how == "released":
        return ops.sqrt(probability * proposals[SCORES][..., None])
    return probability * proposals["probability"][..., None]


def stage_losses(raw, y, iou, coder, num_classes, sigmoid=False, loss=smooth_l1):
    """Class and box loss of one box head on one set of RoIs.   (), () float32."""
    labels, gt_boxes = label_rois(raw[BOXES], raw[VALID], y, iou, num_classes)
    box_loss = box_loss_of(raw["deltas"], raw[BOXES], labels, gt_boxes, coder, num_classes, loss)
    return class_loss_of(raw["logits"], labels, sigmoid), box_loss


def class_loss_of(logits, labels, sigmoid=False):
    """Mean over all RoIs that are none of padding.   () float32.

    Args:
        logits: (B, P, C + 1).
        labels: (B, P) of `label_rois`.
    """
    loss = (sigmoid_class_loss if sigmoid else softmax_class_loss)(logits, labels)
    return global_mean(ops.sum(loss), _count(labels))


def box_loss_of(predicted, rois, labels, gt_boxes, coder, num_classes, loss=smooth_l1):
    """Loss of deltas summed over foreground, over the number of *all* RoIs.   () float32.

    Args:
        predicted: (B, P, 1 or C, 4) deltas.
        rois:      (B, P, 4) px.
        labels, gt_boxes: of `label_rois`.
        loss:      of `kgarden.losses.roi.box_loss`.
    """
    foreground = (labels >= 0) & (labels < num_classes)
    if predicted.shape[2] == 1:
        predicted = predicted[:, :, 0]
    else:
        of_class = ops.clip(labels, 0, num_classes - 1)[..., None, None]
        predicted = ops.take_along_axis(predicted, of_class, axis=2)[:, :, 0]
    # Background and padding rows encode themselves: finite numbers, masked below.
    target_boxes = ops.where(foreground[..., None], gt_boxes, rois)
    target = box_ops.encode_deltas(rois, target_boxes, coder.weights, coder.plus_one)
    loss_of_roi = ops.sum(loss(predicted, target), axis=-1)
    return global_mean(ops.sum(ops.where(foreground, loss_of_roi, 0.0)), _count(labels))


def _count(labels):
    return ops.sum(ops.cast(labels >= 0, "float32"))


def faster_rcnn(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    rpn=None,
    proposals=None,
    roi_head=None,
    selection=None,
    pixels=None,
    convention="detectron2",
):
    """Faster R-CNN on a pyramid (37.9 AP on COCO with detectron2, ResNet-50, 1x).

    Args:
        num_classes: C.
        seed:        of the draws of anchors and RoIs.
        convention:  whose settings are the defaults of both stages, a key of CONVENTIONS.
        rpn:         settings of RPNHead.
        proposals:   {"train", "test": settings of the Selection of proposals}.
        roi_head:    settings of FasterHead.
        backbone, neck, selection, pixels: names or settings of the parts, laid over the defaults below.
    Returns:
        TwoStage.
    """
    return rcnn(
        "faster_rcnn",
        FasterHead,
        {},
        num_classes,
        seed,
        backbone,
        neck,
        rpn,
        proposals,
        roi_head,
        selection,
        pixels,
        convention,
    )


def rcnn(
    name,
    head,
    defaults,
    num_classes,
    seed,
    backbone,
    neck,
    rpn,
    proposals,
    roi_head,
    selection,
    pixels,
    convention,
    **of_head,
):
    """RPN and a RoI head on a pyramid: the frame of builders.

    Args:
        name:     of the model.
        head:     class of the RoI head.
        defaults: settings of the head, laid over those of the convention.
        num_classes, ..., convention: see `faster_rcnn`; backbone and neck may be layers already.
        of_head:  arguments of the head that are no settings.
    Returns:
        TwoStage.
    """
    one_of("convention", convention, CONVENTIONS)
    if not isinstance(neck, keras.layers.Layer):
        of_pyramid = {"name": "fpn", "channels": 256, "levels": [2, 6], "top": "subsample"}
        neck = make_neck({**of_pyramid, **(neck or {})})
    settings = {"roi_levels": ROI_LEVELS, **CONVENTIONS[convention], **defaults, **(roi_head or {})}
    return TwoStage(
        backbone=make_backbone(backbone),
        neck=neck,
        proposer=first_stage.make_proposer(neck, seed, convention, rpn, proposals),
        roi_head=instantiate(
            head,
            settings,
            "model.roi_head",
            strides=neck.strides,
            num_classes=num_classes,
            name="roi_head",
            **of_head,
        ),
        selection=instantiate(
            Selection, {"iou": 0.5, "per_level": None, "pool": 4096, **(selection or {})}, "model.selection"
        ),
        pixels=pixel_settings(pixels),
        num_classes=num_classes,
        seed=seed,
        name=name,
    )
