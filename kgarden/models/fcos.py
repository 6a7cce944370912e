"""FCOS: every point inside an object predicts the distances to its four sides.

Tian, Shen, Chen, He, "FCOS: fully convolutional one-stage object detection", 2019, arXiv:1904.01355; the
improved version: "FCOS: a simple and strong anchor-free object detector", 2020, arXiv:2006.09214. No anchors:
a point learns the class and the sides of the smallest object around it on the level for the object's size.
Points far from the middle give bad boxes, so a second output says how near the middle a point lies.

    paper                             here
    l*, t*, r*, b* (Eq. 1)            kgarden/ops/boxes.py to_ltrb
    m_i, size ranges                  kgarden/targets/fcos.py possible_points; `size_ranges`
    centre sampling (2020, 3.2)       near_center; `center_radius`
    centre-ness (Eq. 3)               centerness; term <name>/centerness
    L_cls, L_reg                      terms <name>/class, <name>/box
    exp(s_i x) or s_i x               `distance`

Defaults are those of mmdetection's improved version, which the PSS paper's baseline is trained with. What the
sources have differently, as arguments:

    first paper            center_radius=None, centerness="class", distance="exp", box_loss="iou"
    AdelaiDet              tower_bias=True, smoothing=1.0, rank_by="score", sqrt_scores=True, clip=False;
                           neck: initializer="c2_xavier"
      BOX_QUALITY=iou      quality="iou"
      THRESH_WITH_CTR      gate_by="score"
      with masks           center_of="mask"
    cvpods                 tower_bias=True, least_weight=1.0, sqrt_scores=True, clip=False;
                           selection: at_most_cells=True; neck: initializer="c2_xavier"
      wo_ctrness (DeFCN)   centerness=None, quality=None, sqrt_scores=False
    torchvision            tower_bias=True, scaled=False, points="torchvision", sqrt_scores=True,
                           rank_by="score", gate_by="score"; selection: score_threshold=0.04, 0.2 of the
                           root; neck: initializer="c2_xavier"; its box loss weighs every box the same
    PSS' configurations    weights={"box": 2.0}
    PSS, Table 6           centerness=None: the target still weighs the box loss
"""

from keras import ops

from kgarden.config.instantiate import forwards_to, merge_defaults
from kgarden.errors import UserError
from kgarden.heads.dense import DenseHead, one_of
from kgarden.losses.box_iou import KINDS, box_iou_loss, pairwise_iou
from kgarden.losses.focal import sigmoid_focal_loss
from kgarden.losses.ltrb_iou import ltrb_iou_loss
from kgarden.models.base.one_stage import dense_detector
from kgarden.ops import boxes as box_ops
from kgarden.ops.box_masks import mass_centers
from kgarden.ops.points import FORMS, flatten, point_grid_of
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, MASKS, truth_is_valid
from kgarden.targets.assign_result import one_hot
from kgarden.targets.fcos import SIZE_RANGES, assign_points, centerness, near_center, possible_points


