"""CenterNet*: the dense first stage of CenterNet2, alone or as a proposer.

Zhou, Koltun, Krähenbühl, "Probabilistic two-stage detection", 2021, arXiv:2103.07461, section 5;
after Zhou, Wang, Krähenbühl, "Objects as points", 2019, arXiv:1904.07850. Every level of an FPN
carries a heat map of object centres, and the distances from a cell to the four sides of its box. As a
proposer the heat map is blind to classes and says how likely any object is: P(O = 1).

    paper / release             here
    Y, heat map                 CenterTargets.heat (kgarden/targets/centernet.py)
    L_heatmap                   kgarden/losses/heatmap.py; terms <name>/positive, /negative
    GIoU on l, t, r, b          kgarden/losses/ltrb_iou.py; term <name>/box
    agn_hm, WITH_AGN_HM         `objectness`: a heat map blind to classes
    ONLY_PROPOSAL               num_classes=None
    MORE_POS                    `more_positives`
    IGNORE_HIGH_FP              `ignore_above`
    NOT_NORM_REG                `weigh_by_heat=False`
    CENTER_NMS                  Selection(method="peaks")

Defaults are the release's (they produced the published numbers). The paper says "one level for each
object" and "extra positives"; the release has overlapping ranges, and extra positives in the
one-stage models only.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to
from kgarden.errors import UserError
from kgarden.heads.tower import Tower
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal, prior_bias
from kgarden.losses.heatmap import heatmap_focal_loss
from kgarden.losses.ltrb_iou import ltrb_iou_loss
from kgarden.models.base.one_stage import dense_detector
from kgarden.ops.gather import gather
from kgarden.ops.points import flatten, point_grid_of
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, LABELS, SCORES, truth_is_valid
from kgarden.targets.centernet import SIZE_RANGES, center_targets, more_positives

MIN_SIDE = 0.01  # px: no box is narrower


class CenterNetHead(keras.layers.Layer):
    """Heat maps and distances on every level, weights shared by the levels.

    Args:
        strides:      px for one cell of each level.
        num_classes:  C, or None for a head that only proposes.
        objectness:   whether there is a heat map blind to classes, on the box tower.
        width, num_convs, norm_groups, deformable: of the towers; the class tower exists where num_classes
                      does.
        size_ranges, min_overlap, min_radius, more_positives: see kgarden/targets/centernet.py;
                      more_positives is None or {threshold, top_k}.
        alpha, beta, gamma, clamp, ignore_above: see kgarden/losses/heatmap.py.
        box_loss:     "giou", "iou", "linear_iou".
        weigh_by_heat: box losses weigh as much as their cell's heat, instead of 1.
        weights:      {"positive", "negative", "box"} of the terms.
        name:         first half of the terms' names.
    """

    def __init__(
        self,
        strides,
        num_classes=None,
        objectness=True,
        width=256,
        num_convs=4,
        norm_groups=None,
        deformable=False,
        size_ranges=SIZE_RANGES,
        min_overlap=0.8,
        min_radius=4.0,
        more_positives=None,
        alpha=0.25,
        beta=4.0,
        gamma=2.0,
        clamp=1e-4,
        ignore_above=None,
        box_loss="giou",
        weigh_by_heat=False,
        weights=None,
        prior=0.01,
        name="centernet",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if num_classes is None and not objectness:
            raise UserError("a CenterNet head without classes needs objectness: leave `objectness` on")
        self.strides = list(strides)
        self.num_classes = num_classes
        self.target_settings = dict(size_ranges=size_ranges, min_overlap=min_overlap, min_radius=min_radius)
        self.more_positives = more_positives
        self.focal = dict(alpha=alpha, beta=beta, gamma=gamma, clamp=clamp, ignore_above=ignore_above)
        self.box_loss = box_loss
        self.weigh_by_heat = weigh_by_heat
        self.weights_of_terms = {"positive": 1.0, "negative": 1.0, "box": 1.0, **(weights or {})}

        tower = dict(num_convs=num_convs, width=width, norm_groups=norm_groups, deformable=deformable)
        self.box_tower = Tower(**tower, name="box_tower")
        self.ltrb = Conv(
            4,
            3,
            dtype="float32",  # bfloat16 has eight bits: around 8 strides it tells sixteenths apart
            kernel_initializer=normal(0.01),
            bias_initializer=keras.initializers.Constant(8.0),
            name="ltrb",
        )
        self.objectness = self._heat_map(1, prior, "objectness") if objectness else None
        self.class_tower = Tower(**tower, name="class_tower") if num_classes else None
        self.classes = self._heat_map(num_classes, prior, "classes") if num_classes else None

    def _heat_map(self, channels, prior, name):
        return Conv(
            channels, 3, kernel_initializer=normal(0.01), bias_initializer=prior_bias(prior), name=name
        )

    def build(self, pyramid_shapes):
        shape = pyramid_shapes[0]
        self.box_tower.build(shape)
        width = self.box_tower.convs[-1].filters if self.box_tower.convs else shape[-1]
        tower_shape = (None, None, None, width)
        self.ltrb.build(tower_shape)
        if self.objectness is not None:
            self.objectness.build(tower_shape)
        if self.classes is not None:
            self.class_tower.build(shape)
            self.classes.build(tower_shape)
        self.scales = self.add_weight(
            shape=(len(self.strides),), initializer="ones", autocast=False, name="scales"
        )

    @property
    def loss_names(self):
        maps = [""] * (self.objectness is not None) + ["class_"] * (self.classes is not None)
        heat = [f"{self.name}/{which}{sign}" for which in maps for sign in ("positive", "negative")]
        return [*heat, f"{self.name}/box"]

    def call(self, pyramid, training=False):
        """Maps of every level, float32: "ltrb" (B, H, W, 4) in strides; logits "objectness", "classes"."""
        raw = {"ltrb": []}
        for level, features in enumerate(pyramid):
            tower = self.box_tower(features, training=training)
            distances = self.ltrb(tower) * self.scales[level]
            raw["ltrb"].append(ops.relu(distances))
            if self.objectness is not None:
                raw.setdefault("objectness", []).append(ops.cast(self.objectness(tower), "float32"))
            if self.classes is not None:
                logits = self.classes(self.class_tower(features, training=training))
                raw.setdefault("classes", []).append(ops.cast(logits, "float32"))
        return raw

    # Training.

    def losses(self, raw, y, step=None):
        """Terms <name>/positive, <name>/negative, <name>/box; class heat maps: <name>/class_positive, ..."""
        cells = point_grid_of(raw["ltrb"], self.strides)
        gt = (y[BOXES], y[LABELS], truth_is_valid(y))
        targets = center_targets(*gt, cells, num_classes=self.num_classes, **self.target_settings)
        ltrb = flatten(raw["ltrb"])
        if self.more_positives:
            targets = more_positives(
                targets,
                self._loss_at(ltrb),
                *gt,
                cells=cells,
                size_ranges=self.target_settings["size_ranges"],
                **self.more_positives,
            )
        return self.losses_of_targets(raw, targets)

    def losses_of_targets(self, raw, targets):
        """As `losses`, for targets made elsewhere."""
        blind_heat = ops.max(targets.heat, axis=-1, keepdims=True)
        terms = {}
        if self.objectness is not None:
            label = ops.zeros_like(targets.positive_label)
            terms |= self._heat_terms("", raw["objectness"], blind_heat, label=label, targets=targets)
        if self.classes is not None:
            terms |= self._heat_terms(
                "class_", raw["classes"], targets.heat, label=targets.positive_label, targets=targets
            )
        terms[f"{self.name}/box"] = self._box_term(flatten(raw["ltrb"]), blind_heat[..., 0], targets)
        return terms

    def _heat_terms(self, which, maps, heat, label, targets):
        positive, negative = heatmap_focal_loss(
            flatten(maps),
            heat,
            targets.positive,
            positive_label=label,
            positive_valid=targets.positive_valid,
            **self.focal,
        )
        count = ops.sum(ops.cast(targets.positive_valid, "float32"))
        return {
            f"{self.name}/{which}{sign}": global_mean(total, count) * self.weights_of_terms[sign]
            for sign, total in (("positive", positive), ("negative", negative))
        }

    def _box_term(self, ltrb, heat, targets):
        valid = targets.ltrb_valid
        # Rows without a box see 1 against 1: no loss, and no gradient that is not a number.
        predicted = ops.where(valid[..., None], ltrb, 1.0)
        loss = ltrb_iou_loss(predicted, ops.where(valid[..., None], targets.ltrb, 1.0), self.box_loss)
        weight = ops.where(valid, heat if self.weigh_by_heat else 1.0, 0.0)
        total = ops.sum(ops.where(valid, loss, 0.0) * weight)
        return global_mean(total, ops.sum(weight)) * self.weights_of_terms["box"]

    def _loss_at(self, ltrb):
        def loss(target, rows):
            predicted = gather(ops.stop_gradient(ltrb), rows)
            return ltrb_iou_loss(predicted, target, self.box_loss)

        return loss

    # Inference.

    def candidates(self, raw, size_hw=None):
        """Every cell's box, *not* clipped, and its score: P, or the square root where objectness takes part.

        The threshold of the selection looks at the plain probability of the class (or of any object).
        """
        cells = point_grid_of(raw["ltrb"], self.strides)
        maps = {key: ops.sigmoid(flatten(raw[key])) for key in ("objectness", "classes") if key in raw}
        gate = maps.get("classes", maps.get("objectness"))
        if "objectness" not in maps:
            scores = gate
        else:
            joint = maps["objectness"] * maps["classes"] if "classes" in maps else maps["objectness"]
            scores = ops.sqrt(joint)
        return {
            BOXES: decode_ltrb(flatten(raw["ltrb"]), cells),
            SCORES: scores,
            "threshold_scores": gate,
            "probability": ops.square(scores) if "objectness" in maps else scores,
            "levels": cells.sizes,
        }


def decode_ltrb(ltrb, cells):
    """Boxes from distances in strides.   (B, A, 4) -> (B, A, 4) xyxy px, never narrower than 0.01 px."""
    points, stride = ops.array(cells.points()), ops.array(cells.stride)[:, None]
    top_left = points - ltrb[..., :2] * stride
    bottom_right = ops.maximum(points + ltrb[..., 2:] * stride, top_left + MIN_SIDE)
    return ops.concatenate([top_left, bottom_right], axis=-1)


ALONE = {  # settings of the head without a second stage, in the release
    "objectness": False,
    "weights": {"box": 2.0},
    "more_positives": {"threshold": 0.2, "top_k": 9},
}


@forwards_to(dense_detector, fixed=("name", "head"))
def centernet(num_classes, dense_head=None, **parts):
    """CenterNet* alone: CenterNet-FPN_R50_1x of the release (40.2 AP on COCO).

    Args:
        num_classes: C.
        dense_head:  settings of CenterNetHead, which override the defaults below.
        parts:       seed, backbone, neck, selection, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="centernet",
        head=CenterNetHead,
        dense_head={**ALONE, **(dense_head or {})},
        **parts,
    )
