"""GFL: a joint score of class and localisation quality, and box sides as distributions.

Li, Wang, Wu, Chen, Hu, Li, Tang, Yang, "Generalized focal loss: learning qualified and distributed bounding
boxes for dense object detection", 2020, arXiv:2006.04388. Instead of a class score and a centre-ness that
never meet in training, the class score learns the IoU of the predicted box; instead of one number for a side,
a softmax over whole distances whose mean is the side. Places are assigned by ATSS.

    paper                          here
    quality focal loss, QFL        kgarden/losses/focal.py; term <name>/class
    sum of P(y_i) y_i              expectation
    distribution focal loss, DFL   the same file; term <name>/distribution
    n                              `reg_max`
    lambda_0, lambda_1             `weights`

With reg_max=None a side is one number, relu(s x) strides, and there is no DFL: the form that CenterNet2 uses
as a first stage (arXiv:2103.07461, section 5). Defaults are mmdetection's, with the authors' settings. Their
code, on mmdetection 1, also does what is not here: anchors centred at (stride - 1) / 2, IoUs with "+1", no
lower bound of the sum of weights, and the best 1000 anchors of a level instead of pairs of anchor and class.
"""

from keras import ops

from kgarden.config.instantiate import forwards_to, merge_defaults
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.losses.box_iou import KINDS, box_iou_loss, pairwise_iou
from kgarden.losses.focal import distribution_focal_loss, expectation, quality_focal_loss
from kgarden.models.atss import ATSSAssigned
from kgarden.models.base.one_stage import dense_detector
from kgarden.ops import boxes as box_ops
from kgarden.ops.points import flatten
from kgarden.ops.replicas import global_mean
from kgarden.targets.assign_result import IGNORED, one_hot

BELOW_LAST = 0.1  # targets stay this far below the largest distance, so that there is always a next one


class GFLHead(ATSSAssigned):
    """Joint scores, and distances in strides from the cell's corner as distributions or numbers.

    Args:
        strides, num_classes: see DenseHead.
        reg_max:  n, the largest distance in strides; None: distances are plain numbers.
        box_loss: a kind of kgarden/losses/box_iou.py.
        beta:     of the quality focal loss.
        weights:  {"class", "box", "distribution"} of the terms.
        kwargs:   see ATSSAssigned and DenseHead.
    """

    fixed_arguments = ("code_size", "anchors", "centerness", "scaled")

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        reg_max=16,
        box_loss="giou",
        beta=2.0,
        weights=None,
        name="gfl",
        **kwargs,
    ):
        if reg_max is not None and reg_max < 1:
            raise UserError(f"model.dense_head.reg_max {reg_max}: at least 1, or null for plain distances")
        super().__init__(strides, num_classes, 4 * ((reg_max or 0) + 1), name=name, **kwargs)
        one_of("dense_head.box_loss", box_loss, KINDS)
        self.reg_max = reg_max
        self.box_loss, self.beta = box_loss, beta
        self.weights_of_terms = merge_defaults(
            {"class": 1.0, "box": 2.0, "distribution": 0.25}, weights, "model.dense_head.weights"
        )
        self.terms = ("class", "box", "distribution") if reg_max else ("class", "box")

    def activate(self, code, level):
        """Logits as they are; plain distances are not negative."""
        return code if self.reg_max else ops.relu(code)

    def distances(self, raw):
        """To the four sides, in strides.   (B, A, 4)."""
        return expectation(self._distribution(raw)) if self.reg_max else flatten(raw["code"], 4)

    def _distribution(self, raw):
        """Logits of the distances 0..n of each side.   (B, A, 4, n + 1)."""
        rows = flatten(raw["code"], 4 * (self.reg_max + 1))
        return ops.reshape(rows, (-1, rows.shape[1], 4, self.reg_max + 1))

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        anchors = self.anchors_of(raw)
        return box_ops.from_ltrb(anchors.points(), self.distances(raw) * anchors.stride[:, None])

    def losses(self, raw, y, step=None):
        """Terms <name>/class, <name>/box, <name>/distribution."""
        matched, gt_boxes, labels = self.truth(raw, y)
        positive, anchors = matched >= 0, self.anchors_of(raw)
        stride = anchors.stride[:, None]
        points = anchors.points() / stride
        # Places without an object see a box of 2x2 strides against itself: no loss, and finite gradients.
        distances = ops.where(positive[..., None], self.distances(raw), 1.0)
        predicted = box_ops.from_ltrb(points, distances)
        nothing = box_ops.from_ltrb(points, ops.ones_like(distances))
        target = ops.where(positive[..., None], gt_boxes / stride, nothing)

        logits = flatten(raw["classes"], self.num_scores)
        quality = ops.stop_gradient(pairwise_iou(predicted, target))
        joint = one_hot(labels, self.num_scores) * quality[..., None]
        loss = quality_focal_loss(logits, joint, self.beta)
        loss = ops.where((matched == IGNORED)[..., None], 0.0, loss)
        terms = {"class": global_mean(ops.sum(loss), self.count(positive))}

        surest = ops.stop_gradient(ops.max(ops.sigmoid(logits), axis=-1))
        weight = ops.where(positive, surest, 0.0)
        box = ops.sum(weight * box_iou_loss(predicted, target, self.box_loss))
        terms["box"] = global_mean(box, ops.sum(weight))
        if self.reg_max:
            ltrb = ops.clip(box_ops.to_ltrb(points, target), 0.0, self.reg_max - BELOW_LAST)
            loss = ops.mean(distribution_focal_loss(self._distribution(raw), ltrb), axis=-1)
            terms["distribution"] = global_mean(ops.sum(weight * loss), ops.sum(weight))
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in self.terms}


@forwards_to(dense_detector, fixed=("name", "head"))
def gfl(num_classes, neck=None, **parts):
    """GFL (40.2 AP on COCO with mmdetection, ResNet-50, 1x).

    Args:
        num_classes: C.
        neck:        settings of the FPN, which override the defaults below.
        parts:       seed, backbone, dense_head, selection, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="gfl",
        head=GFLHead,
        neck={"relu_before_p7": False, "initializer": "xavier", **(neck or {})},
        **parts,
    )
