"""Double-Head R-CNN: what a box holds is told by dense layers, where it ends by convolutions.

Wu, Chen, Yuan, Liu, Wang, Li, Fu, "Rethinking classification and localization for object detection", 2020,
arXiv:1904.06493. The score of a fully connected head follows the IoU of a proposal more closely, a
convolutional head regresses better: so each gets the task that it is good at, and, extended, a little of the
other one.

    paper                                      here
    fc-head (3.1)                              kgarden/heads/fc_head.py
    conv-head, blocks (a), (b), (c) (Fig. 5)   kgarden/heads/conv_head.py, kgarden/layers/non_local.py
    K blocks (Table 2)                         `conv_head` {blocks, non_local}
    Single-FC ... Double-Head-Reverse (Fig. 1) `branches`, `focus`: CONFIGURATIONS
    L_fc, L_conv, lambda (Eqs. 1, 2), omega    `focus`, `weights`; terms roi/<branch>_class, roi/<branch>_box
    s = s_fc + s_conv (1 - s_fc) (Eq. 4)       `fusion`: "complementary", "max", "average"
    (a) to (d) of Fig. 8                       `answer`: "conv", "fc", "crossed", "fused"

The released training code enlarges what the conv-head sees of a proposal 1.3 times, of which the paper says
nothing: `conv_roi_scale`. It rests on maskrcnn-benchmark, whose settings are the defaults (`convention`).
"""

import keras
from keras import ops

from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.heads.conv_head import ConvHead
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.heads.roi_features import RoIFeatures
from kgarden.layers.initializers import normal
from kgarden.losses.roi import make_box_loss
from kgarden.models.faster_rcnn import (
    OWN,
    Coder,
    box_loss_of,
    class_loss_of,
    class_probability,
    clip_groups,
    decode,
    rcnn,
)
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import label_rois, sample_rois

CONFIGURATIONS = {
    "single_fc": {"branches": ("fc",)},
    "single_conv": {"branches": ("conv",)},
    "double_fc": {"branches": ("fc", "fc"), "weights": (2.0, 2.0)},
    "double_conv": {"branches": ("conv", "conv"), "weights": (2.5, 2.5)},
    "double_head": {"branches": ("fc", "conv")},
    "double_head_reverse": {"branches": ("fc", "conv"), "focus": (0.0, 0.0)},
    "double_head_ext": {"branches": ("fc", "conv"), "focus": (0.7, 0.8)},
}
KINDS = ("fc", "conv")
ANSWERS = {  # branches whose classes count, branch whose boxes do
    "conv": (["conv"], "conv"),
    "fc": (["fc"], "fc"),
    "crossed": (["fc"], "conv"),
    "fused": (["fc", "conv"], "conv"),
}
FUSIONS = ("complementary", "max", "average")


class Branch(keras.layers.Layer):
    """One head, fc or conv, with the outputs that are trained.

    Args:
        kind:        "fc" or "conv".
        head:        settings of FCHead or ConvHead.
        num_classes: C.
        classifies, regresses: which outputs there are.
        class_agnostic: one box for a RoI instead of one for each class.
    Call:
        roi_features: (B, P, S, S, D).
    Returns:
        {"logits": (B, P, C + 1), "deltas": (B, P, 1 or C, 4)}, float32, those that there are.
    """

    def __init__(self, kind, head, num_classes, classifies, regresses, class_agnostic=False, **kwargs):
        super().__init__(**kwargs)
        layer = {"fc": FCHead, "conv": ConvHead}[kind]
        self.features = instantiate(layer, head, f"model.roi_head.{kind}_head", name="features")
        self.takes_training = kind == "conv"
        self.groups = 1 if class_agnostic else num_classes
        self.classes = self.boxes = None
        if classifies:
            self.classes = keras.layers.Dense(
                num_classes + 1, kernel_initializer=normal(0.01), name="classes"
            )
        if regresses:
            self.boxes = keras.layers.Dense(
                4 * self.groups, kernel_initializer=normal(0.001), dtype="float32", name="boxes"
            )

    def build(self, input_shape):
        self.features.build(input_shape)
        for output in (self.classes, self.boxes):
            if output is not None:
                output.build((None, None, self.features.width))

    def call(self, roi_features, training=False):
        x = self.features(roi_features, **({"training": training} if self.takes_training else {}))
        raw = {}
        if self.classes is not None:
            raw["logits"] = ops.cast(self.classes(x), "float32")
        if self.boxes is not None:
            raw["deltas"] = ops.reshape(self.boxes(x), (*ops.shape(x)[:2], self.groups, 4))
        return raw