class FCOSHead(DenseHead):
    """Classes, distances in strides, and centre-ness; raw["code"] holds the distances.

    Args:
        strides, num_classes: see DenseHead.
        size_ranges:   (L, 2) px of the farthest side; see kgarden/targets/fcos.py.
        center_radius: strides around an object's centre that learn it; None: the whole box.
        center_of:     whose centre that is: "box", or "mask", the centre of mass (AdelaiDet with masks); of
                       an object without a mask the box's.
        centerness:    the tower it sits on, "box" or "class"; None: there is no such output.
        quality:       what that output learns: "centerness", which then also weighs the box loss, or "iou" of
                       the predicted box, where every box weighs the same; None: there is no such output and
                       every box weighs the same.
        least_weight:  smallest sum of centre-nesses that the box loss is divided by.
        distance:      "relu": relu(s x) strides; "exp": exp(s x) px.
        points:        where in their cells points lie: see `point_grid` in kgarden/ops/points.py.
        box_loss:      a kind of kgarden/losses/box_iou.py.
        smoothing:     added to intersection and union ("giou", "iou", "linear_iou"); None: nothing is.
        alpha, gamma:  of the focal loss.
        weights:       {"class", "box", "centerness"} of the terms.
        kwargs:        width, num_convs, ..., see DenseHead.
    """

    fixed_arguments = ("code_size", "anchors")

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        size_ranges=SIZE_RANGES,
        center_radius=1.5,
        center_of="box",
        centerness="box",
        quality="centerness",
        least_weight=1e-6,
        distance="relu",
        points="plain",
        box_loss="giou",
        smoothing=None,
        alpha=0.25,
        gamma=2.0,
        weights=None,
        name="fcos",
        **kwargs,
    ):
        super().__init__(strides, num_classes, 4, centerness=centerness, name=name, **kwargs)
        one_of("dense_head.center_of", center_of, ("box", "mask"))
        one_of("dense_head.quality", quality, ("centerness", "iou", None))
        one_of("dense_head.distance", distance, ("relu", "exp"))
        one_of("dense_head.points", points, FORMS)
        one_of("dense_head.box_loss", box_loss, KINDS)
        if len(size_ranges) != len(strides):
            given = f"{len(size_ranges)} ranges for {len(strides)} levels"
            raise UserError(f"model.dense_head.size_ranges: {given}; give one for each")
        if centerness and quality is None:
            given = "null, yet there is an output for it"
            raise UserError(f"model.dense_head.quality: {given}; set centerness to null too")
        self.size_ranges, self.center_radius, self.center_of = size_ranges, center_radius, center_of
        self.quality, self.least_weight, self.distance = quality, least_weight, distance
        self.points = points
        self.box_loss, self.smoothing = box_loss, smoothing
        self.focal = dict(alpha=alpha, gamma=gamma)
        self.weights_of_terms = merge_defaults(
            {"class": 1.0, "box": 1.0, "centerness": 1.0}, weights, "model.dense_head.weights"
        )
        self.terms = ("class", "box", "centerness") if centerness else ("class", "box")

    def activate(self, code, level):
        """Distances in strides."""
        return ops.relu(code) if self.distance == "relu" else ops.exp(code) / self.strides[level]

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        cells = self._cells(raw)
        return box_ops.from_ltrb(cells.points(), flatten(raw["code"], 4) * cells.stride[:, None])

    def _cells(self, raw):
        return point_grid_of(raw["code"], self.strides, self.points)

    # Targets.

    def assign(self, raw, y):
        """The smallest object among the possible ones.   (B, A) int32."""
        return assign_points(self.candidate_mask(raw, y), y[BOXES])

    def candidate_mask(self, raw, y, rule="candidates"):
        """See DenseHead; "candidates": near the centre and on a level for the size."""
        gt = self._cells(raw), y[BOXES], truth_is_valid(y)
        if rule == "candidates":
            region = dict(radius=self.center_radius, centers=self._centers(y))
            return possible_points(*gt, size_ranges=self.size_ranges, **region)
        if rule == "center":
            return near_center(*gt, radius=self.center_radius, centers=self._centers(y))
        return super().candidate_mask(raw, y, rule)

    def _centers(self, y):
        """Centres of the regions that learn, (B, M, 2) px, or None: those of the boxes."""
        return mass_centers(y[MASKS], y[BOXES]) if self.center_of == "mask" and MASKS in y else None

    # Losses.

    def losses(self, raw, y, step=None):
        """Terms <name>/class, <name>/box, <name>/centerness."""
        matched, gt_boxes, labels = self.truth(raw, y)
        cells, positive = self._cells(raw), matched >= 0
        count = ops.sum(ops.cast(positive, "float32"))
        target = box_ops.to_ltrb(cells.points(), gt_boxes) / cells.stride[:, None]
        target = ops.where(positive[..., None], target, 1.0)  # rows without a box see 1 against 1: no loss
        predicted = ops.where(positive[..., None], flatten(raw["code"], 4), 1.0)

        focal = sigmoid_focal_loss(
            flatten(raw["classes"], self.num_scores), one_hot(labels, self.num_scores), **self.focal
        )
        terms = {"class": global_mean(ops.sum(focal), count)}
        if self.quality == "centerness":
            quality, floor = centerness(target), self.least_weight
            weight = ops.where(positive, quality, 0.0)
        else:
            quality = ops.stop_gradient(self._iou(predicted, target))
            weight, floor = ops.cast(positive, "float32"), 1.0
        box = ops.sum(weight * self._box_loss(predicted, target))
        terms["box"] = global_mean(box, ops.sum(weight), floor)
        if "centerness" in raw:
            logits = flatten(raw["centerness"], 1)[..., 0]
            loss = ops.softplus(logits) - logits * quality
            terms["centerness"] = global_mean(ops.sum(ops.where(positive, loss, 0.0)), count)
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in self.terms}

    def _iou(self, predicted, target):
        if self.smoothing is not None:
            return 1 - ltrb_iou_loss(predicted, target, "linear_iou", self.smoothing)
        return pairwise_iou(_around_origin(predicted), _around_origin(target))

    def _box_loss(self, predicted, target):
        if self.smoothing is not None:
            return ltrb_iou_loss(predicted, target, self.box_loss, self.smoothing)
        return box_iou_loss(_around_origin(predicted), _around_origin(target), self.box_loss)


def _around_origin(ltrb):
    return box_ops.from_ltrb(ops.zeros_like(ltrb[..., :2]), ltrb)


@forwards_to(dense_detector, fixed=("name", "head"))
def fcos(num_classes, neck=None, **parts):
    """FCOS, the improved version (38.7 AP on COCO with mmdetection and AdelaiDet, ResNet-50, 1x).

    Args:
        num_classes: C.
        neck:        settings of the FPN, which override the defaults below.
        parts:       seed, backbone, dense_head, selection, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="fcos",
        head=FCOSHead,
        neck={"relu_before_p7": True, "initializer": "xavier", **(neck or {})},
        **parts,
    )
