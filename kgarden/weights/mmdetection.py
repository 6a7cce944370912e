"""Weight names of mmdetection 3 and of the TSD release: backbones, FPN, dense heads, RPN and RoI heads."""

import re

from kgarden.backbones.mobilenet_v2 import MobileNetV2
from kgarden.backbones.res2net import Res2Net
from kgarden.weights.maskrcnn_benchmark import (
    background_first,
    background_last,
    masks_with_background,
    masks_without_background,
    with_background,
    without_background,
)
from kgarden.weights.timm import deep_stem_names, res2net_names
from kgarden.weights.torchvision import resnet_names


def fpn(first_level):
    """Entries of an FPN, whose convolutions are numbered from its first level on.

    Args:
        first_level: 3 for dense detectors, 2 for Faster R-CNN.
    """
    return tuple(
        (rf"neck\.{theirs}_convs\.{level - first_level}\.conv", f"neck/{ours}{level}")
        for theirs, ours, levels in (
            ("lateral", "lateral", range(first_level, 6)),
            ("fpn", "output", range(first_level, 6)),
            ("fpn", "p", range(6, 8)),
        )
        for level in levels
    )


RESNET = resnet_names(r"backbone\.")

# Res2Net has timm's names but for its stem, which is a sequence to its end.
RES2NET = (
    *deep_stem_names(r"backbone\.stem\.", r"backbone\.stem\.7"),
    *[
        (
            rf"backbone\.layer{number}\.(\d+)\.convs\.(\d)\.conv_offset",
            rf"backbone/res{number + 1}_\1/split\2/offset",
        )
        for number in range(1, 5)
    ],
    *res2net_names(r"backbone\."),
)


def _mobilenet_v2():
    """Entries for MobileNetV2, whose blocks are numbered within seven rows of the paper's Table 2."""
    modules = [(r"backbone\.conv1", "stem"), (r"backbone\.conv2", "last_conv")]
    blocks = [
        (row, block) for row, repeats in enumerate((1, 2, 3, 4, 3, 3, 1), start=1) for block in range(repeats)
    ]
    for number, (row, block) in enumerate(blocks, start=1):
        modules += [
            (rf"backbone\.layer{row}\.{block}\.{theirs}_conv", f"block{number}/{ours}")
            for theirs, ours in (("expand", "expand"), ("depthwise", "depthwise"), ("linear", "project"))
        ]
    return [
        entry
        for theirs, ours in modules
        for entry in ((rf"{theirs}\.conv", f"backbone/{ours}"), (rf"{theirs}\.bn", f"backbone/{ours}/norm"))
    ]


MOBILENET_V2 = tuple(_mobilenet_v2())

DENSE_HEADS = (
    # towers have one name in all heads
    *[
        entry
        for theirs, ours in (("cls", "class"), ("reg", "box"))
        for entry in (
            (rf"bbox_head\.{theirs}_convs\.(\d)\.conv", rf"{ours}_tower/conv\1"),
            (rf"bbox_head\.{theirs}_convs\.(\d)\.gn", rf"{ours}_tower/conv\1/norm"),
        )
    ],
    *[
        (rf"bbox_head\.{theirs}_{output}", f"{head}/{ours}")
        for head, theirs in (("retinanet", "retina"), ("fcos", "conv"), ("atss", "atss"), ("gfl", "gfl"))
        for output, ours in (("cls", "classes"), ("reg", "code"), ("centerness", "centerness"))
    ],
    (r"bbox_head\.scales\.(\d+)", r"scales[\1]"),
)

TABLE = (*RESNET, *fpn(3), *DENSE_HEADS)


def _fully_connected(theirs, ours):
    """Entries for a box head whose layers count from 0 there and from 1 here."""
    return [
        *[(rf"{theirs}\.shared_fcs\.{number}", f"{ours}/features/fc{number + 1}") for number in range(2)],
        (theirs + r"\.fc_cls", f"{ours}/classes"),
        (theirs + r"\.fc_reg", f"{ours}/boxes"),
    ]


