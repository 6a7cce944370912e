"""PSS: detection without NMS; a branch on any dense detector selects one positive for each object.

Zhou, Yu, Shen, Wang, Li, "Object detection made simpler by eliminating heuristic NMS", 2021,
arXiv:2101.11782. A few convolutions on the (detached) box tower say at every place whether it is the one
that answers for its object. Their score times the detector's own is learned one-to-one, beside the
detector's own one-to-many losses; so the detector stays what it was, and the branch is a learned NMS that
may be left out again.

    paper                                   here
    PSS head (Fig. 1, sections 4.2.3, 4.2.4) Selector; `selector` {num_convs, branch, stop_gradient, ...}
    P (Eq. 4)                               PSSHead.probability
    Q, alpha, Omega (Eq. 3), Table 8        kgarden/targets/one_to_one.py; `assignment`
    Hungarian or top-one (section 3.3)      kgarden/ops/linear_assignment.py; `assignment.matching`
    L_pss (3.1.1), lambda_1                 kgarden/losses/product_focal.py; term pss/class, `weights.class`
    L_rank (Eq. 2), lambda_2, gamma, n_-    kgarden/losses/ranking.py; term pss/rank, `weights`, `ranking`
    end-to-end, one-to-many prediction      `prediction`
    two-step training (4.2.2)               `stages` in recipes/atss_pss.yaml, row table3.two_step

The authors published no code of it. What the paper leaves open, and what was chosen: docs/pss.md.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, instantiate, merge_defaults, name_and_settings
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.selection import Selection
from kgarden.heads.tower import Tower
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal, prior_bias
from kgarden.losses.product_focal import focal_loss, sigmoid_product
from kgarden.losses.ranking import NEGATIVES, ranking_loss
from kgarden.models.base.detector import trunk
from kgarden.models.base.one_stage import OneStage
from kgarden.models.condinst import condinst, released_base
from kgarden.models.dense_bases import BASES, make_base
from kgarden.necks import make_neck
from kgarden.ops.linear_assignment import OUTSIDE
from kgarden.ops.points import flatten
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, LABELS, SCORES
from kgarden.targets.one_to_one import FORMS, MATCHINGS, choose, quality

PREDICTIONS = ("end_to_end", "one_to_many")
ASSIGNMENT = {"matching": "hungarian", "form": "mul", "alpha": 0.8, "outside": OUTSIDE}
WEIGHTS = {"class": 1.0, "rank": 0.25}
RANKING = {"margin": 0.5, "num_negatives": 100, "negatives": "best_class"}
FOCAL = {"alpha": 0.25, "gamma": 2.0}


class Selector(keras.layers.Layer):
    """The PSS branch: which place answers for its object?

    Args:
        anchors:       K, boxes of one cell: one answer for each.
        num_convs:     3x3 convolutions in front of the one that predicts (Table 5).
        width, norm, norm_groups: of these; see kgarden/heads/tower.py.
        branch:        the tower of the base that it reads, "box" or "class" (Table 4).
        stop_gradient: whether what it reads is a constant to it (Table 2).
        prior:         probability that it starts with.
    Call:
        raw: outputs of the base.
    Returns:
        list of (B, H_l, W_l, K) float32 logits.
    """

    def __init__(
        self,
        anchors=1,
        num_convs=2,
        width=256,
        norm="gn",
        norm_groups=None,
        branch="box",
        stop_gradient=True,
        prior=0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        one_of("selector.branch", branch, ("box", "class"))
        self.feature = {"box": "reg_feature", "class": "cls_feature"}[branch]
        self.stop_gradient = stop_gradient
        self.tower = Tower(num_convs, width, norm, norm_groups, use_bias=None, name="tower")
        self.predictor = Conv(
            anchors,
            3,
            kernel_initializer=normal(0.01),
            bias_initializer=prior_bias(prior),
            name="predictor",
        )

    def build(self, input_shape):
        self.tower.build(input_shape)
        width = self.tower.convs[-1].filters if self.tower.convs else input_shape[-1]
        self.predictor.build((None, None, None, width))

    def call(self, raw, training=False):
        logits = []
        for features in raw[self.feature]:
            x = ops.stop_gradient(features) if self.stop_gradient else features
            logits.append(ops.cast(self.predictor(self.tower(x, training=training)), "float32"))
        return logits


class PSSHead(keras.layers.Layer):
    """A dense head with a Selector on it.

    Args:
        strides:       px for one cell of each level.
        num_classes:   C, or None for a head that only proposes.
        base:          a key of BASES, or {name: ..., and settings of that head}.
        selector:      settings of Selector.
        assignment:    {"matching": "hungarian" or "top_one", "form": "mul" or "add", "alpha",
                       "omega": places that an object may have, see DenseHead.possible; by the base,
                       "outside": see kgarden/ops/linear_assignment.py}.
        weights:       {"class": lambda_1, "rank": lambda_2}; of the base's terms, see there.
        ranking:       {"margin", "num_negatives", "negatives"}, see kgarden/losses/ranking.py.
        focal:         {"alpha", "gamma"}.
        detach_scores: whether the one-to-one losses take the base's scores as constants as well.
        prediction:    "end_to_end": scores with the selector's, for a selection without NMS; "one_to_many":
                       the base's own candidates.
        name:          first half of the names of the terms.
    """

    def __init__(
        self,
        strides,
        num_classes=None,
        base="fcos",
        selector=None,
        assignment=None,
        weights=None,
        ranking=None,
        focal=None,
        detach_scores=False,
        prediction="end_to_end",
        name="pss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        one_of("prediction", prediction, PREDICTIONS)
        self.base = make_base(base, strides, num_classes)
        self.selector = instantiate(
            Selector,
            {"width": self.base.width, **(selector or {})},
            "model.selector",
            anchors=self.base.anchors,
            name="selector",
        )
        defaults = {**ASSIGNMENT, "omega": BASES[name_and_settings(base, "model.base", BASES)[0]].omega}
        self.assignment = merge_defaults(defaults, assignment, "model.assignment")
        one_of("assignment.matching", self.assignment["matching"], MATCHINGS)
        one_of("assignment.form", self.assignment["form"], FORMS)
        self.weights_of_terms = merge_defaults(WEIGHTS, weights, "model.weights")
        self.ranking = merge_defaults(RANKING, ranking, "model.ranking")
        one_of("ranking.negatives", self.ranking["negatives"], NEGATIVES)
        self.focal = merge_defaults(FOCAL, focal, "model.focal")
        self.detach_scores = detach_scores
        self.prediction = prediction

    def build(self, pyramid_shapes):
        self.base.build(pyramid_shapes)
        self.selector.build((None, None, None, self.depth(pyramid_shapes[0][-1])))

    # What another head that lies on it has to know; see kgarden/heads/dense.py.

    @property
    def strides(self):
        return self.base.strides

    @property
    def num_classes(self):
        return self.base.num_classes

    @property
    def anchors(self):
        return self.base.anchors

    def depth(self, channels):
        """Channels of the towers' features."""
        return self.base.depth(channels)

    def assign(self, raw, y):
        """The base's object of each place, one-to-many.   (B, A) int32."""
        return self.base.assign(raw, y)

    @property
    def loss_names(self):
        return [*self.base.loss_names, f"{self.name}/class", f"{self.name}/rank"]

    def call(self, pyramid, training=False):
        """The base's raw outputs, and "pss": list of (B, H_l, W_l, K) logits."""
        raw = self.base(pyramid, training=training)
        return {**raw, "pss": self.selector(raw, training=training)}

    # Training.

    def losses(self, raw, y, step=None):
        """The base's terms, pss/class and pss/rank.

        Args:
            raw:  of `call`.
            y:    {"boxes": (B, M, 4) xyxy px, "labels": (B, M) int32, -1 for padding, "crowd": (B, M) bool}.
            step: number of the training step, for bases whose losses remember earlier ones.
        Returns:
            {name of the term: () float32}.
        """
        return self.base.losses(raw, y, step=step) | self.one_to_one_losses(raw, y)

    def one_to_one_losses(self, raw, y):
        """Terms pss/class and pss/rank."""
        of_class, of_rank = self.weights_of_terms["class"], self.weights_of_terms["rank"]
        if of_class == of_rank == 0:  # the base alone is trained
            return {f"{self.name}/class": ops.zeros(()), f"{self.name}/rank": ops.zeros(())}
        matched = self.match(raw, y)
        probability = self.probability(raw, self.detach_scores)
        focal = ops.sum(focal_loss(probability, matched.labels, **self.focal))
        ranked = ranking_loss(probability.value(), matched.row, matched.label, matched.valid, **self.ranking)
        count = ops.sum(ops.cast(matched.valid, "float32"))
        images = ops.cast(ops.shape(y[LABELS])[0], "float32")
        return {
            f"{self.name}/class": global_mean(focal, count) * of_class,
            f"{self.name}/rank": global_mean(ops.sum(ranked), images) * of_rank,
        }

    def match(self, raw, y):
        """The place of every object by what is predicted now.   kgarden.targets.one_to_one.OneToOne."""
        rule = self.assignment
        labels = y[LABELS]
        if self.base.num_classes is None:
            labels = ops.minimum(labels, 0)
        probability = self.probability(raw).value()
        good = quality(
            probability,
            self.base.boxes(raw),
            y[BOXES],
            gt_labels=labels,
            alpha=rule["alpha"],
            form=rule["form"],
        )
        omega = self.base.candidate_mask(raw, y, rule["omega"])
        return choose(good, omega, labels, matching=rule["matching"], outside=rule["outside"])

    # What the outputs mean.

    def probability(self, raw, detach_scores=False):
        """P of Eq. 4: the selector's score times the base's.   LogProbability (B, A, C)."""
        classes, *factors = self.base.score_logits(raw)
        if detach_scores:
            classes, *factors = (ops.stop_gradient(logits) for logits in (classes, *factors))
        return sigmoid_product(flatten(raw["pss"], 1), *factors, classes)

    def candidates(self, raw, size_hw=None):
        """Every place's box and score; end-to-end ones are *not* clipped.

        Args:
            raw:     of `call`.
            size_hw: (B, 2) px, for the base's own candidates; see DenseHead.
        Returns:
            {"boxes": (B, A, 4) xyxy px, "scores", "probability": (B, A, C), "levels": [(H_l, W_l, K), ...]}.
        """
        if self.prediction == "one_to_many":
            return self.base.candidates(raw, size_hw)
        scores = self.base.scores(raw) * ops.sigmoid(flatten(raw["pss"], 1))
        return {
            BOXES: self.base.boxes(raw),
            SCORES: scores,
            "probability": scores,
            "levels": self.base.levels(raw),
        }


