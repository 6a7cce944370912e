"""Faster R-CNN, second stage: one box head classifies and refines the proposals of RPN (rpn.py).

Ren, He, Girshick, Sun 2015, arXiv:1506.01497; on a pyramid: Lin et al. 2016, arXiv:1612.03144. The first
stage is in kgarden/models/rpn.py, this is the second.

    paper / detectron2              here
    box_head.fc1, fc2               BoxHead.features (kgarden/heads/fc_head.py)
    cls_score, bbox_pred            BoxHead.classes, BoxHead.boxes
    t_x, t_y, t_w, t_h (Eq. 2)      kgarden.ops.boxes.encode_deltas
    L_cls, L_reg                    roi/class, roi/box

Detectron2's settings are the defaults: class loss is the mean over RoIs, the box loss is L1 summed
over foreground and divided by *all* RoIs. Those of the other public implementations: CONVENTIONS.
"""

from typing import NamedTuple

import keras
from keras import ops

from kgarden.config.instantiate import arguments, forwards_to, instantiate, take
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.heads.roi_features import RoIFeatures, RoIPooling
from kgarden.layers.initializers import normal, prior_bias
from kgarden.losses.federated import CLASS_RANDOM, make_subsets, with_numbers_of
from kgarden.losses.roi import make_box_loss, sigmoid_class_loss, smooth_l1, softmax_class_loss
from kgarden.models import rpn as first_stage
from kgarden.models.base.detector import trunk
from kgarden.models.base.two_stage import TwoStage, roi_selection
from kgarden.necks import make_neck
from kgarden.ops import boxes as box_ops
from kgarden.ops.gather import gather
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import RoISampling, label_rois, sample_rois

ROI_LEVELS = (2, 5)  # of a pyramid, first and last, that RoIs are cut out of
FUSED = "own"  # among `branch_predictions` of a RoI head: the one that becomes detections
CONVENTIONS = {  # settings of FasterHead; those of RPN stand in kgarden/models/rpn.py
    "detectron2": {},
    "mmdetection": {"clamp_below": True},
    "torchvision": {"box_beta": 1 / 9, "sampling_ratio": 2, "aligned": False},
    "mmdetection_1": {
        "clamp_below": True,
        "least_px": 1.0,
        "box_beta": 1.0,
        "sampling_ratio": 2,
        "aligned": False,
        "least_cells": 0.0,
    },
    "maskrcnn_benchmark": {"plus_one": True, "box_beta": 1.0, "sampling_ratio": 2, "aligned": False},
}
# Of the FPN, and of the fully connected layers where the head has such a setting.
INITIALIZERS = {
    "detectron2": "c2_xavier",
    "mmdetection": "xavier",
    "torchvision": "c2_xavier",
    "mmdetection_1": "xavier",
    "maskrcnn_benchmark": "c2_xavier",
}
RCNN_LEVELS = {"levels": [2, 6], "top": "subsample"}  # of the FPN


