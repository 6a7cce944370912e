"""TSD: each task of a RoI head looks where its own, learned offsets send it.

Song, Liu, Wang, "Revisiting the sibling head in object detector", 2020, arXiv:2003.07540. To classify and to
localise, different parts of an object matter. From the RoI feature F of a proposal P one small network moves
every bin of it for the classifier, another the whole proposal for the regressor. While training, the usual
sibling head learns beside them from P itself, and a progressive constraint asks the two to be better than it
by a margin; it is left out of inference.

    paper                                 here
    F = RoIAlign(F_l, P)                  TSDHead.pool
    F_r, F_c (Eqs. 3, 5)                  OffsetEstimators: fc1 is the shared layer, then {256, 2 or 98}
    gamma                                 `gamma`
    P^_r = P + Delta R (Eq. 4)            `translated`; raw["moved"]
    F^_c (Eq. 6), F^_r                    TSDHead.pool_moved, kgarden/ops/deform_roi_pool.py
    H^D_1, H^D_2 (Eq. 2)                  TaskHead: TSDHead.classifier, TSDHead.regressor
    H_1, H_2 (Eq. 1)                      TSDHead.sibling; terms roi/sibling_class, roi/sibling_box
    M_cls (Eq. 7), m_c; M_loc (Eq. 8), m_r  kgarden/losses/progressive.py; `class_margin`, `box_margin`; terms
                                          roi/class_constraint, roi/box_constraint
    L (Eq. 9)                             TSDHead.losses
    D_head, D_s8, D_s16, D_s32 (Table 1)  CONFIGURATIONS; kgarden/necks/twin.py
    Prop.w, Point.w (Table 4)             `classify_at`, `regress_at`: "proposal", "point", None

The paper's values are the defaults, CONFIGURATIONS has the release's where it disagrees; see docs/tsd.md.
"""

import keras
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import forwards_to, take
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.heads.roi_features import DeformRoIFeatures, RoIFeatures, RoIPooling
from kgarden.layers.initializers import by_name, normal, torch_bias, torch_uniform
from kgarden.losses.box_iou import pairwise_iou
from kgarden.losses.progressive import Constraint, box_constraint, class_constraint
from kgarden.losses.roi import make_box_loss
from kgarden.models.faster_rcnn import (
    FUSED,
    INITIALIZERS,
    RCNN_LEVELS,
    BoxHead,
    Coder,
    box_loss_of,
    class_loss_of,
    class_probability,
    clip_groups,
    decode,
    of_labels,
    rcnn,
)
from kgarden.necks import make_neck
from kgarden.necks.twin import TwinNeck, stages_above
from kgarden.ops.boxes import decode_deltas
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import RoISampling, label_rois, sample_rois

KINDS = ("point", "proposal", None)
TWO_HEADS = {"classify_at": None, "regress_at": None, "sibling": False}
CONFIGURATIONS = {  # settings of TSDHead
    "tsd": {},
    "release": {
        "class_margin": 0.3,
        "box_margin": 0.3,
        "cap_margins": True,
        "idle_images": True,
        "predictors": "torch",
    },
    "d_head": TWO_HEADS,
    **{f"d_s{stride}": {**TWO_HEADS, "own_pyramids": True} for stride in (8, 16, 32)},
}
MOVED, SIBLING = "moved", "sibling"  # keys of the raw outputs
OFFSETS, POINTS = "offsets", "points"


class OffsetEstimators(keras.layers.Layer):
    """Three fully connected layers for each task, the first one shared: the offsets of its proposal.

    Eqs. 3 and 5 without gamma (w, h).

    Args:
        kinds:       {task: "point", an offset for every bin, or "proposal", one for all}.
        size:        S, bins along each side.
        width:       of the hidden layers.
        initializer: see kgarden/layers/initializers.py.
        zero:        whether offsets start at 0, as in deformable convolutions, instead of at random.
    Call:
        roi_features: (B, P, S, S, D).
    Returns:
        {task: (B, P, S, S, 2) or (B, P, 1, 1, 2) float32, x before y}.
    """

    def __init__(self, kinds, size, width=256, initializer="normal_fan_in", zero=False, **kwargs):
        super().__init__(**kwargs)
        self.sides = {task: size if kind == "point" else 1 for task, kind in kinds.items()}
        self.shared = FCHead(width, num_fcs=1, initializer=initializer, name="shared")
        where = "model.roi_head.initializer"
        self.hidden, self.last = {}, {}
        for task, side in self.sides.items():
            weights = dict(kernel_initializer=by_name(initializer, where), name=f"{task}_hidden")
            self.hidden[task] = keras.layers.Dense(width, activation="relu", **weights)
            kernel = "zeros" if zero else by_name(initializer, where)
            self.last[task] = keras.layers.Dense(
                2 * side * side, kernel_initializer=kernel, dtype="float32", name=f"{task}_offsets"
            )

    def build(self, input_shape):
        self.shared.build(input_shape)
        for layer in (*self.hidden.values(), *self.last.values()):
            layer.build((None, None, self.shared.width))

    def call(self, roi_features):
        shared, offsets = self.shared(roi_features), {}
        for task, side in self.sides.items():
            raw = ops.cast(self.last[task](self.hidden[task](shared)), "float32")
            raw = ops.reshape(raw, (*ops.shape(raw)[:2], 2, side, side))  # as the release has them
            offsets[task] = ops.transpose(raw, (0, 1, 3, 4, 2))
        return offsets