RPN = (
    (r"rpn_head\.rpn_conv", "rpn/box_tower/conv0"),
    (r"rpn_head\.rpn_cls", "rpn/classes"),
    (r"rpn_head\.rpn_reg", "rpn/code"),
)

# Faster R-CNN, Cascade R-CNN and Mask R-CNN on P2..P6.
TWO_STAGE = (
    *RESNET,
    *fpn(2),
    *RPN,
    *_fully_connected(r"roi_head\.bbox_head", "roi_head/box_head"),
    *[
        entry
        for stage in range(3)
        for entry in _fully_connected(rf"roi_head\.bbox_head\.{stage}", f"roi_head/box_head{stage}")
    ],
    *[(rf"roi_head\.mask_head\.convs\.{number}\.conv", f"mask_head/conv{number + 1}") for number in range(4)],
    (r"roi_head\.mask_head\.upsample", "mask_head/deconv"),
    (r"roi_head\.mask_head\.conv_logits", "mask_head/classes"),
)


def _tsd_head(theirs, ours):
    """Entries for a TSD head of the release: estimators, TSD's two heads and the sibling."""
    pairs = {
        "shared_fc.0": "estimators/shared/fc1",
        "delta_c.0": "estimators/class_hidden",
        "delta_c.2": "estimators/class_offsets",
        "delta_r.0": "estimators/box_hidden",
        "delta_r.2": "estimators/box_offsets",
        "TSD_fc_cls": "classifier/output",
        "TSD_fc_reg": "regressor/output",
        "fc_cls": "sibling/classes",
        "fc_reg": "sibling/boxes",
    }
    for number in range(2):
        pairs[f"TSD_pc_fcs.{number}"] = f"classifier/features/fc{number + 1}"
        pairs[f"TSD_pr_fcs.{number}"] = f"regressor/features/fc{number + 1}"
        pairs[f"shared_fcs.{number}"] = f"sibling/features/fc{number + 1}"
    return [(rf"{theirs}\.{re.escape(name)}", f"{ours}/{part}") for name, part in pairs.items()]


# The TSD release: Faster, Mask and Cascade R-CNN.
TSD = (
    *RESNET,
    *fpn(2),
    *RPN,
    *_tsd_head("bbox_head", "roi_head"),
    *[entry for stage in range(3) for entry in _tsd_head(rf"bbox_head\.{stage}", f"roi_head/stage{stage}")],
    *[(rf"mask_head\.convs\.{number}\.conv", f"mask_head/conv{number + 1}") for number in range(4)],
    (r"mask_head\.upsample", "mask_head/deconv"),
    (r"mask_head\.conv_logits", "mask_head/classes"),
)

# mmdetection 1 counts background as the first class, as maskrcnn-benchmark does.
TSD_CONVERSIONS = (
    (r"bbox_head\.(\d\.)?(TSD_)?fc_cls\.(weight|bias)", background_last, background_first),
    (r"bbox_head\.(\d\.)?(TSD_)?fc_reg\.(weight|bias)", without_background, with_background),
    (r"mask_head\.conv_logits\.(weight|bias)", masks_without_background, masks_with_background),
)

IGNORE = (
    r".*\.num_batches_tracked",
    r"data_preprocessor\.(mean|std)",
    r"bbox_head\.integral\.project",  # GFL's distances 0..n
)


def table_for(backbone, has_roi_head):
    """The table of a model.

    Args:
        backbone:     a layer of kgarden/backbones.
        has_roi_head: whether RoI heads follow; the pyramid then begins at P2 instead of P3.
    """
    of_backbone = {MobileNetV2: MOBILENET_V2, Res2Net: RES2NET}.get(type(backbone), ())
    return (*of_backbone, *(TWO_STAGE if has_roi_head else TABLE))


def left_out_of(backbone):
    """Names without a counterpart: also MobileNetV2's 1x1 before a classifier, if the backbone ends there."""
    ends_before = isinstance(backbone, MobileNetV2) and not backbone.last_conv
    return (*IGNORE, *((r"backbone\.conv2\..*",) if ends_before else ()))