@forwards_to(PSSHead, fixed=("strides", "name"))
def pss(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    base="fcos",
    prediction="end_to_end",
    selection=None,
    pixels=None,
    **of_head,
):
    """FCOS_PSS (42.3 AP on COCO, ResNet-50, 3x), ATSS_PSS (42.6) and PSS on other bases.

    Args:
        num_classes: C.
        base:        "fcos", "atss", ..., or {name: ..., and settings of that head}.
        prediction:  see PSSHead. With "one_to_many" the selector is dropped and NMS at 0.6 is done, as in the
                     base.
        of_head:     selector, assignment, weights, ranking, focal, detach_scores; see PSSHead.
        seed, backbone, neck, selection, pixels: see `dense_detector`.
    Returns:
        OneStage.
    """
    name, of_base = name_and_settings(base, "model.base", BASES)
    neck = make_neck({"initializer": "xavier", **BASES[name].neck, **(neck or {})})  # mmdetection's
    of_base = {"name": name, "width": neck.channels, **of_base}
    head = PSSHead(neck.strides, num_classes, base=of_base, prediction=prediction, **of_head)
    return OneStage(
        dense_head=head,
        selection=selection_for(prediction, BASES[name].nms_iou, selection or {}),
        **trunk(backbone, neck, pixels),
        num_classes=num_classes,
        seed=seed,
        name="pss",
    )


