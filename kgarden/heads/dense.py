"""Dense heads with two towers, shared by all levels: the base class of RetinaNet, FCOS, ATSS and GFL.

On the class tower sits a convolution for C class logits, on the box tower one for the code of the box, which
each head reads in its own way; a location quality ("centre-ness") may sit on either. So a head says with
`boxes`, `score_logits` and `candidate_mask` all that something laid on top of it, such as PSS, has to know.

    raw                   list over levels, finest first
    "classes"             (B, H, W, K * C) float32 logits, K anchors of a cell
    "code"                (B, H, W, K * D) float32, the box in the head's code
    "centerness"          (B, H, W, K) float32 logits; only where the head has it
    "cls_feature"         (B, H, W, width) output of the class tower
    "reg_feature"         (B, H, W, width) output of the box tower; the same tensor where they are one

"Places" are the A = sum(H * W * K) cells or anchors of all levels: level, row, column, anchor.
"""

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.heads.tower import Tower
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal, prior_bias
from kgarden.ops import boxes as box_ops
from kgarden.ops.points import flatten
from kgarden.structures import BOXES, LABELS, SCORES
from kgarden.targets.assign_result import truth_at


class DenseHead(keras.layers.Layer):
    """Towers and output convolutions; the frame that the heads fill.

    A head adds `terms`, `losses(raw, y, step)`, `boxes(raw)`, `assign(raw, y)` and, where it knows more than
    that, `candidate_mask(raw, y, rule)`.

    Args:
        strides:     px for one cell of each level.
        num_classes: C, or None for a head that only says "any object", C = 1.
        code_size:   D, numbers for one box.
        anchors:     K, boxes of one cell.
        centerness:  the tower with the location quality, "box" or "class"; None: there is none.
        width, num_convs, norm, norm_groups, tower_bias, deformable: of the towers; see
                     kgarden/heads/tower.py.
        shared_tower: classes and boxes read one tower, as CenterNet2's first stages do.
        scaled:      the code is multiplied by a learned number for each level.
        prior:       probability of every class at the start.
        sqrt_scores: report the square root of a product of class and quality (AdelaiDet; no rank changes).
        rank_by:     by what the best of a level are chosen: "class" alone (mmdetection 3) or "score".
        gate_by:     what the threshold of the selection looks at, "class" or "score".
        clip:        boxes are clipped to the image before NMS (mmdetection), not only after (detectron2,
                     AdelaiDet, cvpods); what is empty then is dropped, yet takes its slot among the best
                     of its level.
        name:        first half of the terms' names.
    """

    terms = ("class", "box")

    def __init__(
        self,
        strides,
        num_classes,
        code_size,
        *,
        anchors=1,
        centerness=None,
        width=256,
        num_convs=4,
        norm="gn",
        norm_groups=None,
        tower_bias=None,
        deformable=False,
        shared_tower=False,
        scaled=True,
        prior=0.01,
        sqrt_scores=False,
        rank_by="class",
        gate_by="class",
        clip=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        one_of("dense_head.centerness", centerness, ("box", "class", None))
        one_of("dense_head.rank_by", rank_by, ("class", "score"))
        one_of("dense_head.gate_by", gate_by, ("class", "score"))
        self.strides = list(strides)
        self.num_classes = num_classes
        self.num_scores = num_classes or 1
        self.anchors = anchors
        self.centerness_on = centerness
        self.width = width
        self.sqrt_scores, self.rank_by, self.gate_by, self.clip = sqrt_scores, rank_by, gate_by, clip
        self.scaled = scaled

        tower = dict(num_convs=num_convs, width=width, norm=norm, norm_groups=norm_groups)
        tower |= dict(use_bias=tower_bias, deformable=deformable)
        self.box_tower = Tower(**tower, name="box_tower")
        self.class_tower = None if shared_tower else Tower(**tower, name="class_tower")
        self.classes = self._output(anchors * self.num_scores, "classes", prior_bias(prior))
        self.code = self._output(anchors * code_size, "code", dtype="float32")  # boxes are not rounded
        self.centerness = self._output(anchors, "centerness") if centerness else None

    def _output(self, channels, name, bias="zeros", dtype=None):
        weights = dict(kernel_initializer=normal(0.01), bias_initializer=bias)
        return Conv(channels, 3, **weights, dtype=dtype, name=name)

    def build(self, pyramid_shapes):
        shape = pyramid_shapes[0]
        towers = [tower for tower in (self.box_tower, self.class_tower) if tower is not None]
        for tower in towers:
            tower.build(shape)
        depth = self.depth(shape[-1])
        for output in (self.classes, self.code, self.centerness):
            if output is not None:
                output.build((None, None, None, depth))
        self.scales = None
        if self.scaled:
            self.scales = self.add_weight(
                shape=(len(self.strides),), initializer="ones", autocast=False, name="scales"
            )

    def depth(self, channels):
        """Channels of "cls_feature" and "reg_feature" on a pyramid of so many."""
        return self.width if self.box_tower.convs else channels

    @property
    def loss_names(self):
        return [f"{self.name}/{term}" for term in self.terms]

    def call(self, pyramid, training=False):
        """Raw outputs, see the head of this file."""
        raw = {"classes": [], "code": [], "cls_feature": [], "reg_feature": []}
        if self.centerness is not None:
            raw["centerness"] = []
        for level, features in enumerate(pyramid):
            reg = self.box_tower(features, training=training)
            cls = reg if self.class_tower is None else self.class_tower(features, training=training)
            code = self.code(reg)
            raw["reg_feature"].append(reg)
            raw["cls_feature"].append(cls)
            raw["classes"].append(ops.cast(self.classes(cls), "float32"))
            raw["code"].append(
                self.activate(code if self.scales is None else code * self.scales[level], level)
            )
            if self.centerness is not None:
                tower = reg if self.centerness_on == "box" else cls
                raw["centerness"].append(ops.cast(self.centerness(tower), "float32"))
        return raw

    def activate(self, code, level):
        """What follows the box convolution, float32 of one level: nothing, unless a head says otherwise."""
        return code

    # What lies at each place.

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        raise NotImplementedError(f"{type(self).__name__} must implement boxes(raw)")

    def score_logits(self, raw):
        """Logits whose sigmoids multiply to the score.   list of (B, A, C) and (B, A, 1)."""
        logits = [flatten(raw["classes"], self.num_scores)]
        if "centerness" in raw:
            logits.append(flatten(raw["centerness"], 1))
        return logits

    def scores(self, raw):
        """Probability of every class at every place.   (B, A, C)."""
        score, *factors = [ops.sigmoid(logits) for logits in self.score_logits(raw)]
        for factor in factors:
            score = score * factor
        return score

    def levels(self, raw):
        """(H_l, W_l, K) of each level."""
        return [(*level.shape[1:3], self.anchors) for level in raw["classes"]]

    # What each place is to learn.

    def assign(self, raw, y):
        """Which object each place must predict.   (B, A) int32, see kgarden/targets/assign_result.py."""
        raise NotImplementedError(f"{type(self).__name__} must implement assign(raw, y)")

    def candidate_mask(self, raw, y, rule="candidates"):
        """Which places may predict which object.

        Args:
            rule: "candidates": before it is settled which of several objects a place answers for;
                  "positives": after; "center": near the object's centre, on all levels (FCOS alone).
        Returns:
            (B, M, A) bool.
        Raises:
            UserError: a rule that this head does not have.
        """
        if rule != "positives":
            raise UserError(f"{type(self).__name__} has no places by the rule {rule!r}; use 'positives'")
        rows = ops.arange(y[LABELS].shape[1], dtype="int32")[:, None]
        return self.assign(raw, y)[:, None] == rows

    def truth(self, raw, y):
        """The assignment and what it asks for: matched (B, A), boxes (B, A, 4) px, labels (B, A).

        Labels of a head that only proposes are all 0.
        """
        matched = self.assign(raw, y)
        boxes, labels = truth_at(matched, y)
        if self.num_classes is None:
            labels = ops.minimum(labels, 0)
        return matched, boxes, labels

    # Inference.

    def candidates(self, raw, size_hw=None):
        """Every place's box and scores, and by what to choose among them.

        Args:
            size_hw: (B, 2) size of the images, to cut boxes off at; None: boxes stay whole.
        """
        boxes, scores = self.boxes(raw), self.scores(raw)
        found = {
            BOXES: boxes,
            SCORES: ops.sqrt(scores) if self.sqrt_scores else scores,
            "probability": scores,
            "levels": self.levels(raw),
        }
        classes, *factors = self.score_logits(raw)
        if factors or self.sqrt_scores:
            by = {"class": ops.sigmoid(classes), "score": scores}
            found |= {"ranking_scores": by[self.rank_by], "threshold_scores": by[self.gate_by]}
        if self.clip and size_hw is not None:
            found[BOXES] = box_ops.clip(boxes, size_hw)
            found["keep_after_topk"] = box_ops.nonempty(found[BOXES])
        return found


def one_of(where, value, known):
    """Refuse a setting that is none of the known ones."""
    if value not in known:
        raise UserError(f"model.{where} {value!r}: one of {', '.join(map(str, known))}")
