"""Double-Head R-CNN: a fully connected head classifies each RoI, a convolutional head regresses its box.

Wu, Chen, Yuan, Liu, Wang, Li, Fu, "Rethinking classification and localization for object detection", 2020,
arXiv:1904.06493. The score of a fully connected head follows the IoU of a proposal more closely, a
convolutional head regresses better: so each gets the task that it is good at, and, extended, a little of the
other one.

    paper                                      here
    fc-head (3.1)                              kgarden/heads/fc_head.py
    conv-head, blocks (a), (b), (c) (Fig. 5)   kgarden/heads/conv_head.py, kgarden/layers/non_local.py
    K blocks (Table 2)                         `conv_head` {blocks, non_local}
    Single-FC ... Double-Head-Reverse (Fig. 1) `branches`, `focus`: CONFIGURATIONS
    L_fc, L_conv, lambda (Eqs. 1, 2), omega    `focus`, `weights`: `loss_weights`; terms roi/<branch>_class,
                                               roi/<branch>_box
    s = s_fc + s_conv (1 - s_fc) (Eq. 4)       `fuse`; `fusion`: "complementary", "max", "average"
    (a) to (d) of Fig. 8                       `classify_with`, `regress_with`: FIG_8

The released training code enlarges what the conv-head sees of a proposal 1.3 times, of which the paper says
nothing: `conv_roi_scale`. It rests on maskrcnn-benchmark, whose settings are the defaults (`convention`).
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, instantiate, take
from kgarden.errors import UserError
from kgarden.heads.conv_head import ConvHead
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.heads.roi_features import RoIFeatures, RoIPooling
from kgarden.layers.initializers import normal
from kgarden.losses.roi import make_box_loss
from kgarden.models.faster_rcnn import (
    FUSED,
    Coder,
    box_loss_of,
    class_loss_of,
    class_probability,
    clip_groups,
    decode,
    rcnn,
)
from kgarden.structures import BOXES, SCORES, VALID
from kgarden.targets.roi import RoISampling, label_rois, sample_rois

CONFIGURATIONS = {
    "single_fc": {"branches": ("fc",)},
    "single_conv": {"branches": ("conv",)},
    # omega of two heads of one kind is not in the paper; assumed: that of the kind
    "double_fc": {"branches": ("fc", "fc"), "weights": (2.0, 2.0)},
    "double_conv": {"branches": ("conv", "conv"), "weights": (2.5, 2.5)},
    "double_head": {"branches": ("fc", "conv")},
    "double_head_reverse": {"branches": ("fc", "conv"), "focus": (0.0, 0.0)},
    "double_head_ext": {"branches": ("fc", "conv"), "focus": (0.7, 0.8)},
}
KINDS = ("fc", "conv")
FIG_8 = {  # panel: branches whose class scores are fused, branch whose boxes are used
    "a": {"classify_with": ["conv"], "regress_with": "conv"},
    "b": {"classify_with": ["fc"], "regress_with": "fc"},
    "c": {"classify_with": ["fc"], "regress_with": "conv"},
    "d": {"classify_with": ["fc", "conv"], "regress_with": "conv"},
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
        valid:        (B, P) bool, RoIs that are none of padding; see FCHead and ConvHead.
    Returns:
        {"logits": (B, P, C + 1), "deltas": (B, P, 1 or C, 4)}, float32, those that there are.
    """

    def __init__(self, kind, head, num_classes, *, classifies, regresses, class_agnostic=False, **kwargs):
        super().__init__(**kwargs)
        layer = {"fc": FCHead, "conv": ConvHead}[kind]
        self.features = instantiate(layer, head, f"model.roi_head.{kind}_head", name="features")
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

    def call(self, roi_features, training=False, valid=None):
        x = self.features(roi_features, training=training, valid=valid)
        raw = {}
        if self.classes is not None:
            raw["logits"] = ops.cast(self.classes(x), "float32")
        if self.boxes is not None:
            raw["deltas"] = ops.reshape(self.boxes(x), (*ops.shape(x)[:2], self.groups, 4))
        return raw


# Eqs. 1 to 3: what each branch trains on.


