"""Weight names of maskrcnn-benchmark and of the Double-Head release, which rests on it."""

import numpy as np

from kgarden.layers.norm import EPSILON
from kgarden.weights.torchvision import resnet_names

BOX = r"roi_heads\.box\."
EXTRACTOR = BOX + r"feature_extractor\."


def _conv_head(theirs, ours):
    """Entries for the release's conv-head: block (a), then modules of a non-local block and a bottleneck."""
    entries = [
        (theirs + r"nonlocal_conv\.top\.0", f"{ours}/up/shortcut"),
        (theirs + r"nonlocal_conv\.top\.1", f"{ours}/up/shortcut/norm"),
        (theirs + r"nonlocal_conv\.bottom\.0", f"{ours}/up/conv1"),
        (theirs + r"nonlocal_conv\.bottom\.1", f"{ours}/up/conv1/norm"),
        (theirs + r"nonlocal_conv\.bottom\.3", f"{ours}/up/conv2"),
        (theirs + r"nonlocal_conv\.bottom\.4", f"{ours}/up/conv2/norm"),
    ]
    for pair in range(3):  # K of 3, 5 and 7
        block, attention, bottleneck = (
            rf"{theirs}shared_nonlocal\.{pair}\.",
            f"{ours}/block{2 * pair + 1}",
            f"{ours}/block{2 * pair + 2}",
        )
        entries += [
            (block + "(g|theta|phi)", rf"{attention}/\1"),
            (block + r"W\.0", f"{attention}/out"),
            (block + r"W\.bn", f"{attention}/out/norm"),
        ]
        for number in range(3):
            conv = rf"{block}ffconv\.bottleneck\."
            entries += [
                (rf"{conv}{3 * number}", f"{bottleneck}/conv{number + 1}"),
                (rf"{conv}{3 * number + 1}", f"{bottleneck}/conv{number + 1}/norm"),
            ]
    return entries


SHARED = (
    *resnet_names(r"backbone\.body\.", stem=r"stem\."),
    *[(rf"backbone\.fpn\.fpn_inner{number}", f"neck/lateral{number + 1}") for number in range(1, 5)],
    *[(rf"backbone\.fpn\.fpn_layer{number}", f"neck/output{number + 1}") for number in range(1, 5)],
    (r"rpn\.head\.conv", "rpn/box_tower/conv0"),
    (r"rpn\.head\.cls_logits", "rpn/classes"),
    (r"rpn\.head\.bbox_pred", "rpn/code"),
)

# Faster R-CNN and Mask R-CNN on a pyramid.
TABLE = (
    *SHARED,
    (EXTRACTOR + "fc6", "roi_head/box_head/features/fc1"),
    (EXTRACTOR + "fc7", "roi_head/box_head/features/fc2"),
    (BOX + r"predictor\.cls_score", "roi_head/box_head/classes"),
    (BOX + r"predictor\.bbox_pred", "roi_head/box_head/boxes"),
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d)", r"mask_head/conv\1"),
    (r"roi_heads\.mask\.predictor\.conv5_mask", "mask_head/deconv"),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits", "mask_head/classes"),
)

# Double-Head R-CNN, extended: every head has both outputs.
DOUBLE_HEAD = (
    *SHARED,
    *_conv_head(EXTRACTOR, "roi_head/conv/features"),
    (EXTRACTOR + "fc6", "roi_head/fc/features/fc1"),
    (EXTRACTOR + "fc7", "roi_head/fc/features/fc2"),
    (BOX + r"predictor\.cls_score", "roi_head/conv/classes"),
    (BOX + r"predictor\.bbox_pred", "roi_head/conv/boxes"),
    (BOX + r"predictor\.cls_score_fc", "roi_head/fc/classes"),
    (BOX + r"predictor\.bbox_pred_fc", "roi_head/fc/boxes"),
)

IGNORE = (r".*\.num_batches_tracked", r"rpn\.anchor_generator\.cell_anchors\.\d")


def background_last(logits):
    """Rows of C + 1 classes, background first -> background last."""
    return np.roll(logits, -1, axis=0)


def background_first(logits):
    """Rows of C + 1 classes, background last -> background first."""
    return np.roll(logits, 1, axis=0)


def without_background(boxes):
    """Rows of 4 (C + 1) deltas, those of background first -> 4 C; nothing reads background's."""
    return boxes[4:]


def with_background(boxes):
    """Rows of 4 C deltas -> 4 (C + 1), zeros for background first."""
    return np.concatenate([np.zeros_like(boxes[:4]), boxes])


def masks_without_background(logits):
    """Rows of C + 1 masks, background's first -> C."""
    return logits[1:]


def masks_with_background(logits):
    """Rows of C masks -> C + 1, zeros for background first."""
    return np.concatenate([np.zeros_like(logits[:1]), logits])


def with_epsilon(variance):
    """What our frozen norm, which adds an epsilon, must store to divide by the root of the variance alone."""
    return variance - np.float32(EPSILON)


def without_epsilon(variance):
    """The inverse of `with_epsilon`."""
    return variance + np.float32(EPSILON)


CONVERSIONS = (
    (BOX + r"predictor\.cls_score(_fc)?\.(weight|bias)", background_last, background_first),
    (BOX + r"predictor\.bbox_pred(_fc)?\.(weight|bias)", without_background, with_background),
    (
        r"roi_heads\.mask\.predictor\.mask_fcn_logits\.(weight|bias)",
        masks_without_background,
        masks_with_background,
    ),
    (r"backbone\.body\..*\.running_var", with_epsilon, without_epsilon),
)
