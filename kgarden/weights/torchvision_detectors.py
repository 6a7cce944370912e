"""Weight names of torchvision's detectors: Faster and Mask R-CNN, RetinaNet and FCOS on a ResNet."""

import re

import numpy as np

from kgarden.errors import UserError
from kgarden.layers.norm import EPSILON
from kgarden.weights.detectron2 import tower_names
from kgarden.weights.maskrcnn_benchmark import (
    background_first,
    background_last,
    masks_with_background,
    masks_without_background,
    with_background,
    without_background,
)
from kgarden.weights.torchvision import resnet_names

FC_HEAD = "roi_head/box_head/features"
CLASSES, BOXES = r"head\.classification_head\.", r"head\.regression_head\."


def fpn_names(first_level):
    """Entries of an FPN, whose convolutions are numbered from its first level on.

    Until torchvision 0.12 they were modules of their own, since then each is the first of a sequence, which
    a batch norm may follow ("_v2").

    Args:
        first_level: 2 for Faster and Mask R-CNN, 3 for RetinaNet and FCOS.
    """
    entries = [(r"backbone\.fpn\.extra_blocks\.(p[67])", r"neck/\1")]
    for level in range(first_level, 6):
        for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            module = rf"backbone\.fpn\.{theirs}\.{level - first_level}"
            entries += [
                (rf"{module}\.1", f"neck/{ours}{level}/norm"),
                (rf"{module}(?:\.0)?", f"neck/{ours}{level}"),
            ]
    return entries


def retinanet_tower_names(theirs, ours):
    """Entries for a tower of RetinaNet, whose convolutions were modules of one sequence until 0.12."""
    return (
        (theirs + r"conv\.(\d)\.0", rf"{ours}/conv\1"),
        (theirs + r"conv\.(\d)\.1", rf"{ours}/conv\1/norm"),
        *[(rf"{theirs}conv\.{2 * number}", f"{ours}/conv{number}") for number in range(4)],
    )


HEADS = (
    # RPN; its first convolution has three names
    *[(rf"rpn\.head\.conv\.{number}\.0", f"rpn/box_tower/conv{number}") for number in range(2)],
    (r"rpn\.head\.conv", "rpn/box_tower/conv0"),
    (r"rpn\.head\.cls_logits", "rpn/classes"),
    (r"rpn\.head\.bbox_pred", "rpn/code"),
    # box head: two dense layers, or ("_v2") four convolutions and one dense layer
    (r"roi_heads\.box_head\.fc6", f"{FC_HEAD}/fc1"),
    (r"roi_heads\.box_head\.fc7", f"{FC_HEAD}/fc2"),
    *[(rf"roi_heads\.box_head\.{number}\.0", f"{FC_HEAD}/conv{number + 1}") for number in range(4)],
    *[(rf"roi_heads\.box_head\.{number}\.1", f"{FC_HEAD}/conv{number + 1}/norm") for number in range(4)],
    (r"roi_heads\.box_head\.5", f"{FC_HEAD}/fc1"),
    (r"roi_heads\.box_predictor\.cls_score", "roi_head/box_head/classes"),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_head/box_head/boxes"),
    # masks
    *[(rf"roi_heads\.mask_head\.{number}\.0", f"mask_head/conv{number + 1}") for number in range(4)],
    *[(rf"roi_heads\.mask_head\.{number}\.1", f"mask_head/conv{number + 1}/norm") for number in range(4)],
    (r"roi_heads\.mask_head\.mask_fcn(\d)", r"mask_head/conv\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask", "mask_head/deconv"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits", "mask_head/classes"),
    # RetinaNet
    *retinanet_tower_names(CLASSES, "retinanet/class_tower"),
    *retinanet_tower_names(BOXES, "retinanet/box_tower"),
    (CLASSES + "cls_logits", "retinanet/classes"),
    (BOXES + "bbox_reg", "retinanet/code"),
)

# A tower of FCOS is one sequence of convolutions, norms and ReLUs.
FCOS = (
    *tower_names(CLASSES + r"conv\.", "fcos/class_tower"),
    *tower_names(BOXES + r"conv\.", "fcos/box_tower"),
    (CLASSES + "cls_logits", "fcos/classes"),
    (BOXES + "bbox_reg", "fcos/code"),
    (BOXES + "bbox_ctrness", "fcos/centerness"),
)

IGNORE = (r".*\.num_batches_tracked",)

# Classes begin with the background; RetinaNet and FCOS have a class 0 too, which is one like the others.
CONVERSIONS = (
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", background_last, background_first),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", without_background, with_background),
    (
        r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)",
        masks_without_background,
        masks_with_background,
    ),
)


def table_for(first_level, has_fcos):
    """The table of a model.

    Args:
        first_level: of the pyramid.
        has_fcos:    whether the head is FCOS, whose towers have RetinaNet's names for something else.
    """
    return (*resnet_names(r"backbone\.body\."), *fpn_names(first_level), *(FCOS if has_fcos else HEADS))


def with_epsilon(weights):
    """Scales of norms without the epsilon that ours add to the variance: it is multiplied into them.

    The first released files (Faster and Mask R-CNN, RetinaNet) were trained without one, and torchvision sets
    it to 0 for them. They are those with the names of torchvision 0.12 and before, but for FCOS.

    Args:
        weights: {name: array} of a file.
    Returns:
        the same, with other arrays "backbone.body.*.weight" of norms.
    """
    if "backbone.fpn.inner_blocks.0.weight" not in weights or any("bbox_ctrness" in name for name in weights):
        return weights
    changed = dict(weights)
    for name, variance in weights.items():
        if re.fullmatch(r"backbone\.body\..*\.running_var", name):
            variance = np.float64(variance)
            scale = name.replace("running_var", "weight")
            factor = np.sqrt((variance + EPSILON) / np.maximum(variance, np.finfo("float32").tiny))
            changed[scale] = np.float32(weights[scale] * factor)
    return changed


def check(detector):
    """Refuses a detector whose anchors, points or RoIAlign are not torchvision's.

    Raises:
        UserError: the settings that it lacks.
    """
    head = detector.parts().get("dense_head") or detector.proposer.head
    form = head.anchor_settings["form"] if hasattr(head, "anchor_settings") else getattr(head, "points", None)
    wrong = []
    if form != "torchvision":
        key = "dense_head.points" if hasattr(head, "points") else "dense_head.anchor_form"
        wrong.append("convention" if hasattr(detector, "proposer") else key)
    if hasattr(detector, "proposer"):
        pooling = detector.roi_head.pool.settings
        is_theirs = (pooling["sampling_ratio"], pooling["aligned"]) == (2, False)
        wrong += [] if is_theirs or wrong else ["convention"]
    if wrong:
        raise UserError(
            f"these weights are torchvision's, and anchors, points or RoIAlign of this model are not: set "
            f"model.{wrong[0]}: torchvision, or take the row torchvision.r50 of its recipe"
        )
