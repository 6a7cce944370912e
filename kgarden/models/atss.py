"""ATSS: FCOS' head with one anchor for each cell, and adaptive training sample selection.

Zhang, Chi, Yao, Lei, Li, "Bridging the gap between anchor-based and anchor-free detection via adaptive
training sample selection", 2020, arXiv:1912.02424. What sets RetinaNet and FCOS apart is which anchors or
points learn an object. Here those are, of the nine nearest anchors of each level, the ones whose IoU is at
least the mean plus the standard deviation of all of them. Whether boxes are then regressed from an anchor or
from a point makes next to no difference in the paper.

    paper                       here
    Algorithm 1                 kgarden/targets/atss.py
    k = 9                       `top_k`
    8S, the side of an anchor   `anchor_scale`
    anchor box, anchor point    `box_code`: "deltas", "ltrb"

Defaults are mmdetection's (version 3); the PSS paper's baselines are trained with them, in version 2. The
authors' code differs in arguments: count_empty=False (an image without positives does not count as one),
tower_bias=True, rank_by="score", sqrt_scores=True, pad_divisor=None. Not here is what else it does: anchors
centred at (stride - 1) / 2, widths with "+1", and no lower bound of the sum of centre-nesses.
"""

from keras import ops

from kgarden.config.instantiate import forwards_to, merge_defaults
from kgarden.heads.dense import DenseHead, one_of
from kgarden.losses.box_iou import KINDS, box_iou_loss
from kgarden.losses.focal import sigmoid_focal_loss
from kgarden.models.base.one_stage import dense_detector
from kgarden.ops import boxes as box_ops
from kgarden.ops.anchors import anchor_grid
from kgarden.ops.points import flatten
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, truth_is_valid
from kgarden.targets.assign_result import IGNORED, either, in_own_padding, one_hot, under_crowd
from kgarden.targets.atss import assign_anchors, atss_candidates
from kgarden.targets.fcos import centerness as centerness_of


class ATSSAssigned(DenseHead):
    """A dense head whose places are assigned by ATSS; the frame of ATSSHead and GFLHead.

    Args:
        top_k:         candidates of an object on each level.
        anchor_scale:  side of the square anchor in strides.
        anchor_offset: where in its cell the anchor sits, in strides: 0 top left (mmdetection), 0.5 middle.
        crowd_share:   anchors with more than this share of their area in a crowd region are ignored; None:
                       crowd regions are background.
        pad_divisor:   px; anchors in cells outside of their image, padded by itself to a multiple of it, take
                       no part (mmdetection); None: padding of the batch is background.
        count_empty:   in the normaliser an image without positives counts as one positive (mmdetection).
        kwargs:        see DenseHead.
    """

    def __init__(
        self,
        strides,
        num_classes,
        code_size,
        *,
        top_k=9,
        anchor_scale=8,
        anchor_offset=0.0,
        crowd_share=None,
        pad_divisor=32,
        count_empty=True,
        **kwargs,
    ):
        super().__init__(strides, num_classes, code_size, **kwargs)
        self.top_k = top_k
        self.anchor_scale, self.anchor_offset = anchor_scale, anchor_offset
        self.crowd_share, self.pad_divisor = crowd_share, pad_divisor
        self.count_empty = count_empty

    def anchors_of(self, raw):
        """kgarden.ops.anchors.Anchors, one for each cell."""
        sizes = [level.shape[1:3] for level in raw["classes"]]
        sides = [[self.anchor_scale * stride] for stride in self.strides]
        return anchor_grid(sizes, self.strides, sides, offset=self.anchor_offset)

    def assign(self, raw, y):
        """Of the objects that chose a place, the one it overlaps most.   (B, A) int32."""
        candidates, out = self._candidates(raw, y)
        return assign_anchors(candidates, out)

    def candidate_mask(self, raw, y, rule="candidates"):
        """See DenseHead; "candidates": places good enough for an object, whoever else wants them."""
        if rule == "candidates":
            return self._candidates(raw, y)[0].possible
        return super().candidate_mask(raw, y, rule)

    def _candidates(self, raw, y):
        """AtssCandidates, and the anchors that learn nothing: (B, A) bool or None."""
        anchors = self.anchors_of(raw)
        ignored, inside = None, in_own_padding(anchors, y, self.pad_divisor)
        if self.crowd_share is not None:
            ignored = under_crowd(anchors.boxes, y, self.crowd_share)
        settings = dict(gt_valid=truth_is_valid(y), top_k=self.top_k, ignored=ignored, inside=inside)
        out = either(ignored, None if inside is None else ~inside)
        return atss_candidates(anchors.boxes, anchors.counts(), y[BOXES], **settings), out

    def count(self, positive):
        """What class and quality losses of this part of the batch are divided by.   (B, A) bool -> ()."""
        of_image = ops.sum(ops.cast(positive, "float32"), axis=1)
        return ops.sum(ops.maximum(of_image, 1.0) if self.count_empty else of_image)


