"""CondInst: a dense detector that predicts, for every point, the weights of a small mask network.

Tian, Shen, Chen, "Conditional convolutions for instance segmentation", 2020, arXiv:2003.05664. A branch makes
8 maps that all objects of an image share; a convolution on the box tower says at each place the 169 weights
of three 1x1 convolutions over these maps and the distance to the place. No box is cut out, nothing is pooled.
Masks are drawn for the detections that the selection keeps; over PSS that is done without NMS.

    paper                               here
    controller, theta_{x,y}             CondInst.controller; layout: `unpacked`
    mask branch, F_mask                 kgarden/heads/mask_branch.py
    relative coordinates                relative_coordinates, in sizes of interest (release)
    mask FCN head                       dynamic_masks
    bilinear upsampling                 kgarden/ops/bilinear.py; `upsampling`
    L_mask, dice                        kgarden/losses/dice.py; term condinst/mask
    which places learn                  kgarden/targets/instances.py; `max_proposals`, `topk_proposals`
    inference                           CondInst.masks
    semantic loss (release)             kgarden/heads/mask_branch.py; term condinst/semantic; `semantic`

Paper or release (AdelaiDet): the paper enlarges the maps of stride 8 by 4, its published models by 2, which
are the ones with figures; recipes say `upsampling: 2`. What else is open, and was chosen: docs/condinst.md.
"""

import keras
import numpy as np
from keras import ops

from kgarden.config.instantiate import instantiate, merge_defaults, name_and_settings
from kgarden.errors import UserError
from kgarden.heads.dense import DenseHead, one_of
from kgarden.heads.mask_branch import MaskBranch, SemanticBranch
from kgarden.heads.selection import Selection
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal
from kgarden.losses.dice import dice_loss
from kgarden.losses.focal import sigmoid_focal_loss
from kgarden.models.base.detector import trunk
from kgarden.models.base.one_stage import OneStage
from kgarden.models.dense_bases import BASES
from kgarden.necks import make_neck
from kgarden.ops.bilinear import aligned_bilinear, sigmoid_over_boxes
from kgarden.ops.box_masks import masks_on_grid
from kgarden.ops.float32 import matmul
from kgarden.ops.gather import gather
from kgarden.ops.points import flatten, point_grid, point_grid_of
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, MASK_SIDE, MASKS, SOURCE, VALID, truth_is_valid
from kgarden.targets.assign_result import IGNORED, one_hot
from kgarden.targets.instances import best_of_each, drawn, semantic_labels

SIZES = (64, 128, 256, 512, 1024)  # px that the levels are for: AdelaiDet's sizes of interest
WEIGHTS = {"mask": 1.0, "semantic": 1.0}
# AdelaiDet's FCOS, where it differs from the defaults here.
RELEASED_FCOS = {
    "center_of": "mask",
    "tower_bias": True,
    "smoothing": 1.0,
    "rank_by": "score",
    "gate_by": "score",
    "sqrt_scores": True,
    "clip": False,
    "weights": {"box": 1.0},
}


# --- the network of one object ------------------------------------------------------------------------------


def widths_of(bases, channels, num_layers, coordinates):
    """(inputs, outputs) of every layer of the dynamic network, first to last."""
    inputs = [bases + 2 * coordinates] + [channels] * (num_layers - 1)
    return list(zip(inputs, inputs[1:] + [1], strict=True))