class DoubleHead(keras.layers.Layer):
    """One or two branches on the same RoIs.

    Args:
        strides:        of the pyramid.
        num_classes:    C.
        branches:       kinds; the first one's task is to classify, the second one's to regress. One alone
                        does both.
        focus:          lambda of each of two: share of its loss that is its own task's.
        weights:        omega of each of two.
        fc_head, conv_head: settings of FCHead and ConvHead.
        conv_roi_scale: factor on the sides of what a conv branch sees of a proposal.
        answer:         whose classes and boxes are the detections: "conv" or "fc" both of one; "crossed"
                        classes of fc, boxes of conv; "fused" classes of both, boxes of conv. None: what is
                        trained: both branches' classes, fused, and the boxes of the one whose task they are.
        fusion:         of the probabilities of two branches.
        iou, delta_weights, num_samples, positive_fraction, roi_levels, pool_size, sampling_ratio, aligned,
        class_agnostic, box_beta, clamp_below, plus_one, box_loss: see FasterHead.
    """

    def __init__(
        self,
        strides,
        num_classes,
        branches=("fc", "conv"),
        focus=(1.0, 1.0),
        weights=(2.0, 2.5),
        fc_head=None,
        conv_head=None,
        conv_roi_scale=1.3,
        answer=None,
        fusion="complementary",
        iou=0.5,
        delta_weights=(10.0, 10.0, 5.0, 5.0),
        num_samples=512,
        positive_fraction=0.25,
        roi_levels=None,
        pool_size=7,
        sampling_ratio=0,
        aligned=True,
        class_agnostic=False,
        box_beta=1.0,
        clamp_below=False,
        plus_one=False,
        box_loss="smooth_l1",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.fusion", fusion, FUSIONS)
        one_of("roi_head.answer", answer, (*ANSWERS, None))
        for kind in branches:
            one_of("roi_head.branches", kind, KINDS)
        if len(branches) not in (1, 2):
            raise UserError(f"model.roi_head.branches: {len(branches)} of them; give one or two")
        self.num_classes = num_classes
        self.iou, self.num_samples, self.positive_fraction = iou, num_samples, positive_fraction
        self.coder = Coder(tuple(delta_weights), clamp_below, plus_one)
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.fusion = fusion
        self.names = names_of(branches)
        self.weights_of_terms = weights_of_terms(self.names, focus, weights)
        self.kinds = dict(zip(self.names, branches, strict=True))
        self.answer = self._answer(answer)

        scales = {"fc": 1.0, "conv": conv_roi_scale}
        self.scale_of = {name: scales[kind] for name, kind in self.kinds.items()}
        shared = dict(aligned=aligned, plus_one=plus_one)
        self.pools = [
            RoIFeatures(strides, roi_levels, pool_size, sampling_ratio, enlarged=scale, **shared)
            for scale in sorted(set(self.scale_of.values()))
        ]
        heads = {"fc": fc_head or {}, "conv": conv_head or {}}
        self.branches = {
            name: Branch(
                kind,
                heads[kind],
                num_classes,
                f"{name}_class" in self.weights_of_terms,
                f"{name}_box" in self.weights_of_terms,
                class_agnostic,
                name=name,
            )
            for name, kind in self.kinds.items()
        }
        self.size = pool_size

    def _answer(self, answer):
        """(names of the branches whose classes count, name of the one whose boxes do)."""
        if answer is None:
            return self._trained("class"), self._trained("box")[-1]
        if not self.can_answer(answer):
            classes, boxes = (", ".join(self._trained(what)) for what in ("class", "box"))
            raise UserError(
                f"model.roi_head.answer {answer!r}: classes are trained in {classes}, boxes in {boxes}; "
                "see branches and focus"
            )
        return ANSWERS[answer]

    def can_answer(self, answer):
        """Whether the outputs that this answer needs are trained."""
        classes, boxes = ANSWERS[answer]
        return set(classes) <= set(self._trained("class")) and boxes in self._trained("box")

    def _trained(self, what):
        return [name for name in self.names if f"{name}_{what}" in self.weights_of_terms]

    def pool_of(self, name):
        """What cuts out the RoI features that a branch reads.   RoIFeatures"""
        return next(pool for pool in self.pools if pool.settings["enlarged"] == self.scale_of[name])

    @property
    def loss_names(self):
        return [f"roi/{term}" for term in self.weights_of_terms]

    def build(self, pyramid_shapes):
        for branch in self.branches.values():
            branch.build((None, None, self.size, self.size, pyramid_shapes[0][-1]))

    def sample(self, proposals, y, random):
        """RoIs to learn from; see kgarden/targets/roi.py."""
        return sample_rois(proposals, y, self.iou, self.num_samples, self.positive_fraction, random)

    def call(self, pyramid, proposals, size_hw, training=False):
        """{branch: {"logits", "deltas"}}, and the "boxes" and "valid" that they belong to."""
        seen = {pool.settings["enlarged"]: pool(pyramid, proposals[BOXES]) for pool in self.pools}
        raw = {
            name: branch(seen[self.scale_of[name]], training=training)
            for name, branch in self.branches.items()
        }
        return {"branches": raw, BOXES: proposals[BOXES], VALID: proposals[VALID]}

    def losses(self, raw, y):
        """Terms roi/<branch>_class and roi/<branch>_box, weighted."""
        labels, gt_boxes = label_rois(raw[BOXES], raw[VALID], y, self.iou, self.num_classes)
        terms = {}
        for term, weight in self.weights_of_terms.items():
            name, what = term.rsplit("_", 1)
            outputs = raw["branches"][name]
            if what == "class":
                loss = class_loss_of(outputs["logits"], labels)
            else:
                target = (raw[BOXES], labels, gt_boxes, self.coder, self.num_classes, self.box_loss)
                loss = box_loss_of(outputs["deltas"], *target)
            terms[f"roi/{term}"] = loss * weight
        return terms

    def answers(self, raw, size_hw):
        """What the detections are made of, and what each of two branches says by itself.

        Returns:
            {OWN or a branch's name: {"boxes": (B, P, 4) or (B, P, C, 4), clipped; "scores": (B, P, C)}}, of a
            branch what it was trained for.
        """
        said = {}
        for name, outputs in raw["branches"].items():
            said[name] = {}
            if "logits" in outputs:
                said[name][SCORES] = class_probability(outputs["logits"], sigmoid=False)
            if "deltas" in outputs:
                said[name][BOXES] = clip_groups(decode({**raw, **outputs}, self.coder), size_hw)
        classify, regress = self.answer
        scores = [said[name][SCORES] for name in classify]
        scores = fuse(*scores, self.fusion) if len(scores) == 2 else scores[0]
        own = {BOXES: said[regress][BOXES], SCORES: scores}
        return {OWN: own, **said} if len(said) == 2 else {OWN: own}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4); scores (B, P, C)."""
        return {**self.answers(raw, size_hw)[OWN], VALID: proposals[VALID][..., None]}


def names_of(branches):
    """Names of branches: their kinds, numbered where both are of one kind."""
    if len(set(branches)) == len(branches):
        return list(branches)
    return [f"{kind}{number}" for number, kind in enumerate(branches, start=1)]


def weights_of_terms(names, focus, weights):
    """The factor on the class and box loss of each branch; what has none is not built.   Eqs. 1 to 3.

    Args:
        names:   of one or two branches.
        focus:   lambda_fc, lambda_conv; not looked at for one branch.
        weights: omega_fc, omega_conv; not looked at for one branch.
    Returns:
        {"<branch>_class" or "<branch>_box": factor}.
    """
    if len(names) == 1:
        return {f"{names[0]}_class": 1.0, f"{names[0]}_box": 1.0}
    (first, second), (of_first, of_second), (lambda_1, lambda_2) = names, weights, focus
    factors = {
        f"{first}_class": of_first * lambda_1,
        f"{first}_box": of_first * (1 - lambda_1),
        f"{second}_class": of_second * (1 - lambda_2),
        f"{second}_box": of_second * lambda_2,
    }
    factors = {term: factor for term, factor in factors.items() if factor > 0}
    for what in ("class", "box"):
        if not any(term.endswith(what) for term in factors):
            raise UserError(f"model.roi_head.focus {list(focus)}: no branch learns the {what}")
    return factors


def fuse(a, b, how):
    """One probability of two.   Section 4.4, Table 5.

    Args:
        a, b: (B, P, C) probabilities.
        how:  "complementary": a + b (1 - a); "max"; "average".
    """
    if how == "complementary":
        return a + b * (1 - a)
    return ops.maximum(a, b) if how == "max" else (a + b) / 2


def double_head(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    configuration="double_head",
    rpn=None,
    proposals=None,
    roi_head=None,
    selection=None,
    pixels=None,
    convention="maskrcnn_benchmark",
):
    """Double-Head R-CNN (39.5 AP on COCO, ResNet-50, 1x; extended 40.3) and what the paper compares it with.

    Args:
        num_classes:   C.
        seed:          of the draws of anchors and RoIs.
        configuration: a key of CONFIGURATIONS.
        roi_head:      settings of DoubleHead, laid over those of the configuration.
        convention, rpn, proposals, backbone, neck, selection, pixels: see `faster_rcnn`.
    Returns:
        TwoStage.
    """
    one_of("configuration", configuration, CONFIGURATIONS)
    return rcnn(
        "double_head",
        DoubleHead,
        CONFIGURATIONS[configuration],
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