def translated(boxes, offset, gamma, plus_one=False):
    """P^_r = P + gamma F_r(F) (w, h), not clipped.   Eqs. 3 and 4.

    Args:
        boxes:    (B, P, 4) px.
        offset:   (B, P, 1, 1, 2).
        plus_one: see `encode_deltas`.
    Returns:
        (B, P, 4) px.
    """
    side = boxes[..., 2:] - boxes[..., :2] + float(plus_one)
    move = gamma * offset[:, :, 0, 0] * side
    return boxes + ops.concatenate([move, move], axis=-1)


class TaskHead(keras.layers.Layer):
    """f_c and C, or f_r and R: fully connected layers and the output of one task.   Eq. 2.

    Args:
        outputs:     channels.
        deviation:   of the output's kernel at first.
        predictors:  "normal", or "torch": the release leaves the output as PyTorch initialises it.
        width, num_fcs, initializer: see FCHead.
    Call:
        roi_features: (B, P, S, S, D).
    Returns:
        (B, P, outputs) float32.
    """

    def __init__(self, outputs, deviation, predictors, *, width, num_fcs, initializer, dtype=None, **kwargs):
        super().__init__(**kwargs)
        self.features = FCHead(width, num_fcs, initializer=initializer, name="features")
        kernel, bias = normal(deviation), "zeros"
        if predictors == "torch":
            kernel, bias = torch_uniform(), torch_bias(width)
        self.output_layer = keras.layers.Dense(
            outputs, kernel_initializer=kernel, bias_initializer=bias, dtype=dtype, name="output"
        )

    def build(self, input_shape):
        self.features.build(input_shape)
        self.output_layer.build((None, None, self.features.width))

    def call(self, roi_features):
        return ops.cast(self.output_layer(self.features(roi_features)), "float32")