class ATSSHead(ATSSAssigned):
    """Classes, boxes relative to anchors, and centre-ness.

    Args:
        strides, num_classes: see DenseHead.
        box_code:     "deltas": dx, dy, dw, dh relative to the anchor, divided by `deviations`;
                      "ltrb": distances from its centre, relu(s x) strides.
        deviations:   what deltas are divided by in training.
        centerness:   the tower it sits on, "box" or "class"; None: there is no such output, its target still
                      weighs the box loss.
        box_loss:     a kind of kgarden/losses/box_iou.py.
        alpha, gamma: of the focal loss.
        weights:      {"class", "box", "centerness"} of the terms.
        kwargs:       see ATSSAssigned and DenseHead.
    """

    fixed_arguments = ("code_size", "anchors", "scaled")

    def __init__(
        self,
        strides,
        num_classes=None,
        *,
        box_code="deltas",
        deviations=(0.1, 0.1, 0.2, 0.2),
        centerness="box",
        box_loss="giou",
        alpha=0.25,
        gamma=2.0,
        weights=None,
        name="atss",
        **kwargs,
    ):
        super().__init__(strides, num_classes, 4, centerness=centerness, name=name, **kwargs)
        one_of("dense_head.box_code", box_code, ("deltas", "ltrb"))
        one_of("dense_head.box_loss", box_loss, KINDS)
        self.box_code = box_code
        self.delta_weights = tuple(1 / deviation for deviation in deviations)
        self.box_loss = box_loss
        self.focal = dict(alpha=alpha, gamma=gamma)
        self.weights_of_terms = merge_defaults(
            {"class": 1.0, "box": 2.0, "centerness": 1.0}, weights, "model.dense_head.weights"
        )
        self.terms = ("class", "box", "centerness") if centerness else ("class", "box")

    def activate(self, code, level):
        """Deltas as they are; distances are not negative."""
        return ops.relu(code) if self.box_code == "ltrb" else code

    def boxes(self, raw):
        """The predicted boxes, *not* clipped.   (B, A, 4) float32 px."""
        anchors, code = self.anchors_of(raw), flatten(raw["code"], 4)
        if self.box_code == "ltrb":
            return box_ops.from_ltrb(anchors.points(), code * anchors.stride[:, None])
        return box_ops.decode_deltas(code, anchors.boxes, self.delta_weights, clamp_below=True)

    def losses(self, raw, y, step=None):
        """Terms <name>/class, <name>/box, <name>/centerness."""
        matched, gt_boxes, labels = self.truth(raw, y)
        positive, anchors = matched >= 0, self.anchors_of(raw)
        count = self.count(positive)
        focal = sigmoid_focal_loss(
            flatten(raw["classes"], self.num_scores), one_hot(labels, self.num_scores), **self.focal
        )
        focal = ops.where((matched == IGNORED)[..., None], 0.0, focal)
        terms = {"class": global_mean(ops.sum(focal), count)}

        quality = centerness_of(box_ops.to_ltrb(anchors.points(), gt_boxes))
        weight = ops.where(positive, quality, 0.0)
        # Places without an object see their anchor against itself: no loss, and finite gradients.
        predicted = ops.where(positive[..., None], self.boxes(raw), anchors.boxes)
        target = ops.where(positive[..., None], gt_boxes, anchors.boxes)
        box = ops.sum(weight * box_iou_loss(predicted, target, self.box_loss))
        terms["box"] = global_mean(box, ops.sum(weight))
        if "centerness" in raw:
            logits = flatten(raw["centerness"], 1)[..., 0]
            loss = ops.softplus(logits) - logits * quality
            terms["centerness"] = global_mean(ops.sum(ops.where(positive, loss, 0.0)), count)
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in self.terms}


@forwards_to(dense_detector, fixed=("name", "head"))
def atss(num_classes, neck=None, **parts):
    """ATSS (39.3 AP on COCO by the authors, 39.4 with mmdetection, ResNet-50, 1x).

    Args:
        num_classes: C.
        neck:        settings of the FPN, which override the defaults below.
        parts:       seed, backbone, dense_head, selection, pixels; see `dense_detector`.
    Returns:
        OneStage.
    """
    return dense_detector(
        num_classes,
        name="atss",
        head=ATSSHead,
        neck={"relu_before_p7": False, "initializer": "xavier", **(neck or {})},
        **parts,
    )