def unpacked(parameters, widths):
    """Numbers of the controller -> [(weights (B, N, outputs, inputs), biases (B, N, outputs))] by layer.

    Layout, that of the release: the weights of all layers, each output by output (169 = 8x10, 8x8, 1x8, then
    8, 8, 1), then all biases. Inputs of the first layer are x, y, then the shared maps.
    """
    sizes = [outputs * inputs for inputs, outputs in widths] + [outputs for _, outputs in widths]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    parts = [parameters[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]
    rows = parameters.shape[1]
    return [
        (ops.reshape(weights, (-1, rows, outputs, inputs)), biases)
        for weights, biases, (inputs, outputs) in zip(parts, parts[len(widths) :], widths, strict=False)
    ]


def relative_coordinates(places, sizes, size_hw, stride):
    """From every cell of a map to places, x and y, in sizes of interest.

    Args:
        places:  (B, N, 2) xy px.
        sizes:   (B, N) px.
        size_hw: (H, W) of the map.
        stride:  px of its cells.
    Returns:
        (B, N, 2, H * W) float32, (place - cell) / size.
    """
    points = ops.convert_to_tensor(point_grid([size_hw], [stride]).points().T)  # (2, H * W)
    return (places[..., None] - points) / sizes[..., None, None]


def dynamic_masks(maps, parameters, widths, coordinates=None):
    """The masks that each object's own network draws: 1x1 convolutions with ReLU between them.

    Args:
        maps:        (B, H, W, D) shared by all objects of an image.
        parameters:  (B, N, number) see `unpacked`.
        widths:      of `widths_of`.
        coordinates: (B, N, 2, H * W), or None: the network does not see where it is.
    Returns:
        (B, N, H, W) float32 logits.
    """
    height, width, depth = maps.shape[1:]
    rows = parameters.shape[1]
    (weights, biases), *others = unpacked(ops.cast(parameters, "float32"), widths)
    shared = ops.transpose(ops.reshape(ops.cast(maps, "float32"), (-1, height * width, depth)), (0, 2, 1))
    # One product for all objects: what they multiply by their weights is the same.
    x = matmul(ops.reshape(weights[..., -depth:], (-1, rows * biases.shape[-1], depth)), shared)
    x = ops.reshape(x, (-1, rows, biases.shape[-1], height * width)) + biases[..., None]
    if coordinates is not None:
        x = x + matmul(weights[..., :2], coordinates)
    for weights, biases in others:
        x = matmul(weights, ops.relu(x)) + biases[..., None]
    return ops.reshape(x, (-1, rows, height, width))


# --- the head -----------------------------------------------------------------------------------------------


class CondInst(keras.layers.Layer):
    """A mask head: controller on the box tower, shared maps, and the masks of chosen places.

    Args:
        strides:     px for one cell of each level of the dense head.
        num_classes: C.
        width:       channels of the dense head's "reg_feature".
        sizes:       px that the coordinates of each level are divided by.
        branch:      {"levels", "width", "num_convs", "norm", "norm_groups"} of MaskBranch.
        bases:       maps that it makes.
        channels, num_layers: of the dynamic network.
        coordinates: whether it sees where it is.
        upsampling:  masks of the finest level's stride are enlarged by that: 4 (paper), 2 (release).
        max_proposals: at most so many points of an image learn masks, drawn at random where there are more.
                     (Release: 500 of a device's two images, which COCO rarely reaches.)
        topk_proposals: so many of an image's points instead, its best ones with an even share for each object
                     (release: TOPK_PROPOSALS_PER_IM, off); see kgarden/targets/instances.py.
        semantic:    whether classes of the finest level's cells are learned besides.
        side:        S, cells of a detection's mask along each side of its box.
        weights:     {"mask", "semantic"} of the terms.
    """

    def __init__(
        self,
        strides,
        num_classes,
        width=256,
        sizes=SIZES,
        branch=None,
        bases=8,
        channels=8,
        num_layers=3,
        coordinates=True,
        upsampling=4,
        max_proposals=250,
        topk_proposals=None,
        semantic=False,
        side=MASK_SIDE,
        weights=None,
        name="condinst",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        where = "model.mask_head"
        if len(sizes) != len(strides):
            raise UserError(f"{where}.sizes: {len(sizes)} sizes for {len(strides)} levels; give one for each")
        one_of("mask_head.upsampling", upsampling, (1, 2, 4, 8))
        self.strides, self.sizes, self.width = list(strides), list(sizes), width
        self.widths = widths_of(bases, channels, num_layers, coordinates)
        self.coordinates, self.upsampling = coordinates, upsampling
        self.max_proposals, self.topk_proposals = max_proposals, topk_proposals
        self.side, self.num_classes = side, num_classes
        self.weights_of_terms = merge_defaults(WEIGHTS, weights, f"{where}.weights")
        self.controller = Conv(
            sum(outputs * (inputs + 1) for inputs, outputs in self.widths),
            3,
            kernel_initializer=normal(0.01),
            dtype="float32",
            name="controller",
        )
        branch = branch or {}
        self.branch = instantiate(MaskBranch, branch, f"{where}.branch", bases=bases, name="branch")
        if self.branch.levels > len(strides):
            raise UserError(f"{where}.branch.levels {self.branch.levels}: there are {len(strides)}")
        self.semantic = None
        if semantic:
            same = {key: branch[key] for key in ("width", "norm", "norm_groups") if key in branch}
            self.semantic = SemanticBranch(num_classes, **same, name="semantic")

    def build(self, pyramid_shapes):
        self.controller.build((None, None, None, self.width))
        self.branch.build(pyramid_shapes)
        if self.semantic is not None:
            self.semantic.build(pyramid_shapes[0])

    @property
    def loss_names(self):
        terms = ("mask",) if self.semantic is None else ("mask", "semantic")
        return [f"{self.name}/{term}" for term in terms]

    def call(self, pyramid, raw, training=False):
        """Raw outputs: "parameters" list of (B, H_l, W_l, 169), "maps" (B, H_0, W_0, 8), maybe "semantic".

        Args:
            raw: outputs of the dense head, of which "reg_feature" is read.
        """
        found = {
            "parameters": [self.controller(features) for features in raw["reg_feature"]],
            "maps": self.branch(pyramid, training=training),
        }
        if self.semantic is not None:
            found["semantic"] = self.semantic(pyramid[0], training=training)
        return found

    def logits(self, raw, place):
        """Masks of places, not enlarged.   raw as of `call`, place (B, N) -> (B, N, H_0, W_0) float32."""
        parameters = gather(flatten(raw["parameters"]), place)
        coordinates = None
        if self.coordinates:
            of_level = point_grid_of(raw["parameters"], self.strides)
            places = ops.take(ops.convert_to_tensor(of_level.points()), place, axis=0)
            sizes = ops.take(ops.convert_to_tensor(np.float32(self.sizes)[of_level.level]), place, axis=0)
            coordinates = relative_coordinates(places, sizes, raw["maps"].shape[1:3], self.strides[0])
        return dynamic_masks(raw["maps"], parameters, self.widths, coordinates)

    # Training.

    def losses(self, raw, y, dense_head, dense_raw, *, random=None):
        """Terms condinst/mask and, with `semantic`, condinst/semantic.

        Args:
            raw:        of `call`.
            y:          ground truth with masks. Objects without a mask, whose bitmap is empty, teach none.
            dense_head: says which places answer for which object, one-to-many, and how well: with `assign`
                        and `candidates`.
            dense_raw:  its raw outputs.
            random:     function n -> (B, n) uniform numbers, by which points are drawn.
        Raises:
            UserError: y has no masks.
        """
        if MASKS not in y:
            raise UserError(f"{self.name}: the ground truth has no masks; set data.masks: true")
        known = truth_is_valid(y) & ops.any(y[MASKS], axis=(2, 3))
        matched = dense_head.assign(dense_raw, y)
        if self.topk_proposals is None:
            chosen = drawn(matched, known, self.max_proposals, random)
        else:
            score = ops.max(dense_head.candidates(dense_raw)["probability"], axis=-1)
            chosen = best_of_each(matched, ops.stop_gradient(score), known, self.topk_proposals)
        terms = {"mask": self._mask_loss(self.logits(raw, chosen.place), chosen, y)}
        if self.semantic is not None:
            terms["semantic"] = self._semantic_loss(raw["semantic"], known, y)
        return {f"{self.name}/{term}": terms[term] * self.weights_of_terms[term] for term in terms}

    def _mask_loss(self, logits, chosen, y):
        height, width = (side * self.upsampling for side in logits.shape[2:])
        flat = ops.reshape(logits, (-1, *logits.shape[2:], 1))
        enlarged = ops.reshape(aligned_bilinear(flat, self.upsampling), (-1, logits.shape[1], height, width))
        bitmaps = gather(y[MASKS], chosen.object)
        boxes = gather(y[BOXES], chosen.object)
        target = masks_on_grid(bitmaps, boxes, (height, width), self.strides[0] / self.upsampling)
        loss = dice_loss(ops.sigmoid(enlarged), target)
        count = ops.sum(ops.cast(chosen.valid, "float32"))
        return global_mean(ops.sum(ops.where(chosen.valid, loss, 0.0)), count)

    def _semantic_loss(self, logits, known, y):
        labels = semantic_labels(y, known, logits.shape[1:3], self.strides[0])
        logits = ops.reshape(logits, (-1, labels.shape[1], self.num_classes))
        loss = ops.sum(sigmoid_focal_loss(logits, one_hot(labels, self.num_classes)), axis=-1)
        count = ops.sum(ops.cast(labels >= 0, "float32"))
        return global_mean(ops.sum(ops.where(labels == IGNORED, 0.0, loss)), count)

    # Inference.

    def masks(self, raw, detections):
        """Masks of detections in the frames of their boxes.

        Args:
            raw:        of `call`.
            detections: as in kgarden.structures; boxes cut off at the image, "source" a row of
                        the dense head's places.
        Returns:
            (B, K, S, S) float32 probabilities, zeros where not valid.
        """
        logits = self.logits(raw, ops.maximum(detections[SOURCE], 0))
        boxes, stride = detections[BOXES], self.strides[0]
        found = sigmoid_over_boxes(logits, boxes, stride, factor=self.upsampling, side=self.side)
        return ops.where(detections[VALID][..., None, None], found, 0.0)


def mask_head_on(dense_head, channels, settings):
    """CondInst over a dense head.

    Args:
        dense_head: of the frame of kgarden/heads/dense.py with one box for each cell, or PSS on such a head.
        channels:   of the pyramid.
        settings:   of CondInst.
    Raises:
        UserError: another dense head, or an unknown setting.
    """
    head = getattr(dense_head, "base", dense_head)  # PSS is built on such a head
    if not isinstance(head, DenseHead) or dense_head.anchors != 1:
        raise UserError(
            f"model.mask_head condinst needs a dense head with towers and one box for each cell "
            f"(fcos, atss, gfl, defcn, or pss on one of them), not {type(dense_head).__name__}"
        )
    return instantiate(
        CondInst,
        settings,
        "model.mask_head",
        strides=dense_head.strides,
        num_classes=dense_head.num_classes,
        width=dense_head.depth(channels),
    )


def condinst(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    base="fcos",
    dense_head=None,
    mask_head=None,
    selection=None,
    pixels=None,
):
    """CondInst (41.9 box AP, 37.5 mask AP on COCO, ResNet-50, 3x).

    Args:
        num_classes: C.
        base:        "fcos" (as in AdelaiDet), "atss", "gfl", or {name: ..., and settings of that head}.
        dense_head:  a layer in place of `base`, with its neck and Selection as layers too.
        mask_head:   settings of CondInst.
        seed, backbone, neck, selection, pixels: see `dense_detector`.
    Returns:
        OneStage.
    """
    if dense_head is None:
        name, of_base = released_base(base)
        neck = make_neck({**BASES[name].neck, **(neck or {})})
        settings, fixed = {"width": neck.channels, **of_base}, {"strides": neck.strides}
        dense_head = instantiate(BASES[name].head, settings, "model.base", num_classes=num_classes, **fixed)
        selection = instantiate(
            Selection, {"iou": BASES[name].nms_iou, **(selection or {})}, "model.selection"
        )
    return OneStage(
        **trunk(backbone, neck, pixels),
        dense_head=dense_head,
        mask_head=mask_head_on(dense_head, neck.channels, mask_head or {}),
        selection=selection,
        num_classes=num_classes,
        seed=seed,
        name="condinst",
    )


def released_base(base):
    """The name of the dense head and its settings, which are AdelaiDet's by default for FCOS."""
    name, settings = name_and_settings(base, "model.base", BASES)
    return name, {**(RELEASED_FCOS if name == "fcos" else {}), **settings}