class BoxHead(keras.layers.Layer):
    """Features of RoIs -> class logits and box deltas.

    Args:
        num_classes:    C.
        width, num_fcs: of the fully connected layers.
        class_agnostic: one box for a RoI instead of one for each class.
        sigmoid:        classes are independent of each other; the class bias starts at a prior of 0.01.
        num_convs, norm, initializer: see FCHead.
        features:       a layer (B, P, S, S, D) -> (B, P, `width` of it) in place of FCHead.
    Call:
        roi_features: (B, P, S, S, D).
        valid:        (B, P) bool, RoIs that are none of padding; see FCHead.
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
        norm=None,
        initializer="c2_xavier",
        features=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups = 1 if class_agnostic else num_classes
        self.features = features or FCHead(
            width, num_fcs, num_convs, initializer=initializer, norm=norm, name="features"
        )
        self.classes, self.boxes = class_output(num_classes, sigmoid), box_output(self.groups)

    def build(self, input_shape):
        self.features.build(input_shape)
        for output in (self.classes, self.boxes):
            output.build((None, None, self.features.width))

    def call(self, roi_features, valid=None):
        how = {"valid": valid} if isinstance(self.features, FCHead) else {}
        x = self.features(roi_features, **how)  # Keras hands `training` on
        logits, deltas = (ops.cast(output(x), "float32") for output in (self.classes, self.boxes))
        return logits, ops.reshape(deltas, (*ops.shape(deltas)[:2], self.groups, 4))


def class_output(num_classes, sigmoid):
    """The last layer of classification, C + 1 logits; see BoxHead."""
    bias = prior_bias(0.01) if sigmoid else "zeros"
    return keras.layers.Dense(
        num_classes + 1, kernel_initializer=normal(0.01), bias_initializer=bias, name="classes"
    )


def box_output(groups):
    """The last layer of regression, 4 deltas for each of the groups of classes; see BoxHead."""
    return keras.layers.Dense(4 * groups, kernel_initializer=normal(0.001), dtype="float32", name="boxes")


class FasterHead(keras.layers.Layer):
    """One box head on RoI features.

    Args:
        strides:       of the pyramid.
        num_classes:   C.
        delta_weights: factors on the deltas, wx, wy, ww, wh.
        width, num_fcs, class_agnostic, sigmoid, num_convs, norm, initializer, features: see BoxHead.
        box_loss:      "smooth_l1" or "balanced_l1", see kgarden/losses/roi.py.
        box_beta:      of the box loss; smooth L1 with 0 is L1.
        federated:     settings of Federated (kgarden/losses/federated.py), with `sigmoid`; None: no subsets.
        clamp_below:   see `decode_deltas`.
        plus_one:      see `encode_deltas`.
        least_px:      see RPNHead in kgarden/models/rpn.py.
        settings:      of RoIPooling (kgarden/heads/roi_features.py) and RoISampling (kgarden/targets/roi.py).
    """

    loss_names = ("roi/class", "roi/box")
    takes = (RoIPooling, RoISampling)
    fixed_arguments = ("features",)

    def __init__(
        self,
        strides,
        num_classes,
        delta_weights=(10.0, 10.0, 5.0, 5.0),
        width=1024,
        num_fcs=2,
        class_agnostic=False,
        sigmoid=False,
        federated=None,
        num_convs=0,
        norm=None,
        initializer="c2_xavier",
        box_loss="smooth_l1",
        box_beta=0.0,
        clamp_below=False,
        plus_one=False,
        least_px=0.0,
        features=None,
        **settings,
    ):
        pooling, settings = take(RoIPooling, settings)
        self.sampling, kwargs = take(RoISampling, settings)
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        self.num_classes = num_classes
        self.coder = Coder(tuple(delta_weights), clamp_below, plus_one, least_px)
        self.sigmoid, self.federated = sigmoid, make_subsets(federated, sigmoid, num_classes)
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.pool = RoIFeatures(strides, pooling, plus_one=plus_one, name="pool")
        self.box_head = BoxHead(
            num_classes,
            width=width,
            num_fcs=num_fcs,
            class_agnostic=class_agnostic,
            sigmoid=sigmoid,
            num_convs=num_convs,
            norm=norm,
            initializer=initializer,
            features=features,
            name="box_head",
        )

    def build(self, pyramid_shapes):
        self.box_head.build((None, None, self.pool.size, self.pool.size, pyramid_shapes[0][-1]))

    def sample(self, proposals, y, random):
        """RoIs to learn from; see kgarden/targets/roi.py."""
        sampled = sample_rois(proposals, y, self.sampling, random)
        if self.federated:
            used = proposals[BOXES].shape[1] + y[BOXES].shape[1]
            sampled[CLASS_RANDOM] = self.federated.numbers(random, used)
        return sampled

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"logits", "deltas"} of BoxHead, and the "boxes" and "valid" that they belong to."""
        logits, deltas = self.box_head(self.pool(pyramid, proposals[BOXES]), valid=proposals[VALID])
        raw = {"logits": logits, "deltas": deltas, BOXES: proposals[BOXES], VALID: proposals[VALID]}
        return with_numbers_of(raw, proposals, stage=0)

    def losses(self, raw, y):
        """Terms roi/class and roi/box."""
        of_class, of_box = stage_losses(
            raw,
            y,
            iou=self.sampling.iou,
            num_classes=self.num_classes,
            coder=self.coder,
            sigmoid=self.sigmoid,
            federated=self.federated,
            box_loss=self.box_loss,
        )
        return {"roi/class": of_class, "roi/box": of_box}

    def branch_predictions(self, raw, size_hw):
        """{FUSED: {"boxes": those of `candidates`, "scores": (B, P, C)}}: this head has one branch."""
        probability = class_probability(raw["logits"], self.sigmoid)
        return {
            FUSED: {BOXES: clip_groups(decode(raw, self.coder), size_hw, self.coder), SCORES: probability}
        }

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4); scores (B, P, C) are P(C | O)."""
        return {**self.branch_predictions(raw, size_hw)[FUSED], VALID: proposals[VALID][..., None]}


# One stage's losses and decoding, which Cascade R-CNN and Double-Head R-CNN share.


class Coder(NamedTuple):
    """How deltas stand for boxes; see `encode_deltas`, `decode_deltas` and, for `least_px`, `clip`."""

    weights: tuple
    clamp_below: bool = False
    plus_one: bool = False
    least_px: float = 0.0


def decode(raw, coder):
    """Boxes of all groups, not clipped.   (B, P, 1 or C, 4) px."""
    return box_ops.decode_deltas(
        raw["deltas"],
        raw[BOXES][:, :, None],
        coder.weights,
        clamp_below=coder.clamp_below,
        plus_one=coder.plus_one,
    )


def clip_groups(boxes, size_hw, coder):
    """Boxes of all groups, cut off at the image.   (B, P, G, 4) -> the same, (B, P, 4) where G is 1."""
    rows, groups = boxes.shape[1:3]
    clipped = box_ops.clip(ops.reshape(boxes, (-1, rows * groups, 4)), size_hw, coder.least_px)
    return ops.reshape(clipped, (-1, rows, groups, 4)) if groups > 1 else clipped


def class_probability(logits, sigmoid):
    """P(C | O) of the foreground classes.   (B, P, C + 1) -> (B, P, C)."""
    return (ops.sigmoid(logits) if sigmoid else ops.softmax(logits))[..., :-1]


def stage_losses(raw, y, *, iou, num_classes, coder, sigmoid=False, federated=None, box_loss=smooth_l1):
    """Class and box loss of one box head on one set of RoIs.   Ren et al. 2015, Eq. 1.   (), () float32."""
    labels, gt_boxes = label_rois(raw[BOXES], raw[VALID], y, iou=iou, num_classes=num_classes)
    how = dict(coder=coder, num_classes=num_classes, loss=box_loss)
    of_box = box_loss_of(raw["deltas"], raw[BOXES], labels, gt_boxes, **how)
    subset = federated.of(labels, raw[CLASS_RANDOM]) if federated else None
    return class_loss_of(raw["logits"], labels, sigmoid, subset), of_box


def class_loss_of(logits, labels, sigmoid=False, subset=None):
    """Mean over all RoIs that are none of padding.   () float32.

    Args:
        logits: (B, P, C + 1).
        labels: (B, P) of `label_rois`.
        subset: of the classes, with `sigmoid`, see `sigmoid_class_loss`.
    """
    loss = sigmoid_class_loss(logits, labels, subset) if sigmoid else softmax_class_loss(logits, labels)
    return global_mean(ops.sum(loss), _count(labels))


def box_loss_of(predicted, rois, labels, gt_boxes, *, coder, num_classes, loss=smooth_l1):
    """Loss of deltas summed over foreground, over the number of *all* RoIs.   () float32.

    Args:
        predicted: (B, P, 1 or C, 4) deltas.
        rois:      (B, P, 4) px.
        labels, gt_boxes: of `label_rois`.
        coder:     Coder.
        loss:      of `kgarden.losses.roi.make_box_loss`.
    """
    foreground = (labels >= 0) & (labels < num_classes)
    predicted = of_labels(predicted, labels)
    # Background and padding rows encode themselves: finite numbers, masked below.
    target_boxes = ops.where(foreground[..., None], gt_boxes, rois)
    target = box_ops.encode_deltas(rois, target_boxes, coder.weights, coder.plus_one)
    loss_of_roi = ops.sum(loss(predicted, target), axis=-1)
    return global_mean(ops.sum(ops.where(foreground, loss_of_roi, 0.0)), _count(labels))


def of_labels(deltas, labels):
    """Deltas of the class of each label, of any class for background.   (B, P, 1 or C, 4) -> (B, P, 4)."""
    if deltas.shape[2] == 1:
        return deltas[:, :, 0]
    return gather(deltas, ops.clip(labels, 0, deltas.shape[2] - 1), batch_dims=2)


def _count(labels):
    return ops.sum(ops.cast(labels >= 0, "float32"))


def rcnn(
    num_classes,
    *,
    name,
    head,
    head_defaults=None,
    head_layers=None,
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
    """Builds RPN and a RoI head on a pyramid; the builders of the R-CNN family forward to it.

    Args:
        num_classes:   C.
        name:          of the model.
        head:          class of the RoI head.
        head_defaults: settings of the head that override those of the convention.
        head_layers:   arguments of the head that are layers.
        seed:          of the sampling of anchors and RoIs.
        backbone:      a name, {name, and settings}, or a layer; see kgarden/backbones.
        neck:          settings of the FPN, or a layer.
        rpn:           settings of RPNHead.
        proposals:     {"train", "test": settings of the Selection of proposals}.
        roi_head:      settings of `head`.
        selection:     settings of the final Selection.
        pixels:        "msra", "torchvision", or {mean, std, order}; see kgarden/layers/pixels.py.
        convention:    implementation whose settings are the defaults of both stages, a key of CONVENTIONS.
    Returns:
        TwoStage.
    """
    one_of("convention", convention, CONVENTIONS)
    initial = {"initializer": INITIALIZERS[convention]}
    if not isinstance(neck, keras.layers.Layer):
        neck = make_neck({**RCNN_LEVELS, **initial, **(neck or {})})
    settings = {"roi_levels": ROI_LEVELS, **CONVENTIONS[convention], **(head_defaults or {})}
    settings = (initial if "initializer" in arguments(head) else {}) | settings
    settings |= without_fusion(roi_head)
    fixed = dict(strides=neck.strides, num_classes=num_classes, name="roi_head", **(head_layers or {}))
    return TwoStage(
        **trunk(backbone, neck, pixels),
        proposer=first_stage.make_proposer(neck, seed, convention=convention, rpn=rpn, proposals=proposals),
        roi_head=instantiate(head, settings, "model.roi_head", **fixed),
        selection=roi_selection(selection, iou=0.5),
        num_classes=num_classes,
        seed=seed,
        name=name,
    )


def without_fusion(roi_head):
    """Settings of a RoI head whose scores are not fused with those of RPN."""
    settings = dict(roi_head or {})
    fuse = settings.pop("fuse", "off")
    if fuse != "off":
        raise UserError(
            f"model.roi_head.fuse {fuse!r}: this model does not fuse scores with RPN's; centernet2 with "
            "proposer.name rpn does"
        )
    return settings


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def faster_rcnn(num_classes, **parts):
    """Faster R-CNN on a pyramid (37.9 AP on COCO with detectron2, ResNet-50, 1x).

    Args:
        num_classes: C.
        parts:       seed, backbone, neck, rpn, proposals, roi_head (settings of FasterHead), selection,
                     pixels, convention; see `rcnn`.
    Returns:
        TwoStage.
    """
    return rcnn(num_classes, name="faster_rcnn", head=FasterHead, **parts)
