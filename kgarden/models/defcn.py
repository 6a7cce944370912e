"""DeFCN: a fully convolutional detector without NMS, the baseline of PSS.

Wang, Song, Li, Sun, Sun, Zheng, "End-to-end object detection with fully convolutional network", 2021,
arXiv:2012.03544. FCOS without centre-ness learns from one point for each object, the one that it predicts
best at present (POTO); a branch that looks at three levels at once (3D max filtering) makes that point
stand out from its neighbours; an auxiliary loss with many points for each object keeps the features rich.

    paper / release                here
    POTO, Eq. 2-4                  kgarden/targets/one_to_one.py, Omega: near_center of targets/fcos.py
    3DMF, Eq. 5-6                  MaxFilter
    auxiliary loss                 auxiliary_labels; term defcn/auxiliary
    L on P = sigmoid(s) sigmoid(f) kgarden/losses/product_focal.py; term defcn/class
    "POTO (argmax)"                matching="top_one"

The release gives an object without a point of its own the first free cell of the image as its positive
(scipy's answer where nothing is allowed). `unmatched="released"` repeats that; the default drops it.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, instantiate, merge_defaults
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal
from kgarden.layers.norm import GroupNorm
from kgarden.losses.box_iou import box_iou_loss
from kgarden.losses.product_focal import focal_loss, sigmoid_product
from kgarden.models.base.one_stage import dense_detector
from kgarden.models.fcos import FCOSHead
from kgarden.ops.gather import gather
from kgarden.ops.points import flatten
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, LABELS, truth_is_valid
from kgarden.targets.fcos import FAR
from kgarden.targets.one_to_one import FORMS, MATCHINGS, choose, chosen, quality

UNMATCHED = ("drop", "released")
WEIGHTS = {"class": 1.0, "box": 2.0, "auxiliary": 1.0}
UNIT = (0.0, 0.0, 1.0, 1.0)  # what rows without a point see on both sides: no loss


class MaxFilter(keras.layers.Layer):
    """What stands out among its neighbours in space and scale.   Section 3.3, Eq. 5 and 6.

        y_l = conv(x_l);  out_l = relu(norm(max over |k - l| <= tau / 2 and 3x3 of y_k + x_l))

    Neighbouring levels are resized bilinearly to the size of the level in the middle. It is the input x_l
    that is added, not y_l.

    Args:
        width:       of the convolution: that of its input.
        tau:         levels looked at besides the middle one, half of them finer, half coarser.
        kernel_size: of the spatial neighbourhood.
        norm:        "gn", or None; norm_groups as in kgarden/layers/norm.py.
    Call:
        pyramid: list of (B, H_l, W_l, width), finest first.
    Returns:
        list of the same shapes.
    """

    def __init__(self, width=256, tau=2, kernel_size=3, norm="gn", norm_groups=None, **kwargs):
        super().__init__(**kwargs)
        if tau % 2 or norm not in ("gn", None):
            raise UserError(f"max filter: tau {tau} must be even and norm {norm!r} gn or null")
        self.reach = tau // 2
        self.kernel_size = kernel_size
        self.conv = Conv(width, 3, kernel_initializer=normal(0.01), name="conv")
        self.norm = GroupNorm(norm_groups, name="norm") if norm else None

    def build(self, input_shape):
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build(input_shape)

    def call(self, pyramid):
        filtered = [self.conv(level) for level in pyramid]
        return [self._level(number, filtered, level) for number, level in enumerate(pyramid)]

    def _level(self, number, filtered, level):
        size = level.shape[1:3]
        first, last = max(0, number - self.reach), min(len(filtered), number + self.reach + 1)
        near = [
            filtered[k] if k == number else ops.image.resize(filtered[k], size, "bilinear", antialias=False)
            for k in range(first, last)
        ]
        highest = near[0]
        for other in near[1:]:
            highest = ops.maximum(highest, other)
        highest = ops.max_pool(highest, self.kernel_size, strides=1, padding="same")
        summed = highest + level
        return ops.relu(summed if self.norm is None else self.norm(summed))


def auxiliary_labels(quality, gt_boxes, gt_labels, gt_valid, cells, top_k=9):
    """Many points for each object: those that are good for it by class and place.   Section 3.4.

    Of every level the best `top_k` are candidates; positive are those whose quality reaches mean + standard
    deviation (unbiased) of all candidates of the object and that lie inside its box. A point that several
    objects want goes to the one that it is best for.

    Args:
        quality:  (B, M, A), of `kgarden.targets.one_to_one.quality` without the filter.
        gt_boxes, gt_labels, gt_valid: (B, M, 4), (B, M), (B, M).
        cells:    kgarden.ops.points.PointGrid.
    Returns:
        (B, A) int32 class, or -1 for background.
    """
    found, start = [], 0
    for count in cells.counts():
        best = ops.top_k(quality[..., start : start + count], min(top_k, count))[1]
        found.append(ops.cast(best, "int32") + start)
        start += count
    rows = ops.concatenate(found, axis=-1)  # (B, M, K)
    values = gather(quality, rows, batch_dims=2)
    mean = ops.mean(values, axis=-1, keepdims=True)
    spread = ops.sum(ops.square(values - mean), axis=-1, keepdims=True) / max(rows.shape[-1] - 1, 1)

    points = ops.array(cells.points())
    x, y = ops.take(points[:, 0], rows), ops.take(points[:, 1], rows)
    left, top, right, bottom = (gt_boxes[..., side, None] for side in range(4))
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    positive = inside & (values >= mean + ops.sqrt(spread)) & gt_valid[..., None]

    wanted = _spread_out(ops.where(positive, values, -1.0), rows, quality.shape[2])  # (B, M, A)
    owner = ops.cast(ops.argmax(wanted, axis=1), "int32")
    label = gather(ops.cast(gt_labels, "int32"), owner)
    return ops.where(ops.max(wanted, axis=1) >= 0, label, -1)


def _spread_out(values, rows, length):
    """Values (B, M, K) at their rows of a (B, M, length) array of -1."""
    batch, objects = ops.shape(rows)[0], rows.shape[1]
    line = ops.reshape(ops.arange(batch * objects, dtype="int32"), (-1, objects, 1))
    where = ops.reshape(ops.stack([ops.broadcast_to(line, ops.shape(rows)), rows], axis=-1), (-1, 2))
    empty = ops.zeros((batch * objects, length), "float32") - 1.0
    filled = ops.scatter_update(empty, where, ops.reshape(values, (-1,)))
    return ops.reshape(filled, (-1, objects, length))


def with_first_free(matched, gt_valid):
    """Give objects without a candidate the first cells that nobody has, in turn, as the release does.

    Args:
        matched:  kgarden.targets.one_to_one.OneToOne.
        gt_valid: (B, M) bool.
    Returns:
        OneToOne.
    """
    objects = gt_valid.shape[1]
    length = min(2 * objects, matched.object.shape[1])
    index = ops.arange(length, dtype="int32")
    free = matched.object[:, :length] < 0
    first = ops.cast(ops.top_k(ops.where(free, -index, -length), min(objects, length))[1], "int32")
    alone = gt_valid & ~matched.valid
    turn = ops.cumsum(ops.cast(alone, "int32"), axis=1) - 1
    given = gather(first, ops.clip(turn, 0, first.shape[1] - 1))
    row = ops.where(matched.valid, matched.row, ops.where(alone & (turn < first.shape[1]), given, -1))
    return chosen(row, matched.label, matched.object.shape[1])


class DeFCNHead(FCOSHead):
    """FCOS' towers without centre-ness, and the filter branch on the box tower.

    Args:
        strides, num_classes: see kgarden/heads/dense.py.
        max_filter:  settings of MaxFilter; None: no filter branch ("POTO" alone).
        radius:      of the centre region, strides.
        alpha, form, matching: see kgarden/targets/one_to_one.py.
        unmatched:   objects without a point of their own: "drop", or "released" (the first free cell).
        auxiliary:   {"top_k"} of the auxiliary loss; None: without.
        focal:       {"alpha", "gamma"}.
        weights:     {"class", "box", "auxiliary"} of the terms.
        kwargs:      width, num_convs, ..., see DenseHead.
    """

    fixed_arguments = (*FCOSHead.fixed_arguments, "size_ranges", "center_radius", "center_of", "centerness")
    fixed_arguments += (
        "quality",
        "least_weight",
        "distance",
        "box_loss",
        "smoothing",
        "gamma",
        "sqrt_scores",
        "rank_by",
        "gate_by",
        "clip",
    )

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        max_filter=(),
        radius=1.5,
        alpha=0.8,
        form="mul",
        matching="hungarian",
        unmatched="drop",
        auxiliary=(),
        focal=None,
        weights=None,
        tower_bias=True,
        name="defcn",
        **kwargs,
    ):
        super().__init__(
            strides,
            num_classes,
            size_ranges=[(0, FAR)] * len(strides),  # an object may be learned on any level
            center_radius=radius,
            centerness=None,
            tower_bias=tower_bias,
            rank_by="score",
            gate_by="score",
            clip=False,
            name=name,
            **kwargs,
        )
        one_of("dense_head.unmatched", unmatched, UNMATCHED)
        one_of("dense_head.matching", matching, MATCHINGS)
        one_of("dense_head.form", form, FORMS)
        self.quality_settings = {"alpha": alpha, "form": form}
        self.matching, self.unmatched = matching, unmatched
        self.focal = merge_defaults({"alpha": 0.25, "gamma": 2.0}, focal, "model.dense_head.focal")
        self.weights_of_terms = merge_defaults(WEIGHTS, weights, "model.dense_head.weights")
        self.terms = ("class", "box")
        self.auxiliary = None
        if auxiliary is not None:
            self.terms += ("auxiliary",)
            self.auxiliary = merge_defaults({"top_k": 9}, dict(auxiliary), "model.dense_head.auxiliary")
        self.max_filter = self.filter = None
        if max_filter is not None:
            settings = {"norm_groups": kwargs.get("norm_groups"), **dict(max_filter)}
            where, width = "model.dense_head.max_filter", self.width
            self.max_filter = instantiate(MaxFilter, settings, where, width=width, name="max_filter")
            self.filter = self._output(1, "filter")

    def build(self, pyramid_shapes):
        super().build(pyramid_shapes)
        if self.filter is not None:
            shape = (None, None, None, self.width)
            self.max_filter.build(shape)
            self.filter.build(shape)

    def call(self, pyramid, training=False):
        """As DenseHead, and "filter": list of (B, H, W, 1) float32 logits."""
        raw = super().call(pyramid, training=training)
        if self.filter is None:
            return raw
        filtered = self.max_filter(raw["reg_feature"])
        return {**raw, "filter": [ops.cast(self.filter(level), "float32") for level in filtered]}

    def score_logits(self, raw):
        """sigmoid(s) sigmoid(f), or sigmoid(s) without a filter."""
        gate = [flatten(raw["filter"], 1)] if "filter" in raw else []
        return [flatten(raw["classes"], self.num_scores), *gate]

    def probability(self, raw):
        """The product of them.   LogProbability (B, A, C)."""
        classes, *gate = self.score_logits(raw)
        return sigmoid_product(*gate, classes)

    # Training.

    def match(self, raw, y):
        """The point of every object.   kgarden.targets.one_to_one.OneToOne."""
        good = self._quality(self.probability(raw), raw, y)
        matched = choose(good, self.candidate_mask(raw, y, "center"), self._labels(y), self.matching)
        return with_first_free(matched, truth_is_valid(y)) if self.unmatched == "released" else matched

    def auxiliary_labels(self, raw, y):
        """Classes of the points of the auxiliary loss, -1 for background.   (B, A) int32."""
        good = self._quality(sigmoid_product(flatten(raw["classes"], self.num_scores)), raw, y)
        truth = y[BOXES], self._labels(y), truth_is_valid(y)
        return auxiliary_labels(good, *truth, self._cells(raw), self.auxiliary["top_k"])

    def _quality(self, probability, raw, y):
        return quality(
            probability.value(), self.boxes(raw), y[BOXES], self._labels(y), **self.quality_settings
        )

    def _labels(self, y):
        return ops.minimum(y[LABELS], 0) if self.num_classes is None else y[LABELS]

    def losses(self, raw, y, step=None):
        """Terms <name>/class, <name>/box, <name>/auxiliary."""
        matched = self.match(raw, y)
        found = matched.valid[..., None]
        predicted = gather(self.boxes(raw), matched.row)  # (B, M, 4)
        unit = ops.array(UNIT, "float32")
        giou = box_iou_loss(ops.where(found, predicted, unit), ops.where(found, y[BOXES], unit))
        count = ops.sum(ops.cast(matched.valid, "float32"))
        focal = ops.sum(focal_loss(self.probability(raw), matched.labels, **self.focal))
        terms = {"class": global_mean(focal, count), "box": global_mean(ops.sum(giou), count)}
        if self.auxiliary is not None:
            labels = self.auxiliary_labels(raw, y)
            plain = sigmoid_product(flatten(raw["classes"], self.num_scores))
            many = ops.sum(ops.cast(labels >= 0, "float32"))
            terms["auxiliary"] = global_mean(ops.sum(focal_loss(plain, labels, **self.focal)), many)
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in self.terms}


@forwards_to(dense_detector, fixed=("name", "head"))
def defcn(num_classes, selection=None, **parts):
    """DeFCN: POTO + 3DMF + Aux with ResNet-50 of the release (41.4 AP on COCO, 3x).

    Args:
        num_classes: C.
        selection:   settings of the final Selection, which override the defaults below.
        parts:       seed, backbone, neck, dense_head, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="defcn",
        head=DeFCNHead,
        selection={"method": "none", "at_most_cells": True, **(selection or {})},
        **parts,
    )