def loss_weights(names, focus, weights):
    """Factor on the class loss and the box loss of each branch; an output without one is not built.

        L_fc   = lambda_fc L_class + (1 - lambda_fc) L_box                      Eq. 1
        L_conv = (1 - lambda_conv) L_class + lambda_conv L_box                  Eq. 2
        L      = omega_fc L_fc + omega_conv L_conv + L_rpn                      Eq. 3

    Args:
        names:   of one or two branches: the first's task is to classify, the second's to regress. One branch
                 does both, with factors of 1.
        focus:   lambda_fc, lambda_conv.
        weights: omega_fc, omega_conv.
    Returns:
        {"<branch>_class" or "<branch>_box": factor}.
    """
    if len(names) == 1:
        return {f"{names[0]}_class": 1.0, f"{names[0]}_box": 1.0}
    (fc, conv), (omega_fc, omega_conv), (lambda_fc, lambda_conv) = names, weights, focus
    factors = {
        f"{fc}_class": omega_fc * lambda_fc,
        f"{fc}_box": omega_fc * (1 - lambda_fc),
        f"{conv}_class": omega_conv * (1 - lambda_conv),
        f"{conv}_box": omega_conv * lambda_conv,
    }
    factors = {term: factor for term, factor in factors.items() if factor > 0}
    for what in ("class", "box"):
        if not any(term.endswith(what) for term in factors):
            raise UserError(f"model.roi_head.focus {list(focus)}: no branch is trained on the {what} loss")
    return factors


# Eq. 4: the fusion of two classifiers.


def fuse(s_fc, s_conv, how):
    """One class probability from two.   Eq. 4 and Table 5.

    Args:
        s_fc, s_conv: (B, P, C) probabilities.
        how:          "complementary", Eq. 4; "max"; "average".
    """
    if how == "complementary":
        return s_fc + s_conv * (1 - s_fc)
    return ops.maximum(s_fc, s_conv) if how == "max" else (s_fc + s_conv) / 2