@forwards_to(condinst, fixed=("dense_head",))
def condinst_pss(num_classes, base="fcos", pss=None, prediction=None, neck=None, selection=None, **parts):
    """CondInst_PSS: CondInst over PSS, without NMS (41.2 box AP, 36.7 mask AP on COCO, ResNet-50, 3x).

    Args:
        num_classes: C.
        base:        as in `condinst`.
        pss:         {selector, assignment, weights, ranking, focal, detach_scores}, see PSSHead; {} for its
                     defaults; None: CondInst on the base alone, with NMS.
        prediction:  "end_to_end", the default with `pss`, without NMS; "one_to_many": the selector is dropped
                     and NMS at 0.6 is done.
        neck, selection, parts: see `condinst`.
    Returns:
        OneStage.
    """
    one_of("prediction", prediction, (None, *PREDICTIONS))
    if pss is None:
        if prediction == "end_to_end":
            raise UserError("model.prediction end_to_end needs the branch of PSS: set model.pss to {}")
        return condinst(num_classes, base=base, neck=neck, selection=selection, **parts)
    prediction = prediction or "end_to_end"
    name, of_base = released_base(base)
    neck = make_neck({**BASES[name].neck, **(neck or {})})
    fixed = {
        "base": {"name": name, "width": neck.channels, **of_base},
        "prediction": prediction,
        "name": "pss",
    }
    fixed |= {"strides": neck.strides, "num_classes": num_classes}
    return condinst(
        num_classes,
        dense_head=instantiate(PSSHead, pss, "model.pss", **fixed),
        neck=neck,
        selection=selection_for(prediction, BASES[name].nms_iou, selection or {}),
        **parts,
    )


def selection_for(prediction, nms_iou, settings):
    """Selection of detections: without NMS the best K of all, or the base's own.

    The best K of all are among the best K of their levels: more need not be sorted.
    """
    defaults = {"iou": nms_iou}
    if prediction == "end_to_end":
        best = settings.get("total", Selection.total)
        defaults |= {"method": "none", "score_threshold": 0.0, "per_level": best}
    return instantiate(Selection, {**defaults, **settings}, "model.selection")