class TSDHead(keras.layers.Layer):
    """TSD's head with its sibling.   Fig. 2.

    Args:
        strides:       of the pyramid.
        num_classes:   C.
        classify_at:   where the classifier looks: at bins moved one by one, "point", all together,
                       "proposal", or at those of the proposal, None.
        regress_at:    where the regressor looks, likewise. Boxes are regressed from P^_r if "proposal", else
                       from P.
        sibling:       whether the sibling head is trained beside; without it there is no constraint.
        gamma:         of Eqs. 3 and 5.
        samples:       of each bin along a side, in moved bins.
        aligned_offsets: form of the deformable pooling, see kgarden/ops/deform_roi_pool.py.
        offset_width:  of the estimators' hidden layers.
        zero_offsets:  whether offsets start at 0.
        detach_target: whether the target of the regressor is a constant; otherwise its loss also moves P^_r.
        predictors:    see TaskHead.
        own_pyramids:  whether the pyramid holds the classifier's channels, then the regressor's (Table 1).
        delta_weights, width, num_fcs, class_agnostic, box_loss, box_beta, clamp_below, plus_one,
                       least_px: see FasterHead.
        fc_initializer: of the fully connected layers, the estimators' too.
        settings:      of Constraint (kgarden/losses/progressive.py), of RoIPooling
                       (kgarden/heads/roi_features.py) and of RoISampling (kgarden/targets/roi.py).
    """

    takes = (Constraint, RoIPooling, RoISampling)

    def __init__(
        self,
        strides,
        num_classes,
        classify_at="point",
        regress_at="proposal",
        sibling=True,
        gamma=0.1,
        samples=4,
        aligned_offsets=False,
        offset_width=256,
        zero_offsets=False,
        detach_target=False,
        predictors="normal",
        own_pyramids=False,
        delta_weights=(10.0, 10.0, 5.0, 5.0),
        width=1024,
        num_fcs=2,
        class_agnostic=False,
        fc_initializer="normal_fan_in",
        box_loss="smooth_l1",
        box_beta=1.0,
        clamp_below=False,
        plus_one=False,
        least_px=0.0,
        **settings,
    ):
        self.constraint, settings = take(Constraint, settings)
        pooling, settings = take(RoIPooling, settings)
        self.sampling, kwargs = take(RoISampling, settings)
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.classify_at", classify_at, KINDS)
        one_of("roi_head.regress_at", regress_at, KINDS)
        one_of("roi_head.predictors", predictors, ("normal", "torch"))
        self.num_classes, self.gamma, self.detach_target = num_classes, gamma, detach_target
        self.coder = Coder(tuple(delta_weights), clamp_below, plus_one, least_px)
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.kinds = {"class": classify_at, "box": regress_at}
        self.own_pyramids, self.size = own_pyramids, pooling.pool_size
        self.pool = RoIFeatures(strides, pooling, plus_one=plus_one, name="pool")
        kinds = {task: kind for task, kind in self.kinds.items() if kind}
        if own_pyramids and (kinds or sibling):
            raise UserError(
                "model.roi_head.own_pyramids: use classify_at: null, regress_at: null, sibling: false"
            )
        fcs = dict(width=width, num_fcs=num_fcs, initializer=fc_initializer)
        self.estimators = self.sibling = None
        if kinds:
            how = dict(width=offset_width, initializer=fc_initializer, zero=zero_offsets)
            self.estimators = OffsetEstimators(kinds, self.size, **how, name="estimators")
            how = dict(samples=samples, gamma=gamma, aligned=aligned_offsets, plus_one=plus_one)
            self.pool_moved = DeformRoIFeatures(strides, pooling, **how, name="pool_moved")
        self.groups = 1 if class_agnostic else num_classes
        self.classifier = TaskHead(num_classes + 1, 0.01, predictors, **fcs, name="classifier")
        self.regressor = TaskHead(
            4 * self.groups, 0.001, predictors, **fcs, dtype="float32", name="regressor"
        )
        if sibling:
            self.sibling = BoxHead(num_classes, class_agnostic=class_agnostic, **fcs, name="sibling")

    @property
    def loss_names(self):
        names = ["roi/class", "roi/box"]
        if self.sibling is not None:
            margins = {"class": self.constraint.class_margin, "box": self.constraint.box_margin}
            names += ["roi/sibling_class", "roi/sibling_box"]
            names += [f"roi/{task}_constraint" for task, margin in margins.items() if margin is not None]
        return names

    def build(self, pyramid_shapes):
        shape = (None, None, self.size, self.size, pyramid_shapes[0][-1])
        for part in (self.estimators, self.classifier, self.regressor, self.sibling):
            if part is not None:
                part.build(shape)

    def sample(self, proposals, y, random):
        """RoIs to learn from; see kgarden/targets/roi.py."""
        return sample_rois(proposals, y, self.sampling, random)

    def call(self, pyramid, proposals, size_hw, training=False):
        """Outputs of TSD's head, and in training those of its sibling.

        Returns:
            {"logits": (B, P, C + 1), "deltas": (B, P, 1 or C, 4) from "moved", "boxes", "valid": the
            proposals; "moved": (B, P, 4), P^_r, "offsets": of OffsetEstimators, and in training, if there is
            one, "sibling": {"logits", "deltas" from "boxes"}}.
        """
        boxes = proposals[BOXES]
        features = self.pool(pyramid, boxes)
        offsets = {} if self.estimators is None else self.estimators(features)
        seen = self._features_of_tasks(pyramid, boxes, features, offsets)
        moved = boxes
        if self.kinds["box"] == "proposal":
            moved = translated(boxes, offsets["box"], self.gamma, self.coder.plus_one)  # Eq. 4
        deltas = self.regressor(seen["box"])
        raw = {
            "logits": self.classifier(seen["class"]),
            "deltas": ops.reshape(deltas, (*ops.shape(deltas)[:2], self.groups, 4)),
            MOVED: moved,
            OFFSETS: offsets,
            BOXES: boxes,
            VALID: proposals[VALID],
        }
        if training and self.sibling is not None:
            raw[SIBLING] = dict(zip(("logits", "deltas"), self.sibling(features), strict=True))
        return raw

    def _features_of_tasks(self, pyramid, boxes, features, offsets):
        """F^_c and F^_r: what each task sees.   Eq. 6."""
        if self.own_pyramids:
            half = features.shape[-1] // 2
            return {"class": features[..., :half], "box": features[..., half:]}
        return {
            task: self.pool_moved(pyramid, boxes, offsets[task]) if kind else features
            for task, kind in self.kinds.items()
        }

    # Losses: Eq. 9.

    def losses(self, raw, y):
        """Terms of Eqs. 1 and 2, and of the progressive constraint."""
        labels, gt_boxes = label_rois(
            raw[BOXES], raw[VALID], y, iou=self.sampling.iou, num_classes=self.num_classes
        )
        moved = ops.stop_gradient(raw[MOVED]) if self.detach_target else raw[MOVED]
        terms = {
            "roi/class": class_loss_of(raw["logits"], labels),
            "roi/box": self._box_loss(raw["deltas"], moved, labels, gt_boxes),
        }
        if self.sibling is None:
            return terms
        sibling = raw[SIBLING]
        terms["roi/sibling_class"] = class_loss_of(sibling["logits"], labels)
        terms["roi/sibling_box"] = self._box_loss(sibling["deltas"], raw[BOXES], labels, gt_boxes)
        how = self.constraint
        if how.class_margin is not None:
            terms["roi/class_constraint"] = class_constraint(sibling["logits"], raw["logits"], labels, how)
        if how.box_margin is not None:
            of_sibling, of_tsd = (
                self._iou(deltas, boxes, labels, gt_boxes)
                for deltas, boxes in ((sibling["deltas"], raw[BOXES]), (raw["deltas"], raw[MOVED]))
            )
            background = self.num_classes
            terms["roi/box_constraint"] = box_constraint(of_sibling, of_tsd, labels, background, how=how)
        return terms

    def _box_loss(self, deltas, boxes, labels, gt_boxes):
        how = dict(coder=self.coder, num_classes=self.num_classes, loss=self.box_loss)
        return box_loss_of(deltas, boxes, labels, gt_boxes, **how)

    def _iou(self, deltas, boxes, labels, gt_boxes):
        """IoU of the boxes of the labels' classes with their objects, not clipped.   (B, P)"""
        predicted = of_labels(deltas, labels)
        weights, clamp_below, plus_one, _ = self.coder
        predicted = decode_deltas(predicted, boxes, weights, clamp_below=clamp_below, plus_one=plus_one)
        edge = float(plus_one) * ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0], dtype="float32")
        return pairwise_iou(predicted + edge, gt_boxes + edge, epsilon=1.0)  # the union is 1 px^2 or more

    # Inference: TSD's head alone.

    def branch_predictions(self, raw, size_hw):
        """{FUSED: {"boxes": those of `candidates`, "scores": (B, P, C)}}."""
        boxes = clip_groups(decode({**raw, BOXES: raw[MOVED]}, self.coder), size_hw, self.coder)
        return {FUSED: {BOXES: boxes, SCORES: class_probability(raw["logits"], sigmoid=False)}}

    def derived_proposals(self, raw):
        """What the tasks see: P^_r, and the bins of each task that has offsets.   Fig. 5.

        Returns:
            [{"boxes": P, "moved": P^_r, both (B, P, 4) px; "points": {task: (B, P, S, S, 2) px, centres of
            its bins}, "offsets": {task: (B, P, S, S, 2) or (B, P, 1, 1, 2), in sides of P}}], one stage.
        """
        points = {task: self.pool_moved.centers(raw[BOXES], one) for task, one in raw[OFFSETS].items()}
        offsets = {task: self.gamma * one for task, one in raw[OFFSETS].items()}
        return [{BOXES: raw[BOXES], MOVED: raw[MOVED], POINTS: points, OFFSETS: offsets}]

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4); scores (B, P, C) are P(C | O)."""
        return {**self.branch_predictions(raw, size_hw)[FUSED], VALID: proposals[VALID][..., None]}


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def tsd(num_classes, configuration="tsd", convention="mmdetection_1", backbone="resnet50", neck=None, **more):
    """TSD on Faster R-CNN (41.0 AP on COCO, ResNet-50), and what Table 1 compares it with.

    Args:
        num_classes:   C.
        configuration: a key of CONFIGURATIONS: "tsd" with the paper's values, "release" with those of the
                       authors' code; "d_head", "d_s32", "d_s16", "d_s8": two networks, for the two tasks,
                       above the RoI features or above C4, C3 or C2. RPN reads the classifier's pyramid.
        convention:    see `rcnn`; the release rests on mmdetection 1.
        backbone, neck: see `rcnn`.
        more:          seed, rpn, proposals, roi_head (settings of TSDHead), selection, pixels; see `rcnn`.
    Returns:
        TwoStage.
    """
    one_of("configuration", configuration, CONFIGURATIONS)
    if configuration.startswith("d_s"):
        backbone = make_backbone(backbone)
        settings = [{**RCNN_LEVELS, "initializer": INITIALIZERS[convention], **(neck or {})}] * 2
        stride = int(configuration.removeprefix("d_s"))
        neck = TwinNeck(*map(make_neck, settings), stages=stages_above(backbone, stride), name="neck")
    of_head = dict(name="tsd", head=TSDHead, head_defaults=CONFIGURATIONS[configuration])
    return rcnn(num_classes, **of_head, convention=convention, backbone=backbone, neck=neck, **more)