class DoubleHead(keras.layers.Layer):
    """One or two branches on the same RoIs.

    Args:
        strides:        of the pyramid.
        num_classes:    C.
        branches:       kinds, "fc" or "conv", of one or two; see `loss_weights`.
        focus:          lambda of each of two branches; see `loss_weights`.
        weights:        omega of each of two branches; see `loss_weights`.
        fc_head, conv_head: settings of FCHead and ConvHead.
        conv_roi_scale: factor on the sides of the RoIs that a conv branch is pooled from.
        classify_with:  branches whose class scores are the detections', fused if two (Fig. 8); None: all that
                        are trained to classify.
        regress_with:   branch whose boxes are the detections' (Fig. 8); None: the last one that is trained
                        to regress.
        fusion:         how two class probabilities are fused; see `fuse`.
        delta_weights, class_agnostic, box_loss, box_beta, clamp_below, plus_one, least_px: see
                        FasterHead.
        settings:       of RoIPooling (kgarden/heads/roi_features.py) and of RoISampling
                        (kgarden/targets/roi.py).
    """

    takes = (RoIPooling, RoISampling)

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
        classify_with=None,
        regress_with=None,
        fusion="complementary",
        delta_weights=(10.0, 10.0, 5.0, 5.0),
        class_agnostic=False,
        box_beta=1.0,
        clamp_below=False,
        plus_one=False,
        least_px=0.0,
        box_loss="smooth_l1",
        **settings,
    ):
        pooling, settings = take(RoIPooling, settings)
        self.sampling, kwargs = take(RoISampling, settings)
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("roi_head.fusion", fusion, FUSIONS)
        for kind in branches:
            one_of("roi_head.branches", kind, KINDS)
        if len(branches) not in (1, 2):
            raise UserError(f"model.roi_head.branches: {len(branches)} of them; give one or two")
        self.num_classes = num_classes
        self.coder = Coder(tuple(delta_weights), clamp_below, plus_one, least_px)
        self.box_loss = make_box_loss(box_loss, box_beta)
        self.fusion = fusion
        self.names = names_of(branches)
        self.weights_of_terms = loss_weights(self.names, focus, weights)
        self.kinds = dict(zip(self.names, branches, strict=True))
        self.classify_with = self._chosen("classify_with", "class", classify_with)
        [self.regress_with] = self._chosen("regress_with", "box", regress_with and [regress_with])[-1:]

        scales = {"fc": 1.0, "conv": conv_roi_scale}
        self.scale_of = {name: scales[kind] for name, kind in self.kinds.items()}
        self.pools = [
            RoIFeatures(strides, pooling, enlarged=scale, plus_one=plus_one)
            for scale in sorted(set(self.scale_of.values()))
        ]
        heads = {"fc": fc_head or {}, "conv": conv_head or {}}
        self.branches = {
            name: Branch(
                kind,
                heads[kind],
                num_classes,
                classifies=f"{name}_class" in self.weights_of_terms,
                regresses=f"{name}_box" in self.weights_of_terms,
                class_agnostic=class_agnostic,
                name=name,
            )
            for name, kind in self.kinds.items()
        }
        self.size = pooling.pool_size

    def _chosen(self, setting, what, names):
        """Branches for one output of the detections: those asked for, or all that are trained."""
        trained = self.trained(what)
        if names is None:
            return trained
        if not names or not set(names) <= set(trained):
            raise UserError(
                f"model.roi_head.{setting} {', '.join(names) or '[]'}: the {what} loss trains "
                f"{', '.join(trained)}; see branches and focus"
            )
        return list(names)

    def is_trained_for(self, classify_with, regress_with):
        """Whether the outputs that these settings need are trained."""
        return set(classify_with) <= set(self.trained("class")) and regress_with in self.trained("box")

    def trained(self, what):
        """Names of the branches that are trained on the "class" or the "box" loss."""
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
        """RoIs to train on; see kgarden/targets/roi.py."""
        return sample_rois(proposals, y, self.sampling, random)

    def call(self, pyramid, proposals, size_hw, training=False):
        """{"branches": {name: {"logits", "deltas"}}}, and the "boxes" and "valid" that they belong to."""
        features = {pool.settings["enlarged"]: pool(pyramid, proposals[BOXES]) for pool in self.pools}
        how = dict(training=training, valid=proposals[VALID])
        raw = {name: branch(features[self.scale_of[name]], **how) for name, branch in self.branches.items()}
        return {"branches": raw, BOXES: proposals[BOXES], VALID: proposals[VALID]}

    def losses(self, raw, y):
        """Terms roi/<branch>_class and roi/<branch>_box of Eqs. 1 and 2, weighted by `loss_weights`."""
        labels, gt_boxes = label_rois(
            raw[BOXES], raw[VALID], y, iou=self.sampling.iou, num_classes=self.num_classes
        )
        of_boxes = dict(coder=self.coder, num_classes=self.num_classes, loss=self.box_loss)
        terms = {}
        for term, weight in self.weights_of_terms.items():
            name, what = term.rsplit("_", 1)
            outputs = raw["branches"][name]
            if what == "class":
                loss = class_loss_of(outputs["logits"], labels)
            else:
                loss = box_loss_of(outputs["deltas"], raw[BOXES], labels, gt_boxes, **of_boxes)
            terms[f"roi/{term}"] = loss * weight
        return terms

    def branch_predictions(self, raw, size_hw):
        """Scores and boxes of each branch, and their combination of Fig. 8 under the key FUSED.

        Returns:
            {FUSED or a branch's name: {"boxes": (B, P, 4) or (B, P, C, 4), clipped; "scores": (B, P, C)}}; of
            a branch only what it is trained for, and no branches where there is one.
        """
        predictions = {}
        for name, outputs in raw["branches"].items():
            predictions[name] = {}
            if "logits" in outputs:
                predictions[name][SCORES] = class_probability(outputs["logits"], sigmoid=False)
            if "deltas" in outputs:
                predictions[name][BOXES] = clip_groups(
                    decode({**raw, **outputs}, self.coder), size_hw, self.coder
                )
        scores = [predictions[name][SCORES] for name in self.classify_with]
        scores = fuse(*scores, self.fusion) if len(scores) == 2 else scores[0]
        fused = {BOXES: predictions[self.regress_with][BOXES], SCORES: scores}
        return {FUSED: fused, **predictions} if len(predictions) == 2 else {FUSED: fused}

    def candidates(self, raw, proposals, size_hw):
        """Clipped boxes (B, P, 4) or (B, P, C, 4); scores (B, P, C)."""
        return {**self.branch_predictions(raw, size_hw)[FUSED], VALID: proposals[VALID][..., None]}


def names_of(branches):
    """Names of branches: their kinds, numbered where both are of one kind."""
    if len(set(branches)) == len(branches):
        return list(branches)
    return [f"{kind}{number}" for number, kind in enumerate(branches, start=1)]


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def double_head(num_classes, configuration="double_head", convention="maskrcnn_benchmark", **parts):
    """Double-Head R-CNN (39.5 AP on COCO, ResNet-50, 1x; extended 40.3) and what the paper compares it with.

    Args:
        num_classes:   C.
        configuration: a key of CONFIGURATIONS.
        convention:    see `rcnn`.
        parts:         seed, backbone, neck, rpn, proposals, roi_head (settings of DoubleHead), selection,
                       pixels; see `rcnn`.
    Returns:
        TwoStage.
    """
    one_of("configuration", configuration, CONFIGURATIONS)
    return rcnn(
        num_classes,
        name="double_head",
        head=DoubleHead,
        head_defaults=CONFIGURATIONS[configuration],
        convention=convention,
        **parts,
    )
